"""All pages, for the application."""

from __future__ import annotations

from fastapi import FastAPI

from docsum.api.pages import dead_letters, documents, doors, errors, run, runs, work


def add(app: FastAPI) -> None:
    """Adds them, and makes pages of their errors. To be called when the app handles its errors already."""
    for router in (doors.router, runs.router, run.router, documents.router, dead_letters.router, work.router):
        app.include_router(router)
    errors.handle(app)
