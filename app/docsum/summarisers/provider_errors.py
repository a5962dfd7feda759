"""The provider's failures in our terms: every exception that the SDK exports, and what its words decide."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import aiohttp
import anthropic
import httpx2

from docsum.errors import (
    ConfigurationError,
    DocsumError,
    ModelAccountBlocked,
    ModelFaltered,
    ModelKeyRejected,
    ModelRateLimited,
    ModelRejectedDocument,
    ModelUnknown,
    ModelUnreachable,
    TooLong,
)

_LONGEST_RETRY_AFTER = timedelta(hours=1)

#: Every exception that the SDK exports. An exception is looked up by its class, then by its ancestors'.
ERRORS: dict[type[Exception], type[DocsumError]] = {
    anthropic.AnthropicError: ModelFaltered,
    anthropic.RetryableError: ModelFaltered,
    anthropic.CredentialsError: ModelKeyRejected,
    anthropic.IdentityTokenFileError: ModelKeyRejected,
    anthropic.APIError: ModelFaltered,
    anthropic.APIConnectionError: ModelFaltered,  # ModelUnreachable when nothing was sent
    anthropic.APITimeoutError: ModelFaltered,  # ModelUnreachable when nothing was sent
    anthropic.APIResponseValidationError: ModelFaltered,
    anthropic.APIWebhookValidationError: ModelFaltered,
    anthropic.APIStatusError: ModelFaltered,
    # 400, except for the phrases below
    anthropic.BadRequestError: ModelRejectedDocument,
    anthropic.RequestBodyEncodingInvalidError: ModelRejectedDocument,
    anthropic.RequestBodyEncodingUnsupportedError: ModelRejectedDocument,
    anthropic.CMEKKeyDisabledError: ModelAccountBlocked,
    anthropic.CMEKKeyNetworkBlockedError: ModelAccountBlocked,
    anthropic.OrganizationOnHoldError: ModelAccountBlocked,
    anthropic.OrganizationTypeNotSupportedError: ModelAccountBlocked,
    anthropic.ParentOrganizationRequiredError: ModelAccountBlocked,
    anthropic.ClaudeCodeKeyCreatorNotMemberError: ModelKeyRejected,
    anthropic.ClaudeCodeVersionTooOldError: ModelKeyRejected,
    # 401, 402, 403, 404
    anthropic.AuthenticationError: ModelKeyRejected,
    anthropic.PaymentRequiredError: ModelAccountBlocked,
    anthropic.LinkedOrganizationBillingUnavailableError: ModelAccountBlocked,
    anthropic.LinkedOrganizationSpendLimitReachedError: ModelAccountBlocked,
    anthropic.PermissionDeniedError: ModelKeyRejected,
    anthropic.SandboxEgressRestrictedError: ModelKeyRejected,
    anthropic.NotFoundError: ModelUnknown,
    # 408, 409, 412, 413, 422, 429, 431, 499
    anthropic.RequestTimeoutError: ModelFaltered,
    anthropic.ConflictError: ModelFaltered,
    anthropic.PreconditionFailedError: ModelFaltered,
    anthropic.ContentTooLargeError: TooLong,
    anthropic.RequestBodyTooLargeAfterDecodingError: TooLong,
    anthropic.UnprocessableEntityError: ModelRejectedDocument,
    anthropic.RateLimitError: ModelRateLimited,
    anthropic.RampLimitExceededError: ModelRateLimited,
    anthropic.ContractSpendLimitReachedError: ModelAccountBlocked,
    anthropic.EnforcedSpendLimitReachedError: ModelAccountBlocked,
    anthropic.RequestHeaderFieldsTooLargeError: ConfigurationError,
    anthropic.ClientClosedRequestError: ModelFaltered,
    # 5xx
    anthropic.InternalServerError: ModelFaltered,
    anthropic.HTTPNotImplementedError: ModelFaltered,
    anthropic.ServiceUnavailableError: ModelFaltered,
    anthropic.CMEKContextUnavailableError: ModelFaltered,
    anthropic.CMEKKeyUnreachableError: ModelFaltered,
    anthropic.GatewayTimeoutError: ModelFaltered,
    anthropic.OverloadedError: ModelFaltered,
    # not the SDK's: our own time-out of the whole call, and a 200 that is no message
    TimeoutError: ModelFaltered,
    ValueError: ModelFaltered,
}

#: The provider has no code for these, so the words decide.
_PHRASES: tuple[tuple[str, type[DocsumError]], ...] = (
    ("api usage limits", ModelAccountBlocked),
    ("credit balance is too low", ModelAccountBlocked),
    ("prompt is too long", TooLong),
    ("exceed context limit", TooLong),
)

#: Nothing had been sent when one of these was raised.
_UNSENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.UnsupportedProtocol,
    httpx2.ProxyError,
)


def translate(error: Exception) -> DocsumError:
    """The provider's failure in our terms, as a sentence, with its `retry-after` where it named one."""
    kind = next(ERRORS[ancestor] for ancestor in type(error).__mro__ if ancestor in ERRORS)
    if isinstance(error, anthropic.APIStatusError):
        said = (error.api_message or error.message).strip()
        if error.status_code in (400, 429):
            kind = next((found for phrase, found in _PHRASES if phrase in said.lower()), kind)
        if said.startswith("<"):  # an edge or a proxy has answered in place of the API
            said = "a web page"
        request = f" ({error.request_id})" if error.request_id else ""
        sentence = f"The provider answered {error.status_code}: {said[:300]}{request}"
        return kind(sentence, retry_after=_retry_after(error.response.headers))
    if isinstance(error, anthropic.APIConnectionError):
        cause = error.__cause__ or error
        what = f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__
        if not reply_lost(error):
            return ModelUnreachable(f"The provider cannot be reached: {what}.")
        return kind(f"The reply was lost: {what}.")
    if isinstance(error, TimeoutError):
        return kind("The provider did not answer in time (DOCSUM_MODEL__TIMEOUT).")
    return kind(f"The call of the model failed: {error}")


#: What became of one request of a batch, by the type of its error; a type that is not here may pass.
_ITEM_ERRORS: Mapping[str, type[DocsumError]] = {
    "invalid_request_error": ModelRejectedDocument,
    "request_too_large": TooLong,
    "not_found_error": ModelUnknown,
    "authentication_error": ModelKeyRejected,
    "permission_error": ModelKeyRejected,
    "billing_error": ModelAccountBlocked,
}


def translate_item(error: Mapping[str, Any]) -> DocsumError:  # Any: JSON
    """The error of one request of a batch, `{"type": "error", "error": {"type", "message"}, ...}`."""
    inner = error.get("error") or {}
    said, kind = (
        str(inner.get("message", "")).strip(),
        _ITEM_ERRORS.get(str(inner.get("type")), ModelFaltered),
    )
    if kind is ModelRejectedDocument:
        kind = next((found for phrase, found in _PHRASES if phrase in said.lower()), kind)
    return kind(f"The provider answered a request of a batch with {inner.get('type')}: {said[:300]}")


def reply_lost(error: BaseException) -> bool:
    """Whether the request may have been served, and paid for, though no answer came back."""
    if not isinstance(error, (anthropic.APIConnectionError, TimeoutError, ValueError)):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _UNSENT):
            return False
        cause = cause.__cause__
    return True


def _retry_after(headers: httpx2.Headers) -> timedelta | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = timedelta(seconds=float(headers[name]) * unit)
        except (
            KeyError,
            ValueError,
            OverflowError,
        ):  # the other form, an HTTP date, is not used by the provider
            continue
        return min(max(wait, timedelta()), _LONGEST_RETRY_AFTER)
    return None
