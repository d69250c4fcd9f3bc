"""Signed tokens (RFC 7515, RFC 7519): who signed, for whom, and when. What they say is for others.

The algorithm must be one that the issuer is configured with, and is never symmetric or ``none``. The
key comes from the issuer's key set, or from an ``x5c`` chain that leads to the issuer's root; ``jku``,
``x5u`` and ``jwk`` in a header are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from strongroom.attest.endorsements import EndorsementSource
from strongroom.attest.jws_keys import ALGORITHMS, key_of_chain, key_of_set
from strongroom.attest.limits import MAX_EVIDENCE
from strongroom.attest.roots import Issuer
from strongroom.errors import MalformedEvidence, NotAuthentic
from strongroom.format.encoding import parse_json, unb64url_text

if TYPE_CHECKING:
    from strongroom.attest.jws_keys import Key

__all__ = ["LEEWAY", "Token", "verify_token"]

LEEWAY: Final = timedelta(seconds=30)
"""How far the clocks of an issuer and of this machine may be apart."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token whose signature, issuer, audience and dates are right.

    Attributes:
        issuer: as configured.
        claims: the payload, in the numbers and texts that canonical JSON can hold.
        not_after: ``exp``, or the end of the signer's certificates where that is earlier.
    """

    issuer: Issuer
    claims: Mapping[str, Any] = field(repr=False)
    not_after: datetime


def verify_token(
    token: bytes,
    issuers: Sequence[Issuer],
    now: datetime,
    endorsements: EndorsementSource | None,
) -> Token:
    """Verify a compact JWS.

    ``exp`` must be there; it, ``nbf`` and ``iat`` are held against ``now`` with :data:`LEEWAY`. An
    issuer whose configured audience is empty is one whose tokens have no ``aud``; its tokens that have
    one are for somebody else.

    Args:
        token: ASCII, three parts.
        issuers: who is believed.
        now: with a time zone.
        endorsements: where to ask for key sets that are not configured.

    Raises:
        MalformedEvidence: it is no such token.
        NotAuthentic: issuer, audience, algorithm, key, signature or a date speaks against it.
        MissingEndorsement: there is no key set for the issuer.
        Unavailable: the key set could not be fetched.
    """
    header, claims = _split(token)
    issuer = _issuer(claims, issuers)
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise NotAuthentic("The token is not signed with an algorithm that its issuer uses.")
    if algorithm not in ALGORITHMS:
        raise NotAuthentic("The token is not signed with a public-key algorithm that is known.")
    if "crit" in header or "b64" in header:
        raise NotAuthentic("The token wants an extension that is not known.")
    not_after = _check_times(claims, now)
    if issuer.root is not None:
        key, until = key_of_chain(header, algorithm, issuer.root, now)
        not_after = min(not_after, until)
    else:
        key = key_of_set(header, algorithm, issuer, endorsements)
    _check_signature(token, key, algorithm)
    return Token(issuer, _plain(claims), not_after)


def _split(token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    if len(token) > MAX_EVIDENCE:
        raise MalformedEvidence(f"A token has more than {MAX_EVIDENCE} bytes.")
    parts = token.split(b".")
    if len(parts) != 3:
        raise MalformedEvidence("This is not a signed token of three parts.")
    try:
        header, claims, _ = (unb64url_text(part.decode("ascii")) for part in parts)
        return parse_json(header), parse_json(claims)
    except ValueError:
        raise MalformedEvidence("The parts of the token are not base64url of JSON objects.") from None


def _issuer(claims: Mapping[str, Any], issuers: Sequence[Issuer]) -> Issuer:
    known = [one for one in issuers if one.issuer and one.issuer == claims.get("iss")]
    if not known:
        raise NotAuthentic("The token is from an issuer that is not believed here.")
    audience = claims.get("aud", [])
    said = audience if isinstance(audience, list) else [audience]
    for one in known:
        if (one.audience in said) if one.audience else "aud" not in claims:
            return one
    raise NotAuthentic("The token is meant for another audience.")


def _check_times(claims: Mapping[str, Any], now: datetime) -> datetime:
    until = _moment(claims, "exp")
    if until is None:
        raise NotAuthentic("The token does not say when it expires.")
    if until + LEEWAY <= now:
        raise NotAuthentic("The token has expired.")
    for name in ("nbf", "iat"):
        moment = _moment(claims, name)
        if moment is not None and moment - LEEWAY > now:
            raise NotAuthentic("The token is from the future.")
    return until


def _moment(claims: Mapping[str, Any], name: str) -> datetime | None:
    if name not in claims:
        return None
    value = claims[name]
    try:
        if type(value) not in {int, float}:
            raise ValueError
        # A minute is left at the end, for sums with the leeway.
        return min(datetime.fromtimestamp(value, UTC), datetime.max.replace(tzinfo=UTC) - 2 * LEEWAY)
    except (ValueError, OverflowError, OSError):
        raise MalformedEvidence(f"The member {name} of the token is no time.") from None


def _check_signature(token: bytes, key: Key, algorithm: str) -> None:
    from joserfc import jws
    from joserfc.errors import JoseError

    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    # Headers with a chain have 9 KB; all is bounded already.
    registry.max_header_length = registry.max_payload_length = MAX_EVIDENCE
    try:
        jws.deserialize_compact(token, key, registry=registry)
    except (JoseError, ValueError):
        raise NotAuthentic("The signature of the token is wrong.") from None


def _plain(value: Any) -> Any:
    """As canonical JSON can hold it: numbers that not every reader keeps become text.

    Raises:
        MalformedEvidence: a name is not ASCII.
    """
    if isinstance(value, dict):
        if not all(name.isascii() for name in value):
            raise MalformedEvidence("The token has a name that is not ASCII.")
        return {name: _plain(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_plain(member) for member in value]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) or (isinstance(value, int) and abs(value) >= 1 << 53):
        return str(value)
    return value
