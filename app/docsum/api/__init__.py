"""The service: an HTTP API under /v1, webhooks, and the page. What it needs is handed in: `service.py`."""
