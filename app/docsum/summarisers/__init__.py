"""Models that summarise: the port `Summariser` and what every call to a model needs."""
