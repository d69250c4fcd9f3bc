"""Keys of token issuers: from a key set (RFC 7517) or from a chain of certificates.

What a header itself offers as a key, or as the place of one, is not looked at.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from strongroom.attest.certificates import load_certificate
from strongroom.attest.chains import chain_to
from strongroom.attest.endorsements import EndorsementSource, RenewableSource, Wanted
from strongroom.attest.limits import MAX_CERTIFICATES
from strongroom.attest.roots import Issuer
from strongroom.errors import MalformedEvidence, MissingEndorsement, MissingExtra, NotAuthentic
from strongroom.format.encoding import parse_json

if TYPE_CHECKING:
    from joserfc.jwk import ECKey, RSAKey

    Key = RSAKey | ECKey

__all__ = ["ALGORITHMS", "MAX_KEYS", "key_of_chain", "key_of_set", "parse_key_set"]

MAX_KEYS: Final = 64
"""In one key set; Google has 2, Azure Attestation some 20."""

MIN_RSA_BITS: Final = 2048

ALGORITHMS: Final[Mapping[str, tuple[str, str | None]]] = {
    **{f"{family}{size}": ("RSA", None) for family in ("RS", "PS") for size in (256, 384, 512)},
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
}
"""Algorithm → type and curve of its key. What is not here is refused, whatever an issuer's list says."""

_CURVES: Final[Mapping[str | None, str]] = {
    "P-256": "secp256r1",
    "P-384": "secp384r1",
    "P-521": "secp521r1",
}
_PUBLIC: Final = {
    "RSA": {"kty", "n", "e"},
    "EC": {"kty", "crv", "x", "y"},
}


def key_of_chain(
    header: Mapping[str, Any], algorithm: str, root: bytes, now: datetime
) -> tuple[Key, datetime]:
    """The key of the first certificate in ``x5c``, and until when its chain to ``root`` holds.

    Raises:
        MalformedEvidence: what is there is no certificate.
        NotAuthentic: there is no chain, it does not lead to the root, or the key does not fit.
    """
    texts = header.get("x5c")
    if not isinstance(texts, list) or not 0 < len(texts) <= MAX_CERTIFICATES:
        raise NotAuthentic("The token does not bring the certificates of its signer.")
    try:
        certificates = [load_certificate(base64.b64decode(text, validate=True)) for text in texts]
    except (TypeError, binascii.Error, ValueError):
        raise MalformedEvidence("The certificates of the token are not base64.") from None
    chain, until = chain_to(certificates, root, now)
    pem = chain[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return _import_key(algorithm, pem), until


def key_of_set(
    header: Mapping[str, Any],
    algorithm: str,
    issuer: Issuer,
    endorsements: EndorsementSource | None,
) -> Key:
    """The one key of the issuer's set that has the header's ``kid``, and fits.

    Where no key has it, the source is asked whether the issuer has taken new keys.

    Raises:
        NotAuthentic: there is none, or there are several.
        MissingEndorsement: the set is not at hand.
        Unavailable: it could not be fetched.
    """
    wanted = header.get("kid")
    keys = _key_set(issuer, endorsements, wanted)
    family, curve = ALGORITHMS[algorithm]
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
    return _import_key(algorithm, members)


def _key_set(
    issuer: Issuer, endorsements: EndorsementSource | None, kid: object
) -> list[Mapping[str, Any]]:
    if issuer.jwks is not None:
        return parse_key_set(issuer.jwks)
    if endorsements is None:
        raise MissingEndorsement("The key set of the token's issuer is not at hand.")
    wanted = Wanted("jwks", {"issuer": issuer.issuer})
    data = endorsements.fetch(wanted)
    keys = parse_key_set(data)
    known = kid is None or any(key.get("kid") == kid for key in keys)
    if known or not isinstance(endorsements, RenewableSource):
        return keys
    return parse_key_set(endorsements.fetch_newer(wanted, data))


def parse_key_set(data: bytes) -> list[Mapping[str, Any]]:
    """The keys of a set that are objects; nothing else of them is looked at.

    Raises:
        NotAuthentic: it is no key set, or one of no key, or of more than :data:`MAX_KEYS`.
    """
    try:
        keys = parse_json(data).get("keys")
    except ValueError:
        keys = None
    if not isinstance(keys, list) or not 0 < len(keys) <= MAX_KEYS:
        raise NotAuthentic("The key set of the token's issuer is not usable.")
    return [key for key in keys if isinstance(key, dict)]


def _import_key(algorithm: str, material: bytes | dict[str, Any]) -> Key:
    try:
        from joserfc.jwk import ECKey, RSAKey
    except ImportError:
        raise MissingExtra("Verifying a token", "attest") from None
    try:
        key: Key = (RSAKey if ALGORITHMS[algorithm][0] == "RSA" else ECKey).import_key(material)
        key.public_key  # noqa: B018 - members are looked at here, and not before
    except Exception:
        # joserfc raises errors of many kinds for what is no key, and none of them says more.
        raise NotAuthentic("The key of the token's issuer is not usable.") from None
    _check_size(key.public_key, algorithm)
    return key


def _check_size(public: object, algorithm: str) -> None:
    """A chain may lead to a key of any size and curve."""
    if isinstance(public, rsa.RSAPublicKey):
        fits = public.key_size >= MIN_RSA_BITS
    else:
        fits = (
            isinstance(public, ec.EllipticCurvePublicKey)
            and public.curve.name == _CURVES[ALGORITHMS[algorithm][1]]
        )
    if not fits:
        raise NotAuthentic("The key of the token's issuer does not fit the algorithm, or is too short.")
