"""Requests to the local model server, checked as the public API checks them: a valid one is an `Ask`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from docsum.local.model_api import (
    API_VERSIONS,
    EFFORTS,
    LEGACY_VERSION,
    MODELS,
    THINKING,
    ApiError,
    Json,
    Model,
    invalid,
    tokens,
)
from docsum.local.model_documents import PdfBlock, read_pdf

_FIELDS = frozenset(
    {"model", "max_tokens", "messages", "system", "metadata", "output_config", "thinking", "service_tier"}
    | {"stream", "inference_geo", "cache_control", "diagnostics", "user_profile_id"}
)
_SAMPLING = frozenset({"temperature", "top_p", "top_k"})
_NOT_HERE = frozenset({"tools", "tool_choice", "stop_sequences", "container", "mcp_servers", "speed"})
_STRING_KEYWORDS = frozenset({"type", "description", "title", "enum", "default"})
_ARRAY_KEYWORDS = frozenset({"type", "description", "title", "items", "minItems", "default"})


@dataclass(frozen=True, slots=True)
class Ask:
    """A valid request for a message."""

    model: Model
    max_tokens: int
    system: str
    texts: tuple[str, ...]
    """One for each message; the last one is the user's."""
    input_tokens: int
    schema: Json
    """What the answer must satisfy, or None for plain text."""
    user_id: str | None
    body: Mapping[str, Json]


def check_headers(headers: Mapping[str, str]) -> str:
    """The API version that the caller speaks; both ways to send a key are taken, and any key."""
    bearer = headers.get("Authorization", "").removeprefix("Bearer").strip()
    if not bearer and not headers.get("x-api-key"):
        raise ApiError(401, "authentication_error", "x-api-key header is required")
    version = headers.get("anthropic-version")
    if version is None:
        raise invalid("anthropic-version: header is required")
    if version not in API_VERSIONS:
        raise invalid(
            f"anthropic-version: {version!r} is not a valid version; known: {', '.join(API_VERSIONS)}"
        )
    return version


def parse_ask(body: Json, version: str, *, counting: bool = False) -> Ask:
    """Check a request as the public API does; `counting` is for count_tokens, which takes no max_tokens."""
    if not isinstance(body, dict):
        raise invalid("the request body must be a JSON object")
    check_fields(body, version)
    user_id, output = user_of(section(body, "metadata")), section(body, "output_config")
    check_effort(output.get("effort"))
    check_thinking(section(body, "thinking"))
    model = known_model(body.get("model"))
    limit = 0 if counting else output_limit(body.get("max_tokens"), model)
    system = text_of(body["system"], "system", version) if body.get("system") else ""
    texts, blocks = message_texts(body.get("messages"), version, model)
    # A PDF is counted by its pages: what is read of it here is only what the local model can read.
    read = sum(len(block.text) for block in blocks)
    size = tokens(len(system) + sum(map(len, texts)) - read) + sum(block.tokens for block in blocks)
    check_length(model, size, limit)
    return Ask(
        model=model,
        max_tokens=limit,
        system=system,
        texts=texts,
        input_tokens=size,
        schema=output_schema(output.get("format")),
        user_id=user_id,
        body=body,
    )


def check_fields(body: Mapping[str, Json], version: str) -> None:
    for name in body.keys() - _FIELDS:
        if name in _NOT_HERE:
            raise invalid(f"{name}: not supported by the local model server")
        if name not in _SAMPLING:
            raise invalid(f"{name}: Extra inputs are not permitted")
        if version != LEGACY_VERSION:
            raise invalid(f"{name}: sampling parameters were removed in anthropic-version {version}")
    if body.get("stream"):
        raise invalid("stream: the local model server does not stream; leave it out or send false")


def section(body: Mapping[str, Json], name: str) -> Mapping[str, Json]:
    """The object of that name, empty where the request has none."""
    found = body.get(name)
    if found is not None and not isinstance(found, dict):
        raise invalid(f"{name}: Input should be an object")
    return found or {}


def check_effort(effort: Json) -> None:
    if effort is not None and effort not in EFFORTS:
        raise invalid(f"output_config.effort: Input should be one of {', '.join(EFFORTS)}")


def check_thinking(thinking: Mapping[str, Json]) -> None:
    if thinking and thinking.get("type") not in THINKING:
        raise invalid(f"thinking.type: Input should be one of {', '.join(THINKING)}")


def user_of(metadata: Mapping[str, Json]) -> str | None:
    user_id = metadata.get("user_id")
    if user_id is not None and not isinstance(user_id, str):
        raise invalid("metadata.user_id: Input should be a valid string")
    return user_id


def known_model(name: Json) -> Model:
    if name is None:
        raise invalid("model: Field required")
    if not isinstance(name, str):
        raise invalid("model: Input should be a valid string")
    if name not in MODELS:
        raise ApiError(404, "not_found_error", f"model: {name}")
    return MODELS[name]


def output_limit(limit: Json, model: Model) -> int:
    if limit is None:
        raise invalid("max_tokens: Field required")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise invalid("max_tokens: Input should be a whole number greater than 0")
    if limit > model.max_tokens:
        raise invalid(
            f"max_tokens: {limit} > {model.max_tokens}, which is the maximum allowed number of "
            f"output tokens for {model.id}"
        )
    return limit


def message_texts(messages: Json, version: str, model: Model) -> tuple[tuple[str, ...], tuple[PdfBlock, ...]]:
    """The text of each message, the last one being the user's, and the PDFs that are part of them."""
    if messages is None:
        raise invalid("messages: Field required")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages: at least one message is required")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            raise invalid(f"messages.{i}.role: Input should be 'user' or 'assistant'")
    if messages[0]["role"] != "user":
        raise invalid('messages: first message must use the "user" role')
    if messages[-1]["role"] != "user":
        raise invalid(
            "messages: no assistant prefill on this model; the conversation must end with a user message"
        )
    blocks: list[PdfBlock] = []
    texts = tuple(
        text_of(message.get("content"), f"messages.{i}.content", version, model, blocks)
        for i, message in enumerate(messages)
    )
    return texts, tuple(blocks)


def text_of(
    content: Json,
    at: str,
    version: str,
    model: Model | None = None,
    blocks: list[PdfBlock] | None = None,
) -> str:
    """The text of a string or of a list of blocks; PDFs, allowed where `blocks` is given, are added to it."""
    if isinstance(content, str):
        if not content.strip():
            raise invalid(f"{at}: text content must be non-empty")
        return content
    if not isinstance(content, list) or not content:
        raise invalid(f"{at}: Input should be a string or a non-empty list of content blocks")
    texts = []
    for i, block in enumerate(content):
        if isinstance(block, dict) and block.get("type") == "document" and model and blocks is not None:
            blocks.append(read_pdf(block, f"{at}.{i}", model))
            texts.append(blocks[-1].text)
        else:
            texts.append(block_text(block, f"{at}.{i}", version))
    return "\n".join(texts)


def block_text(block: Json, at: str, version: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in ("document", "image"):
        raise invalid(f"{at}: the local model reads text only; {kind} blocks need a Claude model")
    if kind != "text" or not isinstance(block.get("text"), str):
        raise invalid(f"{at}: Input should be a text block")
    if not block["text"].strip():
        raise invalid(f"{at}.text: text content blocks must be non-empty")
    if block.get("citations") and version != LEGACY_VERSION:
        raise invalid(f"{at}.citations: removed from user text blocks in anthropic-version {version}")
    return str(block["text"])


def check_length(model: Model, size: int, limit: int) -> None:
    window = model.max_input_tokens
    if size > window:
        raise invalid(f"prompt is too long: {size} tokens > {window} maximum")
    if size + limit > window:
        raise invalid(
            f"input length and `max_tokens` exceed context limit: {size} + {limit} > {window}, "
            "decrease input length or `max_tokens` and try again"
        )


def output_schema(output: Json) -> Json:
    """The schema in `output_config.format`, or None without one."""
    if output is None:
        return None
    at = "output_config.format"
    if not isinstance(output, dict) or output.get("type") != "json_schema":
        raise invalid(f"{at}.type: Input should be 'json_schema'")
    schema = output.get("schema")
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise invalid(f"{at}.schema: the local model fills objects with properties")
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        raise invalid(f"{at}.schema: the local model fills objects with properties")
    if schema.get("additionalProperties") is not False:
        raise invalid(
            f"{at}.schema: For 'object' type, 'additionalProperties' must be explicitly set to false"
        )
    for name, spec in properties.items():
        check_property(spec, f"{at}.schema.properties.{name}")
    required = schema.get("required", [])
    if not isinstance(required, list):
        raise invalid(f"{at}.schema.required: Input should be a list")
    if missing := [str(name) for name in required if name not in [*properties]]:
        raise invalid(f"{at}.schema.required: {', '.join(missing)} not among the properties")
    return schema


def check_property(spec: Json, at: str) -> None:
    """Refuse what the public API refuses (length and number bounds), and what this server cannot fill."""
    kind = spec.get("type") if isinstance(spec, dict) else None
    if kind == "array" and isinstance(spec.get("items"), dict) and spec["items"].get("type") == "string":
        check_property(spec["items"], f"{at}.items")
        if spec.get("minItems", 0) not in (0, 1):
            raise invalid(f"{at}: For 'array' type, 'minItems' values other than 0 or 1 are not supported")
    elif kind != "string":
        raise invalid(f"{at}: the local model fills strings and arrays of strings")
    elif "enum" in spec and not (isinstance(spec["enum"], list) and spec["enum"]):
        raise invalid(f"{at}.enum: Input should be a non-empty list")
    for keyword in spec.keys() - (_STRING_KEYWORDS if kind == "string" else _ARRAY_KEYWORDS):
        raise invalid(f"{at}: For '{kind}' type, property '{keyword}' is not supported")
