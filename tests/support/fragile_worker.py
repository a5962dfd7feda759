"""`docsum worker` with a reader that certain documents end, and the process with it: a broken library."""

from __future__ import annotations

import os
import signal

from docsum import cli, serve
from docsum.extractors import DocumentExtractor
from docsum.models import Document, ExtractedText

POISON = b"this document ends whoever reads it"


class Fragile(DocumentExtractor):
    async def extract(self, document: Document) -> ExtractedText:
        if POISON in document.read():
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().extract(document)


if __name__ == "__main__":
    serve.DocumentExtractor = Fragile  # type: ignore[attr-defined]  # what is to be broken
    cli.main()
