"""Signed tokens (RFC 7515, RFC 7519): who signed, for whom, and when. What they say is for others.

The algorithm must be one that the issuer is configured with, and is never symmetric or ``none``. The
key comes from the issuer's key set, or from an ``x5c`` chain that leads to the issuer's root; ``jku``,
``x5u`` and ``jwk`` in a header are not looked at.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.attest.certificates import load_certificate
from strongroom.attest.chains import chain_to
from strongroom.attest.endorsements import EndorsementSource, Wanted
from strongroom.attest.limits import MAX_CERTIFICATES, MAX_EVIDENCE
from strongroom.attest.roots import Issuer
from strongroom.errors import MalformedEvidence, MissingEndorsement, MissingExtra, NotAuthentic
from strongroom.format.encoding import parse_json, unb64url_text

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, RSAKey

    Key = RSAKey | ECKey

__all__ = ["LEEWAY", "MAX_KEYS", "Token", "verify_token"]

LEEWAY: Final = timedelta(seconds=30)
"""How far the clocks of an issuer and of this machine may be apart."""

MAX_KEYS: Final = 64
"""In one key set; Google has 2, Azure Attestation some 20."""

MIN_RSA_BITS: Final = 2048

_KEY_TYPES: Final[Mapping[str, tuple[str, str | None]]] = {
    **{f"{family}{size}": ("RSA", None) for family in ("RS", "PS") for size in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
}
"""Algorithm → type and curve of its key. What is not here is refused, whatever an issuer's list says."""


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
    if algorithm not in _KEY_TYPES:
        raise NotAuthentic("The token is not signed with a public-key algorithm that is known.")
    if "crit" in header or "b64" in header:
        raise NotAuthentic("The token wants an extension that is not known.")
    not_after = _check_times(claims, now)
    if issuer.root is not None:
        key, until = _key_of_chain(header, algorithm, issuer.root, now)
        not_after = min(not_after, until)
    else:
        key = _key_of_set(header, algorithm, _key_set(issuer, endorsements))
    _check_key(key, algorithm)
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


def _key_of_chain(
    header: Mapping[str, Any], algorithm: str, root: bytes, now: datetime
) -> tuple[Key, datetime]:
    texts = header.get("x5c")
    if not isinstance(texts, list) or not 0 < len(texts) <= MAX_CERTIFICATES:
        raise NotAuthentic("The token does not bring the certificates of its signer.")
    try:
        certificates = [load_certificate(base64.b64decode(text, validate=True)) for text in texts]
    except (TypeError, binascii.Error, ValueError):
        raise MalformedEvidence("The certificates of the token are not base64.") from None
    chain, until = chain_to(certificates, root, now)
    pem = chain[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return _import_key(_KEY_TYPES[algorithm][0], pem), until


def _key_set(issuer: Issuer, endorsements: EndorsementSource | None) -> list[Mapping[str, Any]]:
    data = issuer.jwks
    if data is None:
        if endorsements is None:
            raise MissingEndorsement("The key set of the token's issuer is not at hand.")
        data = endorsements.fetch(Wanted("jwks", {"issuer": issuer.issuer}))
    try:
        keys = parse_json(data).get("keys")
    except ValueError:
        keys = None
    if not isinstance(keys, list) or not 0 < len(keys) <= MAX_KEYS:
        raise NotAuthentic("The key set of the token's issuer is not usable.")
    return [key for key in keys if isinstance(key, dict)]


def _key_of_set(header: Mapping[str, Any], algorithm: str, keys: list[Mapping[str, Any]]) -> Key:
    wanted = header.get("kid")
    family, curve = _KEY_TYPES[algorithm]
    fitting = [
        key
        for key in keys
        if key.get("kty") == family
        and (curve is None or key.get("crv") == curve)
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and (wanted is None or key.get("kid") == wanted)
    ]
    # Two keys under one name, or no name and two keys: nobody says which, so none.
    if len(fitting) != 1:
        raise NotAuthentic("The issuer has no such key as the token says.")
    members = {name: fitting[0][name] for name in fitting[0] if name in _PUBLIC[family]}
    return _import_key(family, members)


_PUBLIC: Final = {
    "RSA": {"kty", "n", "e"},
    "EC": {"kty", "crv", "x", "y"},
}


def _import_key(family: str, material: bytes | dict[str, Any]) -> Key:
    try:
        from joserfc.jwk import ECKey, RSAKey
    except ImportError:
        raise MissingExtra("Verifying a token", "attest") from None
    try:
        key: Key = (RSAKey if family == "RSA" else ECKey).import_key(material)
        key.public_key  # noqa: B018 - members are looked at here, and not before
    except Exception:
        # joserfc raises errors of many kinds for what is no key, and none of them says more.
        raise NotAuthentic("The key of the token's issuer is not usable.") from None
    return key


def _check_key(key: Key, algorithm: str) -> None:
    """The key is of the kind that the algorithm needs; a chain may lead to any."""
    public: Any = key.public_key
    family, _ = _KEY_TYPES[algorithm]
    sizes = {"ES256": 256, "ES384": 384, "ES512": 521}
    if family == "RSA":
        fits = isinstance(public, rsa.RSAPublicKey) and public.key_size >= MIN_RSA_BITS
    else:
        fits = isinstance(public, ec.EllipticCurvePublicKey) and public.key_size == sizes[algorithm]
    if not fits:
        raise NotAuthentic("The key of the token's issuer does not fit the algorithm, or is too short.")


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
