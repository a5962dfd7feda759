"""docsum turns "summarise all our documents" into a stream that finishes."""
