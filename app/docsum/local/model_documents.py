"""PDF document blocks at the local model server: counted like the public API's, read as far as text goes."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass

from docsum.local.model_api import ApiError, Json, Model, invalid

#: A page costs its text and its picture; the public API says 1,500 to 3,000 tokens a page.
TOKENS_PER_PAGE = 2_000
_READ = 100  # pages of which the text layer is read


@dataclass(frozen=True, slots=True)
class PdfBlock:
    """A document block: what the local model can read of it, and its pages."""

    text: str
    pages: int

    @property
    def tokens(self) -> int:
        return self.pages * TOKENS_PER_PAGE


def read_pdf(block: Json, at: str, model: Model) -> PdfBlock:
    """The document of a base64 PDF block. Raises a 400 where the public API would."""
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        raise invalid(f"{at}.source.type: the local model server takes 'base64'")
    if source.get("media_type") != "application/pdf":
        raise invalid(f"{at}.source.base64.media_type: Input should be 'application/pdf'")
    try:
        content = base64.b64decode(source.get("data", ""), validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise invalid(f"{at}.source.base64.data: Invalid base64") from error
    text, pages = _contents(content, at)
    most = 600 if model.max_input_tokens > 200_000 else 100
    if pages > most:
        raise invalid(f"{at}.source.base64.data: A maximum of {most} PDF pages may be provided.")
    return PdfBlock(text or f"{pages} pages that are pictures: the local model cannot read them.", pages)


def _contents(content: bytes, at: str) -> tuple[str, int]:
    from pypdf import PdfReader

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted:
            raise invalid(f"{at}.source.base64.data: The PDF specified is password protected.")
        pages = len(reader.pages)
        return "\n\n".join(page.extract_text() for page in reader.pages[:_READ]).strip(), pages
    except ApiError:
        raise
    except Exception as error:  # a damaged PDF makes pypdf raise nearly anything
        raise invalid(f"{at}.source.base64.data: The PDF specified was not valid.") from error
