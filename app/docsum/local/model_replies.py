"""What the local model server answers: an extract of the document in the prompt, in the shape asked for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from docsum.local.extractive import Extract, ExtractiveModel
from docsum.local.model_api import CHARACTERS_PER_TOKEN, Json, tokens
from docsum.local.model_requests import Ask

# Made once: `json.dumps` with options makes a new encoder for each call.
_readable = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode

_OPENING = re.compile(r'<document id="([\w.:-]{1,128})">\n?', re.ASCII)
_WORDS = re.compile(r"\babout (\d{1,5}) words\b")
_LANGUAGE = re.compile(r"\bAnswer in (?!the\b)([^\W\d_][\w -]{1,40})")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request is answered with, and billed for."""

    text: str
    stop_reason: str
    output_tokens: int
    stop_details: Json = None


def answer(model: ExtractiveModel, ask: Ask, *, fast: bool) -> Reply:
    """The reply to a request; `fast` takes the first sentences instead of the best ones."""
    return limited(written(extract(model, ask, fast=fast), ask.schema), ask.max_tokens)


def boundary_of(text: str) -> str:
    """The id of the first document tag, or "" without one."""
    opening = _OPENING.search(text)
    return opening.group(1) if opening else ""


def document_of(text: str) -> str:
    """What stands between the first opening tag and the last closing tag of that id, else the whole text."""
    opening = _OPENING.search(text)
    end = text.rfind(f'</document id="{opening.group(1)}">') if opening else -1
    return text[opening.end() : end].removesuffix("\n") if opening and end >= opening.end() else text


def extract(model: ExtractiveModel, ask: Ask, *, fast: bool) -> Extract:
    """Do what the prompt asks for, as far as sentences of the document can."""
    words = _WORDS.search(ask.system)
    text, length = document_of(ask.texts[-1]), int(words.group(1)) if words else 150
    if fast:
        return model.lead(text, length)
    language = _LANGUAGE.search(ask.system)
    return model.summarise(text, length, language.group(1) if language else "")


def written(found: Extract, schema: Json) -> str:
    """The extract as JSON that satisfies the schema, or as plain text."""
    if schema is None:
        return "\n".join((found.title, "", found.summary, "", *(f"- {point}" for point in found.key_points)))
    values = {name: fill(name, spec, found) for name, spec in schema["properties"].items()}
    return _readable(values)


def fill(name: str, spec: Json, found: Extract) -> str | list[str]:
    """The field of the extract by that name; a name that it lacks gets the summary or the key points."""
    value = getattr(found, name, None)
    if spec["type"] == "array":
        return list(value if isinstance(value, tuple) else found.key_points)
    text = value if isinstance(value, str) else found.summary
    return str(spec["enum"][0]) if "enum" in spec and text not in spec["enum"] else text


def limited(text: str, limit: int) -> Reply:
    """The text, cut where it costs more than `limit` tokens."""
    cost = max(1, tokens(len(text)))
    if cost <= limit:
        return Reply(text, "end_turn", cost)
    return Reply(text[: int(limit * CHARACTERS_PER_TOKEN)], "max_tokens", limit)


def message_body(ask: Ask, reply: Reply, request_id: str) -> Json:
    """The body of a message, every field of the public API in place."""
    return {
        "id": request_id.replace("req_", "msg_", 1),
        "type": "message",
        "role": "assistant",
        "model": ask.model.id,
        "content": [{"type": "text", "text": reply.text, "citations": None}] if reply.text else [],
        "stop_reason": reply.stop_reason,
        "stop_sequence": None,
        "stop_details": reply.stop_details,
        "container": None,
        "diagnostics": None,
        "usage": {
            "input_tokens": ask.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": reply.output_tokens,
            "output_tokens_details": {"thinking_tokens": 0},
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        },
    }
