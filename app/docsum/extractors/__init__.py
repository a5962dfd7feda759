"""The port `Extractor`: the content decides what a document is; child processes read the risky kinds."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from docsum.extractors import charset, text
from docsum.extractors.sandbox import CODES, Sandbox
from docsum.extractors.sniff import HEAD, kind_of
from docsum.models import Document, ExtractedText

#: Up to this size UTF-8 text is decoded by the event loop itself (a thread would cost more), bytes.
QUICK = 256 * 1024


class DocumentExtractor:
    """Text and Markdown in this process, PDF, Word and HTML in the sandbox, anything else refused.

    Never discards the document: that is the caller's.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def extract(self, document: Document) -> ExtractedText:
        """Raises an ExtractError; a ConfigurationError when no child process can start."""
        content = document.content
        if content is None:
            kind = kind_of(await asyncio.to_thread(text.beginning_of, document, HEAD))
        else:
            kind = kind_of(content[:HEAD])
        if kind in CODES:
            return await self._sandbox.read(kind, document)
        if content is not None and len(content) <= QUICK and charset.is_utf8(content):
            return text.read(content, kind)
        return await asyncio.to_thread(text.read_document, document, kind)

    async def close(self) -> None:
        """Ends the child processes."""
        await self._sandbox.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
