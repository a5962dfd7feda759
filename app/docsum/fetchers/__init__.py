"""The implementations of the port `Fetcher`, one module a kind of address."""
