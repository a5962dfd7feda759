"""Fault rules of the local model server: which request is spoilt, how, how often and when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from aiohttp import web

from docsum.local.model_api import ApiError, Json, invalid, tokens
from docsum.local.model_replies import Reply, limited
from docsum.local.model_requests import Ask


class Endpoint(StrEnum):
    """What of the API a rule spoils."""

    MESSAGES = "messages"
    BATCH_CREATE = "batches.create"
    BATCH_RETRIEVE = "batches.retrieve"
    BATCH_LIST = "batches.list"
    BATCH_CANCEL = "batches.cancel"
    BATCH_RESULTS = "batches.results"
    BATCH_ITEM = "batches.item"  # one request of a batch, when its turn comes


class FaultKind(StrEnum):
    """What goes wrong; those from RESET_AFTER_ACCEPT on are billed."""

    ERROR = "error"
    RESET = "reset"
    HANG = "hang"
    RESET_AFTER_ACCEPT = "reset_after_accept"
    SLOW_HEADERS = "slow_headers"  # nothing for `seconds`, then the answer
    SLOW_BODY = "slow_body"  # headers at once, the body over `seconds`
    INVALID_JSON = "invalid_json"
    TRUNCATED = "truncated"
    CONTEXT_EXCEEDED = "context_exceeded"
    REFUSAL = "refusal"
    THINKING_FIRST = "thinking_first"
    UNKNOWN = "unknown"  # fields, block types and enum values that no client has heard of
    NEVER_ENDS = "never_ends"  # of a batch that is created
    HIDDEN = "hidden"  # batches younger than `seconds` are not found, or not listed
    CUT = "cut"  # results end in the middle of a line
    EXPIRED = "expired"  # a request of a batch; this and the next one are not billed
    CANCELED = "canceled"
    MISSING = "missing"  # it has no result, and is billed
    DUPLICATED = "duplicated"  # it has its result twice


ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def _page(title: str) -> str:
    """What an edge or a proxy answers in place of the API."""
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"


#: Errors that are more than a status, by the name that stands for them in `kind`.
NAMED: dict[str, dict[str, Json]] = {
    "credit_too_low": {
        "status": 400,
        "message": "Your credit balance is too low to access the Anthropic API. "
        "Please go to Plans & Billing to upgrade or purchase credits.",
    },
    "usage_limit": {
        "status": 400,
        "message": "You have reached your specified API usage limits. "
        "You will regain access on the first day of next month at 00:00 UTC.",
    },
    "ramp_limit": {"status": 429, "error_code": "ramp_limit_exceeded", "retry_after": 5},
    "enforced_spend_limit": {"status": 429, "error_code": "enforced_spend_limit_reached"},
    "contract_spend_limit": {"status": 429, "error_code": "contract_spend_limit_reached"},
    "too_large": {"status": 413, "body": _page("413 Request Entity Too Large")},
    "bad_gateway": {"status": 502, "body": _page("502 Bad Gateway")},
}
_RULE_TYPES: dict[str, Any] = {  # Any: what isinstance takes
    "match": dict,
    "kind": str,
    "status": int,
    "error_type": str,
    "error_code": str | None,
    "message": str,
    "body": str | None,
    "retry_after": int | float | None,
    "seconds": int | float,
    "times": int | None,
    "probability": int | float,
    "after": int | float,
    "for": int | float | None,
}
_MATCH_TYPES = {"contains": str, "model": str, "nth": int, "endpoint": str}
_BODY_PIECES = 10


@dataclass(slots=True)
class Fault:
    """A rule: the first one that matches a request spoils it. `times` counts down, None means always."""

    kind: FaultKind = FaultKind.ERROR
    endpoint: Endpoint = Endpoint.MESSAGES
    contains: str = ""
    model: str = ""
    nth: int = 0  # of the requests that match otherwise, from 1; 0 = each
    status: int = 500
    error_type: str = ""
    error_code: str | None = None
    message: str = "a fault rule of the local model server"
    body: str | None = None  # sent as HTML in place of the error object
    retry_after: float | None = None
    seconds: float = 1.0
    times: int | None = None
    probability: float = 1.0
    after: float = 0.0  # seconds since the rule was set
    lasts: float | None = None  # seconds from then on; None = for good
    fired: int = 0
    met: int = field(default=0, repr=False)
    set_at: float = field(default=0.0, repr=False)

    @classmethod
    def parse(cls, rule: Json, now: float = 0.0) -> Fault:
        """Read a rule of `PUT /_faults`; raises a 400."""
        if not isinstance(rule, dict) or rule.keys() - _RULE_TYPES.keys():
            raise invalid(f"a fault rule is an object of {', '.join(_RULE_TYPES)}")
        for name, value in rule.items():
            if not isinstance(value, _RULE_TYPES[name]):
                raise invalid(f"{name}: {value!r} does not fit")
        kind = rule.get("kind", FaultKind.ERROR)
        if kind in NAMED:
            rule, kind = NAMED[kind] | rule, FaultKind.ERROR
        if kind not in list(FaultKind):
            raise invalid(f"kind is one of {', '.join([*FaultKind, *NAMED])}")
        given = {name: rule[name] for name in rule if name not in ("match", "kind", "for")}
        fault = cls(
            FaultKind(kind), **_match(rule.get("match", {})), **given, lasts=rule.get("for"), set_at=now
        )
        if not (400 <= fault.status < 600 and 0 <= fault.probability <= 1):
            raise invalid("status is 400 to 599 and probability is 0 to 1")
        if min(fault.seconds, fault.after, fault.lasts or 0, fault.retry_after or 0) < 0:
            raise invalid("seconds, after, for and retry_after are not negative")
        return fault

    def applies(self, endpoint: Endpoint, texts: Sequence[str], model: str, now: float) -> bool:
        """Whether it is this rule's turn, but for its dice; counts the requests for `nth`."""
        begin = self.set_at + self.after
        if self.times == 0 or now < begin or (self.lasts is not None and now >= begin + self.lasts):
            return False
        if endpoint is not self.endpoint or (self.model and self.model != model):
            return False
        if self.contains and not any(self.contains in text for text in (*texts, model)):
            return False
        self.met += 1
        return self.nth in (0, self.met)

    def fire(self) -> Fault:
        self.fired += 1
        self.times = None if self.times is None else self.times - 1
        return self

    def error(self) -> ApiError:
        kind = self.error_type or ERROR_TYPES.get(self.status, "api_error")
        return ApiError(
            self.status,
            kind,
            self.message,
            retry_after=self.retry_after,
            code=self.error_code,
            page=self.body,
        )

    def bend(self, reply: Reply) -> Reply:
        """The reply that is billed and sent instead."""
        match self.kind:
            case FaultKind.INVALID_JSON:
                text = f"Here is the summary:\n{reply.text[: len(reply.text) // 2]}"
                return Reply(text, "end_turn", tokens(len(text)))
            case FaultKind.TRUNCATED:
                return limited(reply.text, max(1, reply.output_tokens // 2))
            case FaultKind.CONTEXT_EXCEEDED:
                cut = limited(reply.text, max(1, reply.output_tokens // 2))
                return Reply(cut.text, "model_context_window_exceeded", cut.output_tokens)
            case FaultKind.REFUSAL:
                details = {"type": "refusal", "category": "general_harms", "explanation": self.message}
                return Reply("", "refusal", 1, details)
            case FaultKind.UNKNOWN:
                return Reply(reply.text, "a_later_stop_reason", reply.output_tokens)
            case _:
                return reply

    def decorate(self, body: Json) -> Json:
        """The message that is sent instead, with the same text."""
        if self.kind is FaultKind.THINKING_FIRST:
            thought = {"type": "thinking", "thinking": "{ What is this about? }", "signature": "bG9jYWw="}
            body["content"].insert(0, thought)
        if self.kind is FaultKind.UNKNOWN:
            body["content"].insert(0, {"type": "a_later_block", "text": 7, "parts": [None]})
            body["a_later_field"] = body["usage"]["a_later_field"] = {"nested": [1, 2]}
            body["usage"]["service_tier"] = "a_later_tier"
        return body

    def shown(self) -> Json:
        """As a rule of `PUT /_faults` that has the same effect, with how often it has fired."""
        hidden = ("contains", "model", "nth", "endpoint", "lasts", "met", "set_at")
        unsaid = ("", 0, Endpoint.MESSAGES)
        match = {name: value for name in _MATCH_TYPES if (value := getattr(self, name)) not in unsaid}
        told = {at.name: getattr(self, at.name) for at in fields(self) if at.name not in hidden}
        return {"match": match, **told, "for": self.lasts}


def _match(match: Json) -> Json:
    if match.keys() - _MATCH_TYPES.keys() or not all(
        isinstance(value, _MATCH_TYPES[name]) for name, value in match.items()
    ):
        raise invalid(
            'match is {} or {"contains": "text", "model": "id", "nth": 3, "endpoint": "messages"}, '
            "each of them optional"
        )
    if match.get("endpoint", Endpoint.MESSAGES) not in list(Endpoint):
        raise invalid(f"match.endpoint is one of {', '.join(Endpoint)}")
    return {**match, "endpoint": Endpoint(match.get("endpoint", Endpoint.MESSAGES))}


def texts_of(ask: Ask) -> Sequence[str]:
    """What `contains` of a rule looks at."""
    return (ask.system, *ask.texts, ask.user_id or "")


class Dice:
    """Draws the fault that spoils a request; the same seed draws the same for the same requests."""

    def __init__(self, rules: Sequence[Fault], seed: int) -> None:
        self.rules = rules
        self._chance = random.Random(seed)  # noqa: S311 - repeatable, no secret

    def draw(self, endpoint: Endpoint, texts: Sequence[str], model: str, now: float) -> Fault | None:
        """The first rule that matches and whose dice fall, counted as fired."""
        for rule in self.rules:
            if rule.applies(endpoint, texts, model, now) and self._chance.random() < rule.probability:
                return rule.fire()
        return None


async def write_slowly(response: web.StreamResponse, body: bytes, seconds: float) -> None:
    """The body in pieces over that time."""
    size = max(1, -(-len(body) // _BODY_PIECES))
    for start in range(0, len(body), size):
        await asyncio.sleep(seconds / _BODY_PIECES)
        await response.write(body[start : start + size])
