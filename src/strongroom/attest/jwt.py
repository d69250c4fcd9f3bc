"""Passports: tokens in which another verifier says what it found.

The data is one compact JWS, or NVIDIA's detached form ``[["JWT", overall], {"GPU-0": token, …}]``, whose
overall token has the SHA-256 of every other one. Issuers are those of ``context.roots.issuers`` and
nobody else: Google Confidential Space, Azure Attestation, Intel Trust Authority, NVIDIA's NRAS, a
Trustee of one's own are all only configuration. What they say goes into the claim ``claims`` as it
stands; what they say against a machine that policies must not overlook (debug, a verdict of "no")
becomes ``debug`` and ``faults`` here.

A token is bound by ``eat_nonce``: base64url (43 characters) or hexadecimal (64) of 32 bytes. Of a list,
the first such one counts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.jws import Token, verify_token
from strongroom.attest.verify import Context
from strongroom.errors import MalformedEvidence, NotAuthentic
from strongroom.format.encoding import parse_json, unb64url_text

__all__ = ["MAX_SUBMODULES", "verify"]

MAX_SUBMODULES: Final = 16

_NONCE_SIZE: Final = 32
_MAX_NONCES: Final = 16
_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")
_NOT_DEBUGGED: Final = frozenset(
    {
        "disabled",
        "disabled-since-boot",
        "disabled-permanently",
        "disabled-fully-and-permanently",
        *(1, 2, 3, 4),
    }
)
"""What RFC 9711 lets ``dbgstat`` say besides "enabled", which is 0."""

_DEBUGGABLE: Final = re.compile(
    r"(.*[_-])?is[_-]debuggable|(tdx_)?td_attributes_debug|policy_debug_allowed"
)
"""``x-ms-sevsnpvm-is-debuggable``, ``tdx_is_debuggable``, and what Trustee takes from SNP reports."""

_SGX_DEBUG: Final = 0x02


def verify(evidence: Evidence, context: Context) -> Claims:
    """Verify a token of an issuer that is believed.

    Raises:
        MalformedEvidence: it is in neither form.
        NotAuthentic: issuer, audience, algorithm, key, signature or a date speaks against it, or parts
            of a detached form do not belong together.
        MissingEndorsement: the issuer's key set is not at hand.
        Unavailable: it could not be fetched.
    """
    if evidence.data.lstrip()[:1] == b"[":
        overall, parts = _verify_detached(evidence.data, context)
        profile = "nras"
    else:
        overall, parts = _verify_one(evidence.data.strip(), context), {}
        said = overall.claims.get("eat_profile")
        profile = said if isinstance(said, str) else "jwt"
    claims = overall.claims
    every = {"": claims} | {name: part.claims for name, part in parts.items()}
    values: dict[str, Any] = {"issuer": overall.issuer.issuer, "profile": profile, "claims": claims}
    if parts:
        values["submodules"] = {name: part.claims for name, part in parts.items()}
    bound = _bound(claims.get("eat_nonce"))
    faults = [fault for one in every.values() for fault in _faults(one)]
    if not bound:
        faults.append("The token is bound to nothing: it has no eat_nonce of 32 bytes.")
    return Claims(
        kind="jwt",
        values=values,
        bound=bound,
        debug=any(_debugged(one) for one in every.values()),
        platform=_platform(overall, parts),
        not_after=min(token.not_after for token in (overall, *parts.values())),
        test_root=context.roots.test,
        faults=faults,
    )


def _verify_one(token: bytes, context: Context) -> Token:
    return verify_token(token, context.roots.issuers, context.now, context.endorsements)


def _verify_detached(data: bytes, context: Context) -> tuple[Token, dict[str, Token]]:
    try:
        # The strict parser takes objects only.
        ((_, ((kind, overall_text), texts)),) = parse_json(b'{"token":%s}' % data).items()
        if kind != "JWT" or not isinstance(texts, dict) or not 0 < len(texts) <= MAX_SUBMODULES:
            raise ValueError
        raw = {str(name): text.encode("ascii") for name, text in texts.items()}
        overall_raw = overall_text.encode("ascii")
    except (ValueError, TypeError, AttributeError):
        raise MalformedEvidence("This is neither a token nor a detached set of tokens.") from None
    overall = _verify_one(overall_raw, context)
    if not _lists(overall.claims.get("submods"), raw):
        raise NotAuthentic("The parts of the token are not those of which it has digests.")
    parts = {name: _verify_one(token, context) for name, token in raw.items()}
    nonces = {json.dumps(token.claims.get("eat_nonce")) for token in (overall, *parts.values())}
    issuers = {token.issuer.issuer for token in (overall, *parts.values())}
    if len(nonces) != 1 or len(issuers) != 1:
        raise NotAuthentic("The parts of the token are not bound to one nonce, or of several issuers.")
    return overall, parts


def _lists(submodules: object, tokens: Mapping[str, bytes]) -> bool:
    """The overall token names just these, each by its SHA-256."""
    if not isinstance(submodules, dict) or set(submodules) != set(tokens):
        return False
    for name, token in tokens.items():
        digest = hashlib.sha256(token).hexdigest()
        # NRAS writes one, the local verifier the other.
        if submodules[name] not in [["DIGEST", [how, digest]] for how in ("SHA-256", "SHA256")]:
            return False
    return True


def _bound(nonce: object) -> bytes:
    """The 32 bytes, or none."""
    found = nonce if isinstance(nonce, list) else [nonce]
    for text in found[:_MAX_NONCES]:
        if not isinstance(text, str):
            continue
        if _HEX.fullmatch(text):
            return bytes.fromhex(text)
        if len(text) == 43:
            try:
                return unb64url_text(text)
            except ValueError:
                continue
    return b""


def _members(value: object) -> Iterator[tuple[str, object]]:
    """Every named member, at any depth."""
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield name, member
            yield from _members(member)
    elif isinstance(value, list):
        for member in value:
            yield from _members(member)


def _debugged(claims: Mapping[str, Any]) -> bool:
    return any(_says_debug(name, value) for name, value in _members(claims))


def _says_debug(name: str, value: object) -> bool:
    """Anything but a plain "no" is a yes."""
    if name == "dbgstat":
        return type(value) not in {str, int} or value not in _NOT_DEBUGGED
    if name == "td_attributes" and isinstance(value, Mapping):
        return value.get("debug", False) is not False
    if name == "attributes.flags":
        try:
            return bool(bytes.fromhex(str(value))[0] & _SGX_DEBUG)
        except (ValueError, IndexError):
            return True
    return bool(_DEBUGGABLE.fullmatch(name)) and value not in (False, 0)


def _faults(claims: Mapping[str, Any]) -> list[str]:
    """Verdicts of "no": a passport that says so opens nothing."""
    found = []
    for name, value in _members(claims):
        if name == "x-nvidia-overall-att-result" and value is not True:
            found.append("The issuer did not find the GPUs to be in order.")
        elif name == "measres" and value not in ("success", None):
            found.append("The issuer found other measurements of a GPU than it expects.")
        elif name == "ear.status" and value in ("contraindicated", 96):
            found.append("The issuer found the machine to be contraindicated.")
    return found


def _platform(overall: Token, parts: Mapping[str, Token]) -> str | None:
    """What the issuer calls the machine, where it calls it something."""
    if parts:
        # The subject of NRAS is the same for all the world.
        found = [part.claims.get("ueid") for part in parts.values()]
    else:
        found = [overall.claims.get("sub")]
    if not all(isinstance(name, str) and name for name in found):
        return None
    named = [overall.issuer.issuer, *sorted(map(str, found))]
    return "jwt:" + hashlib.sha256("\x00".join(named).encode()).hexdigest()
