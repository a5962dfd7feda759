"""docsum turns "summarise all our documents" into a stream that finishes."""

__version__ = "0.1.0"
