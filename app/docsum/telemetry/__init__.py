"""What docsum tells: metrics, logs, health."""
