"""Where summaries, answers and states are kept: ClickHouse, and an in-memory form for tests."""
