"""What the local model server has in common with the public API: its models, its errors, its JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

#: A decoded JSON value: `model_requests` checks its shape.
Json = Any
# Made once: `json.dumps` with options makes a new encoder for each call.
compact = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

#: Still takes sampling parameters and citations, as at the public API.
LEGACY_VERSION = "2023-06-01"
API_VERSIONS = ("2026-10-21", LEGACY_VERSION)
EFFORTS = ("low", "medium", "high", "xhigh", "max")
THINKING = ("adaptive", "disabled", "between_tools", "enabled")
#: There is no public tokenizer; this is a usual figure for prose, and the same input always costs the same.
CHARACTERS_PER_TOKEN = 3.5


def tokens(characters: int) -> int:
    """What that many characters count as."""
    return math.ceil(characters / CHARACTERS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that this server answers for, with the limits that the public API gives it."""

    id: str
    display_name: str
    line: str | None
    max_input_tokens: int = 1_000_000
    max_tokens: int = 128_000

    def info(self) -> Json:
        """The body of `GET /v1/models/{id}`; capabilities are those of this server."""
        yes, no = {"supported": True}, {"supported": False}
        efforts = dict.fromkeys(EFFORTS, yes)
        return {
            "type": "model",
            **asdict(self),
            "created_at": "1970-01-01T00:00:00Z",  # the API's way to say that the date is unknown
            "lifecycle": "active",
            "deprecated_at": None,
            "retires_at": None,
            "capabilities": {
                "batch": yes,
                "citations": no,
                "code_execution": no,
                "context_management": no,
                "effort": {**yes, **efforts},
                "image_input": no,
                "pdf_input": yes,
                "server_tools": {**no, "code_execution": no, "web_search": no},
                "structured_outputs": yes,
                "thinking": {**yes, "types": dict.fromkeys(THINKING, yes)},
            },
        }


MODELS = {
    model.id: model
    for model in (
        Model("local-extractive-1", "Local extracts (LexRank)", None),
        Model("claude-haiku-5-5", "Claude Haiku 5.5, rehearsed locally", "haiku"),
        Model("claude-sonnet-5-5", "Claude Sonnet 5.5, rehearsed locally", "sonnet"),
        Model("claude-opus-5-5", "Claude Opus 5.5, rehearsed locally", "opus"),
        Model("claude-haiku-4-5", "Claude Haiku 4.5, rehearsed locally", "haiku", 200_000, 64_000),
    )
}


class ApiError(Exception):
    """The request is answered with an error body; nothing is billed."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after: float | None = None,
        code: str | None = None,
        page: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.retry_after = retry_after  # seconds
        self.code = code
        self.page = page  # HTML of something in front of the API, which answers in its place

    def body(self, request_id: str) -> Json:
        error: Json = {"type": self.kind, "message": str(self)}
        if self.code:
            error["details"] = {"error_code": self.code}
        return {"type": "error", "error": error, "request_id": request_id}


def invalid(message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", message)
