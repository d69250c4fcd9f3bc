"""TPM 2.0: what a machine has started, quoted by a key that never leaves its TPM.

Whoever likes can make a key in software, and sign "quotes" of any PCRs with it. So a quote is worth
what is known of its key, and one of these must be so:

* the policy lists the key, ``ak:…``, after an enrolment (:mod:`.tpm_credential`) or because the owner has
  read it from the machine himself;
* a certificate of the key leads to a CA in ``roots.tpm``: the claim ``ak_certified``. That says "some
  TPM of this maker or cloud", and never which: list platforms besides, where it matters.

Run against swtpm and a quote recorded with it, and evidence of Confidential Containers; not against a
TPM in hardware, nor with the certificates of a cloud.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.tpm_certificates import (
    AK_USE,
    Chain,
    certificate_of,
    chain_of,
    parse_certificates,
)
from strongroom.attest.tpm_evidence import TpmEvidence
from strongroom.attest.tpm_keys import fingerprint
from strongroom.attest.verify import Context
from strongroom.errors import MalformedEvidence, NotAuthentic

__all__ = ["describe", "verify"]

_NO_END: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280, 4.1.2.5: no end is known. A key that a policy lists needs no certificate."""


def verify(evidence: Evidence, context: Context) -> Claims:
    """The claims of a quote; see :func:`.verify.verify`.

    ==================== =========================================================================
    claim                what
    ==================== =========================================================================
    ak                   SHA-256 of the attestation key's SubjectPublicKeyInfo; ``platform`` too
    ak_name              the TPM's name of the key; not in the spelling of Confidential Containers
    ak_certified         a certificate of the key leads to a root
    pcr                  index → value, only of what was quoted
    pcr_bank             sha256, sha384 or sha512
    firmware_version     of the TPM, 8 bytes
    clock                milliseconds, resets, restarts, safe
    ==================== =========================================================================

    ``bound`` is the qualifying data as it stands in the quote; Confidential Containers pad theirs to 64
    bytes. Endorsements are the certificate of the attestation key and those above it.

    Raises:
        MalformedEvidence: it is no such evidence, or quotes several banks.
        NotAuthentic: the key has not signed it, is no attestation key, the PCRs are others, or the
            certificate of the key leads to a root and does not hold.
    """
    parts = TpmEvidence.parse(evidence.data)
    if parts.public is not None:
        parts.public.check_attestation_key()
        if (parts.signature.scheme, parts.signature.hash_name) != (
            parts.public.scheme,
            parts.public.scheme_hash,
        ):
            raise NotAuthentic("The quote is signed in another way than its key says.")
    parts.signature.verify(parts.key, parts.message)
    parts.attest.check_pcrs(parts.pcrs, parts.signature.hash_name)
    chain = _chain(evidence, parts, context)
    ak = fingerprint(parts.key)
    return Claims(
        "tpm",
        {"ak": ak, "ak_certified": chain is not None, **_values(parts)},
        parts.attest.extra_data,
        debug=False,
        platform=f"ak:{ak}",
        not_after=_NO_END if chain is None else chain.not_after,
        test_root=context.roots.test,
    )


def describe(evidence: Evidence) -> dict[str, Any]:
    """What a quote says, for people; nothing of it is verified.

    Raises:
        MalformedEvidence: it is no such evidence.
    """
    parts = TpmEvidence.parse(evidence.data)
    report_data = parts.attest.extra_data.hex()
    return {"ak": fingerprint(parts.key), **_values(parts), "report_data": report_data}


def _values(parts: TpmEvidence) -> dict[str, Any]:
    if len(parts.pcrs) != 1:
        raise MalformedEvidence("The TPM quotes PCRs of several banks; one is expected.")
    ((bank, values),) = parts.pcrs.items()
    named = {} if parts.public is None else {"ak_name": parts.public.name.hex()}
    pcr = {str(index): value.hex() for index, value in sorted(values.items())}
    return {**named, "pcr": pcr, "pcr_bank": bank, **parts.attest.values()}


def _chain(evidence: Evidence, parts: TpmEvidence, context: Context) -> Chain | None:
    if not evidence.endorsements or not context.roots.tpm:
        return None
    certificates = parse_certificates(evidence.endorsements)
    leaf = certificate_of(parts.key, certificates)
    return None if leaf is None else chain_of(leaf, certificates, context, AK_USE)
