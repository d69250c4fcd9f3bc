"""Enrolment of TPMs, in two steps with nothing kept in between: see :mod:`strongroom.attest.tpm_credential`.

The secret in a credential is a MAC, by a key that all replicas share, of what would be enrolled. Whoever
brings it back along with what it is of has had a TPM open the credential, and any replica can tell.
It can be brought again until it expires, and says the same again.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import Roots
from strongroom.attest.tpm_credential import SECRET_SIZE, vouched
from strongroom.attest.verify import Context
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import EvidenceError, NotAuthentic
from strongroom.format.encoding import b64url, canonical_json, parse_json
from strongroom.release.messages import parse_time, time_text

__all__ = ["Enrolled", "Enrolments", "Question"]

_DOMAIN: Final = b"strongroom/v1/enrolment\x00"
_SECONDS: Final = timedelta(minutes=5)
"""A TPM in hardware can take a minute to make an endorsement key of RSA anew."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A key that lies in a TPM whose maker vouches for it.

    Attributes:
        platform: ``ak:…``, as policies list it.
        ak_name: the TPM's name of the key, hexadecimal.
        ek: SHA-256 of the endorsement key's SubjectPublicKeyInfo.
    """

    platform: str
    ak_name: str
    ek: str


@dataclass(frozen=True, slots=True)
class Question:
    """What a machine is asked.

    Attributes:
        of: what is enrolled if it answers.
        enrolment: to be brought back with the answer.
        credential: for its TPM.
        expires: until when it may answer.
    """

    of: Enrolled
    enrolment: bytes
    credential: bytes
    expires: datetime


class Enrolments:
    """Asks TPMs, and checks what they answer.

    Args:
        key: of the MAC; the same in all replicas.
        server_id: an answer for another server is refused.
        roots: ``tpm`` are the CAs of endorsement keys that are believed.
        random: gives so many random bytes.
    """

    def __init__(
        self,
        key: SecretBytes,
        server_id: str,
        roots: Roots,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._key = key
        self._server_id = server_id
        self._roots = roots
        self._random = random

    def _secret(self, enrolment: bytes) -> bytes:
        message = _DOMAIN + self._server_id.encode() + b"\x00" + enrolment
        return hmac.digest(self._key.buffer, message, "sha256")[:SECRET_SIZE]

    def begin(self, evidence: Evidence, now: datetime) -> Question:
        """Ask whether the attestation key of ``evidence`` lies in the TPM that it brings a certificate of.

        Args:
            evidence: of a TPM, with the certificate of its endorsement key; certificates above it are
                its endorsements. Its quote need not be fresh.
            now: with a time zone.

        Raises:
            EvidenceError: as :func:`~strongroom.attest.tpm_credential.vouched`, or it is of another kind.
        """
        if evidence.kind != "tpm":
            raise EvidenceError("Only TPMs are enrolled: send evidence of the kind tpm.")
        found = vouched(evidence, Context(now, self._roots))
        of = Enrolled(found.platform, found.ak_name, found.ek)
        expires = now.replace(microsecond=0) + _SECONDS
        enrolment = canonical_json(
            {
                "platform": of.platform,
                "ak_name": of.ak_name,
                "ek": of.ek,
                "expires": time_text(expires),
                "random": b64url(self._random(16)),
            }
        )
        return Question(of, enrolment, found.credential(self._secret(enrolment)), expires)

    def finish(self, enrolment: bytes, answer: bytes, now: datetime) -> Enrolled:
        """What is enrolled, once its TPM has answered.

        Args:
            enrolment: of the question.
            answer: what the machine has got out of the credential.
            now: with a time zone.

        Raises:
            NotAuthentic: the answer is another, or comes too late.
        """
        if not hmac.compare_digest(answer, self._secret(enrolment)):
            raise NotAuthentic(
                "The TPM has not opened the credential: the key is not in it, or another server asked."
            )
        members = parse_json(enrolment)  # our own, since the MAC is
        if now >= parse_time(members["expires"], "The end of the enrolment"):
            raise NotAuthentic("The TPM has answered too late.", hint="Begin anew.")
        return Enrolled(members["platform"], members["ak_name"], members["ek"])
