"""A PKI like Intel's under a root of its own: quotes of SGX and TDX in the real format, without hardware.

Whatever it makes verifies under its own root only, with the real verifier; whoever believes that root
believes anybody who has the keys. It is for tests and demonstrations, and says so wherever it can.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import Roots
from strongroom.errors import NotFound, os_errors
from strongroom.testing.intel_certificates import certificate, crl, pem, sgx_extension
from strongroom.testing.intel_quote import (
    QE_MR_SIGNER,
    raw_signature,
    sgx_body,
    sign_quote,
    td15_body,
    td_body,
)

__all__ = ["KEYS_FILE", "ROOT_FILE", "IntelPki"]

ROOT_FILE: Final = "TEST-ROOT-NOT-FOR-PRODUCTION.intel.pem"
KEYS_FILE: Final = "TEST-KEYS-NOT-FOR-PRODUCTION.intel.json"
_KEYS: Final = ("root", "ca", "tcb", "pck", "attestation")
_CERTIFICATES: Final = _KEYS[:-1]
_DAY: Final = timedelta(days=1)
_SVN: Final = 5
_PCE_SVN: Final = 11
_QE_SVN: Final = 8
_TDX_MODULE: Final = {
    "mrsigner": "00" * 48,
    "attributes": "00" * 8,
    "attributesMask": "FF" * 8,
}


@dataclass(frozen=True)
class IntelPki:
    """One platform, its CA and Intel's signing keys.

    Attributes:
        keys: root, ca, tcb, pck, attestation.
        certificates: root, ca, tcb, pck.
        now: when it was made; validity is counted from here where nothing else is said.
        fmspc: 6 bytes: model of the machine.
    """

    keys: dict[str, ec.EllipticCurvePrivateKey]
    certificates: dict[str, x509.Certificate]
    now: datetime
    fmspc: bytes

    @classmethod
    def create(
        cls,
        now: datetime,
        *,
        ca: str = "platform",
        ppid: bytes = bytes(range(16)),
        piid: bytes = bytes(range(16, 32)),
        fmspc: bytes = bytes.fromhex("50806f000000"),
        pck_days: int = 3650,
    ) -> IntelPki:
        """New keys, and certificates that hold from a day before ``now``.

        Args:
            now: with a time zone.
            ca: ``platform`` or ``processor``: the CA of the PCK certificate.
            ppid: identity of the processor, 16 bytes.
            piid: identity of the platform, 16 bytes.
            fmspc: model of the machine, 6 bytes.
            pck_days: how long the PCK certificate holds.
        """
        begin, end = now - _DAY, now + 3650 * _DAY
        keys = {key: ec.generate_private_key(ec.SECP256R1()) for key in _KEYS}
        root = certificate("TEST SGX Root CA", keys["root"], None, keys["root"], begin, end, ca=True)
        # The library tells the two CAs apart by these words.
        ca_name = f"TEST SGX PCK {ca.capitalize()} CA"
        issuing = certificate(ca_name, keys["ca"], root, keys["root"], begin, end, ca=True)
        tcb = certificate("TEST SGX TCB Signing", keys["tcb"], root, keys["root"], begin, end, ca=False)
        pki = cls(keys, {"root": root, "ca": issuing, "tcb": tcb}, now, fmspc)
        return pki.another(ppid=ppid, piid=piid, days=pck_days)

    def another(self, *, ppid: bytes, piid: bytes, days: int = 3650) -> IntelPki:
        """The same PKI with another machine of the same model.

        Args:
            ppid: identity of its processor, 16 bytes.
            piid: identity of the platform, 16 bytes.
            days: how long its PCK certificate holds.
        """
        keys = {**self.keys, "pck": ec.generate_private_key(ec.SECP256R1())}
        pck = certificate(
            "TEST SGX PCK Certificate",
            keys["pck"],
            self.certificates["ca"],
            keys["ca"],
            self.now - _DAY,
            self.now + days * _DAY,
            ca=False,
            extension=sgx_extension(ppid=ppid, piid=piid, fmspc=self.fmspc, svn=_SVN, pce_svn=_PCE_SVN),
        )
        return replace(self, keys=keys, certificates={**self.certificates, "pck": pck})

    @property
    def root_pem(self) -> bytes:
        """The root, for whoever shall believe it."""
        return pem(self.certificates["root"]).encode()

    def roots(self, base: Roots) -> Roots:
        """``base`` with this root in the place of Intel's, and marked as for tests."""
        return replace(base, intel=self.root_pem, test=True)

    def sgx_quote(
        self,
        report_data: bytes,
        *,
        mr_enclave: bytes = bytes(32),
        mr_signer: bytes = bytes(32),
        isv_prod_id: int = 0,
        isv_svn: int = 0,
        debug: bool = False,
        qe_svn: int = _QE_SVN,
    ) -> bytes:
        """A quote of version 3 by an enclave; report data are filled up with zeros."""
        flags = "07" if debug else "05"
        body = sgx_body(
            report_data.ljust(64, b"\0"),
            mr_enclave=mr_enclave,
            mr_signer=mr_signer,
            isv_prod_id=isv_prod_id,
            isv_svn=isv_svn,
            attributes=bytes.fromhex(flags + "00000000000000e700000000000000"),
        )
        return self._quote(body, tdx=False, qe_svn=qe_svn, version=3)

    def tdx_quote(
        self,
        report_data: bytes,
        *,
        debug: bool = False,
        qe_svn: int = _QE_SVN,
        version: int = 4,
        **parts: bytes,
    ) -> bytes:
        """A quote by a trust domain: version 4, or 5 with a report of version 1.5.

        ``parts`` are mr_td, rtmr0 to rtmr3, mr_config_id and so on, in bytes.
        """
        if debug:
            parts = {"td_attributes": bytes.fromhex("0100001000000000"), **parts}
        body = (td15_body if version == 5 else td_body)(report_data.ljust(64, b"\0"), parts)
        return self._quote(body, tdx=True, qe_svn=qe_svn, version=version)

    def _quote(self, body: bytes, *, tdx: bool, qe_svn: int, version: int) -> bytes:
        held = self.certificates
        chain = pem(held["pck"], held["ca"], held["root"]).encode()
        return sign_quote(
            body,
            tdx=tdx,
            attestation=self.keys["attestation"],
            pck=self.keys["pck"],
            chain=chain,
            qe_svn=qe_svn,
            version=version,
        )

    def evidence(self, kind: str, report_data: bytes, **parts: Any) -> Evidence:
        """A quote with its collateral: what a machine sends; ``parts`` as for the quote."""
        quote = self.tdx_quote if kind == "tdx" else self.sgx_quote
        return Evidence(kind, quote(report_data, **parts), (self.collateral(kind),))

    def collateral(
        self,
        kind: str,
        *,
        status: str = "UpToDate",
        advisories: Sequence[str] = (),
        qe_status: str = "UpToDate",
        issued: datetime | None = None,
        crl_issued: datetime | None = None,
        crl_number: int | None = 1,
        days: int = 30,
        revoked: Collection[str] = (),
        fmspc: bytes | None = None,
        tcb_eval: int = 20,
        tcb_date: str = "2024-03-13T00:00:00Z",
    ) -> bytes:
        """Intel's statements about this platform, as QuoteCollateralV3 in JSON.

        Args:
            kind: ``sgx`` or ``tdx``.
            status: of the platform's TCB level.
            advisories: of that level.
            qe_status: of the quoting enclave's level.
            issued: when TCB info and QE identity begin; an hour before this PKI was made, if None.
            crl_issued: when the CRLs begin; as ``issued``, if None.
            crl_number: of both CRLs; with None, they have none.
            days: how long they hold.
            revoked: which of pck, ca and tcb are on the CRL of their issuer.
            fmspc: that the TCB info is about; the platform's, if None.
            tcb_eval: number of the evaluation.
            tcb_date: of the platform's level.
        """
        begin = issued or self.now - timedelta(hours=1)
        listed = crl_issued or begin
        level = {"tcbDate": tcb_date, "tcbStatus": status, "advisoryIDs": list(advisories)}
        dates = {"issueDate": _text(begin), "nextUpdate": _text(begin + days * _DAY)}
        tcb_info = self._tcb_info(kind, level, dates, fmspc or self.fmspc, tcb_eval)
        identity = _qe_identity(kind, qe_status, dates, tcb_eval)
        held, keys = self.certificates, self.keys
        signers = pem(held["tcb"], held["root"])
        gone = {name: held[name] for name in revoked}
        gone_pck = [gone.pop("pck")] if "pck" in gone else []
        ends = listed + days * _DAY
        members = {
            "pck_crl_issuer_chain": pem(held["ca"], held["root"]),
            "root_ca_crl": crl(
                held["root"], keys["root"], listed, ends, gone.values(), crl_number
            ).hex(),
            "pck_crl": crl(held["ca"], keys["ca"], listed, ends, gone_pck, crl_number).hex(),
            "tcb_info_issuer_chain": signers,
            "tcb_info": tcb_info,
            "tcb_info_signature": raw_signature(keys["tcb"], tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": signers,
            "qe_identity": identity,
            "qe_identity_signature": raw_signature(keys["tcb"], identity.encode()).hex(),
        }
        return json.dumps(members).encode()

    def _tcb_info(
        self, kind: str, level: dict[str, Any], dates: dict[str, str], fmspc: bytes, tcb_eval: int
    ) -> str:
        tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": _SVN}] * 16, "pcesvn": _PCE_SVN}
        members: dict[str, Any] = {
            "id": kind.upper(),
            "version": 3,
            **dates,
            "fmspc": fmspc.hex().upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": tcb_eval,
        }
        if kind == "tdx":
            module_level = {"tcb": {"isvsvn": 5}, "tcbDate": level["tcbDate"], "tcbStatus": "UpToDate"}
            members["tdxModule"] = _TDX_MODULE
            members["tdxModuleIdentities"] = [
                {"id": "TDX_01", **_TDX_MODULE, "tcbLevels": [module_level]}
            ]
            tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in (5, 0, 2, *[0] * 13)]
        return _compact({**members, "tcbLevels": [{"tcb": tcb, **level}]})

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write keys and certificates to ``directory``, which is made, in files with loud names.

        Raises:
            AlreadyExists, StorageError: it cannot be written, or one is there already.
        """
        members = {
            "note": "KEYS OF A PKI FOR TESTS. Whoever believes its root believes anybody.",
            "now": self.now.isoformat(),
            "fmspc": self.fmspc.hex(),
            "keys": {key: _key_pem(value) for key, value in self.keys.items()},
            "certificates": {key: pem(value) for key, value in self.certificates.items()},
        }
        place = Path(directory)
        with os_errors(place / KEYS_FILE):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(place / KEYS_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(members, file, indent=1)
            (place / ROOT_FILE).write_bytes(self.root_pem)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> IntelPki:
        """Undo :meth:`save`.

        Raises:
            NotFound: nothing was saved there.
        """
        place = Path(directory) / KEYS_FILE
        with os_errors(place):
            try:
                members = json.loads(place.read_bytes())
                keys = {key: load_pem_private_key(members["keys"][key].encode(), None) for key in _KEYS}
                held = {
                    key: x509.load_pem_x509_certificate(members["certificates"][key].encode())
                    for key in _CERTIFICATES
                }
                now, fmspc = datetime.fromisoformat(members["now"]), bytes.fromhex(members["fmspc"])
            except (ValueError, KeyError, TypeError):
                raise NotFound(f"{place} is no saved PKI for tests.") from None
        return cls(keys, held, now, fmspc)  # type: ignore[arg-type]


def _qe_identity(kind: str, status: str, dates: dict[str, str], tcb_eval: int) -> str:
    level = {"tcb": {"isvsvn": _QE_SVN}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": status}
    return _compact(
        {
            "id": "TD_QE" if kind == "tdx" else "QE",
            "version": 2,
            **dates,
            "tcbEvaluationDataNumber": tcb_eval,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_MR_SIGNER.hex().upper(),
            "isvprodid": 2 if kind == "tdx" else 1,
            "tcbLevels": [level],
        }
    )


def _compact(members: dict[str, Any]) -> str:
    return json.dumps(members, separators=(",", ":"))


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
