"""The server's errors, which are JSON, as those of the error tree."""

from __future__ import annotations

import re
from typing import Final

from strongroom import errors
from strongroom.errors import ServerUnavailable, StrongroomError, UsageError
from strongroom.providers.keyserver.denial import CODES, denied

__all__ = ["error_of"]

_MAX_MESSAGE: Final = 1000


def _kebab(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


# Those that are made of a sentence and a hint; of the others the class above them.
_CLASSES: Final[dict[str, type[StrongroomError]]] = {
    **{
        _kebab(kind.__name__): kind
        for kind in (
            errors.AccessError,
            errors.AlreadyExists,
            errors.EvidenceError,
            errors.FormatError,
            errors.IntegrityError,
            errors.InvalidKey,
            errors.LimitExceeded,
            errors.MalformedEvidence,
            errors.MissingEndorsement,
            errors.NotAcceptable,
            errors.NotAuthentic,
            errors.NotAuthorised,
            errors.NotFound,
            errors.UntrustedAnswer,
            errors.UsageError,
        )
    },
    "invalid-policy": errors.EvidenceError,
    "malformed": errors.FormatError,
}
_BY_STATUS: Final[dict[int, type[StrongroomError]]] = {
    401: errors.NotAuthorised,
    403: errors.NotAuthorised,
    404: errors.NotFound,
    409: errors.AlreadyExists,
    413: errors.LimitExceeded,
}


def error_of(status: int, body: object) -> StrongroomError:
    """The error that an answer with this status stands for; ``body`` is its JSON, or anything."""
    said = body.get("error") if isinstance(body, dict) else None
    said = said if isinstance(said, dict) else {}
    code, message, hint = (said.get(name) for name in ("code", "message", "hint"))
    message = message[:_MAX_MESSAGE] if isinstance(message, str) and message else None
    hint = hint[:_MAX_MESSAGE] if isinstance(hint, str) and hint else None
    if status == 403 and isinstance(code, str) and code in CODES:
        return denied(code)
    if status == 429 or status >= 500:
        return ServerUnavailable(
            message or f"The key server cannot answer now (HTTP status {status}).", hint=hint
        )
    kind = _CLASSES.get(code) if isinstance(code, str) else None
    if kind is None:
        kind = _BY_STATUS.get(status, UsageError if 400 <= status < 500 else ServerUnavailable)
    return kind(message or f"The key server refuses (HTTP status {status}).", hint=hint)
