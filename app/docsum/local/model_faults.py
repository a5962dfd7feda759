"""Fault rules of the local model server: which request is spoilt, how, and how often."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from docsum.local.model_api import ApiError, Json, invalid, tokens
from docsum.local.model_replies import Reply, limited
from docsum.local.model_requests import Ask


class FaultKind(StrEnum):
    """What goes wrong; those from RESET_AFTER_ACCEPT on are billed."""

    ERROR = "error"
    RESET = "reset"
    HANG = "hang"
    RESET_AFTER_ACCEPT = "reset_after_accept"
    INVALID_JSON = "invalid_json"
    TRUNCATED = "truncated"
    REFUSAL = "refusal"


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
_RULE_TYPES: dict[str, Any] = {  # Any: what isinstance takes
    "match": dict,
    "kind": str,
    "status": int,
    "error_type": str,
    "error_code": str | None,
    "message": str,
    "retry_after": int | float | None,
    "times": int | None,
    "probability": int | float,
}


@dataclass(slots=True)
class Fault:
    """A rule: the first one that matches a request spoils it. `times` counts down, None means always."""

    kind: FaultKind = FaultKind.ERROR
    contains: str = ""
    status: int = 500
    error_type: str = ""
    error_code: str | None = None
    message: str = "a fault rule of the local model server"
    retry_after: float | None = None
    times: int | None = None
    probability: float = 1.0
    fired: int = 0

    @classmethod
    def parse(cls, rule: Json) -> Fault:
        """Read a rule of `PUT /_faults`; raises a 400."""
        if not isinstance(rule, dict) or rule.keys() - _RULE_TYPES.keys():
            raise invalid(f"a fault rule is an object of {', '.join(_RULE_TYPES)}")
        for name, value in rule.items():
            if not isinstance(value, _RULE_TYPES[name]):
                raise invalid(f"{name}: {value!r} does not fit")
        match, kind = rule.get("match", {}), rule.get("kind", FaultKind.ERROR)
        contains = match.get("contains", "")
        if not isinstance(contains, str) or match.keys() - {"contains"}:
            raise invalid('match is {} or {"contains": "text"}')
        if kind not in list(FaultKind):
            raise invalid(f"kind is one of {', '.join(FaultKind)}")
        given = {name: value for name, value in rule.items() if name not in ("match", "kind")}
        fault = cls(FaultKind(kind), contains, **given)
        if not (400 <= fault.status < 600 and 0 <= fault.probability <= 1):
            raise invalid("status is 400 to 599 and probability is 0 to 1")
        return fault

    def applies(self, ask: Ask) -> bool:
        if self.times == 0:
            return False
        parts = (ask.system, *ask.texts, ask.user_id or "", ask.model.id)
        return not self.contains or any(self.contains in part for part in parts)

    def fire(self) -> Fault:
        self.fired += 1
        self.times = None if self.times is None else self.times - 1
        return self

    def error(self) -> ApiError:
        kind = self.error_type or ERROR_TYPES.get(self.status, "api_error")
        return ApiError(self.status, kind, self.message, retry_after=self.retry_after, code=self.error_code)

    def bend(self, reply: Reply) -> Reply:
        """The reply that is billed and sent instead."""
        match self.kind:
            case FaultKind.INVALID_JSON:
                text = f"Here is the summary:\n{reply.text[: len(reply.text) // 2]}"
                return Reply(text, "end_turn", tokens(len(text)))
            case FaultKind.TRUNCATED:
                return limited(reply.text, max(1, reply.output_tokens // 2))
            case FaultKind.REFUSAL:
                details = {"type": "refusal", "category": "general_harms", "explanation": self.message}
                return Reply("", "refusal", 1, details)
            case _:
                return reply

    def shown(self) -> Json:
        rule = asdict(self)
        return {"match": {"contains": rule.pop("contains")} if self.contains else {}, **rule}


def draw_fault(rules: Sequence[Fault], ask: Ask, chance: random.Random) -> Fault | None:
    """The first rule that matches and whose dice fall, counted as fired."""
    for rule in rules:
        if rule.applies(ask) and chance.random() < rule.probability:
            return rule.fire()
    return None
