"""A confidential virtual machine like Azure's, without one: a virtual TPM that a synthetic processor vouches for.

It verifies under the test root of that processor only, with the real verifier. It is for tests and
demonstrations.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import Roots
from strongroom.format.encoding import b64url
from strongroom.testing.amd import SnpPki
from strongroom.testing.intel import IntelPki

__all__ = ["AzureMachine"]

_PCRS: Final = 24
_REPORT_ROOM: Final = 1184


@dataclass(frozen=True)
class AzureMachine:
    """One virtual machine; with an ``IntelPki`` it has TDX, with an ``SnpPki`` SEV-SNP.

    Attributes:
        pki: of its processor.
        key: of its virtual TPM.
        pcrs: index → 32 bytes, those that are not zero.
        parts: of the processor's report or quote, as for :meth:`.SnpPki.report` or
            :meth:`.IntelPki.tdx_quote`.
    """

    pki: SnpPki | IntelPki
    key: rsa.RSAPrivateKey
    pcrs: Mapping[int, bytes]
    parts: Mapping[str, Any]

    @classmethod
    def create(
        cls, pki: SnpPki | IntelPki, *, pcrs: Mapping[int, bytes] | None = None, **parts: Any
    ) -> AzureMachine:
        """A machine with a new TPM.

        Args:
            pki: of its processor.
            pcrs: index → 32 bytes.
            parts: of the processor's report or quote.
        """
        return cls(pki, rsa.generate_private_key(65537, 2048), pcrs or {}, parts)

    def roots(self, base: Roots) -> Roots:
        """``base`` with the test root of the processor."""
        return self.pki.roots(base)

    def runtime(self, **changes: Any) -> bytes:
        """The document with the TPM's key, of which the processor's report has the hash."""
        numbers = self.key.public_key().public_numbers()
        key = {
            "kid": "HCLAkPub",
            "key_ops": ["sign"],
            "kty": "RSA",
            "e": "AQAB",
            "n": b64url(numbers.n.to_bytes(256, "big")),
        }
        configuration = {
            "console-enabled": False,
            "secure-boot": True,
            "tpm-enabled": True,
            "vmUniqueId": "00000000-0000-0000-0000-000000000000",
        }
        members = {
            "keys": [key],
            "vm-configuration": configuration,
            "user-data": "00" * 64,
            **changes,
        }
        return json.dumps(members, separators=(",", ":")).encode()

    def hcl_report(self, runtime: bytes, report: bytes, *, algorithm: int = 1) -> bytes:
        """The content of the NV index: the processor's report, and the document."""
        kind = 2 if isinstance(self.pki, SnpPki) else 4
        size = 20 + len(runtime)
        data = struct.pack("<5I", size, 1, kind, algorithm, len(runtime)) + runtime
        header = struct.pack("<4s3I", b"HCLA", 1, 0x20 + _REPORT_ROOM + size, 2).ljust(0x20, b"\0")
        return (header + report.ljust(_REPORT_ROOM, b"\0") + data).ljust(2600, b"\0")

    def quote(
        self, nonce: bytes, *, indices: tuple[int, ...] = tuple(range(_PCRS))
    ) -> tuple[bytes, bytes]:
        """TPMS_ATTEST over some PCRs, and its signature."""
        bits = sum(1 << index for index in indices).to_bytes(3, "little")
        digest = hashlib.sha256(b"".join(self._pcr(index) for index in indices)).digest()
        message = b"".join(
            (
                struct.pack(">IHH", 0xFF544347, 0x8018, 34) + bytes(34),
                struct.pack(">H", len(nonce)) + nonce,
                struct.pack(">QIIB8s", 1000, 2, 0, 1, bytes.fromhex("2020031200120003")),
                struct.pack(">IHB", 1, 0x000B, 3) + bits,
                struct.pack(">H", 32) + digest,
            )
        )
        return message, self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())

    def _pcr(self, index: int) -> bytes:
        return self.pcrs.get(index, bytes(32))

    def evidence(
        self,
        nonce: bytes,
        *,
        indices: tuple[int, ...] = tuple(range(_PCRS)),
        runtime: bytes | None = None,
        report_data: bytes | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Evidence:
        """What the machine sends, in the form of Confidential Containers.

        Args:
            nonce: what the quote is bound to.
            indices: PCRs that are quoted.
            runtime: the document with the TPM's key, if it is another.
            report_data: of the processor's report; the hash of the document, if None.
            changes: member → value, put in at the end; None takes it out.
        """
        runtime = self.runtime() if runtime is None else runtime
        bound = hashlib.sha256(runtime).digest() if report_data is None else report_data
        message, signature = self.quote(nonce, indices=indices)
        members: dict[str, Any] = {
            "version": 2,
            "tpm_quote": {
                "message": message.hex(),
                "signature": signature.hex(),
                "pcrs": [self._pcr(index).hex() for index in range(_PCRS)],
            },
        }
        if isinstance(self.pki, SnpPki):
            report = self.pki.report(bound, **self.parts)
            members |= {
                "hcl_report": b64url(self.hcl_report(runtime, report)),
                "vcek": b64url(self.pki.key_der),
            }
            endorsements: tuple[bytes, ...] = (self.pki.chain_pem, self.pki.crl())
        else:
            td_quote = self.pki.tdx_quote(bound, **self.parts)
            members |= {
                "hcl_report": b64url(self.hcl_report(runtime, bytes(1024))),
                "td_quote": b64url(td_quote),
            }
            endorsements = (self.pki.collateral("tdx"),)
        members |= changes or {}
        kept = {name: value for name, value in members.items() if value is not None}
        return Evidence("azure-vtpm", json.dumps(kept).encode(), endorsements)

    def with_parts(self, **parts: Any) -> AzureMachine:
        """The same machine with another report of its processor."""
        return replace(self, parts={**self.parts, **parts})
