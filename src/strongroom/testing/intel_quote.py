"""Quotes of SGX and TDX in their real layouts, versions 3 to 5, signed by whoever is asked to."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = [
    "QE_MR_SIGNER",
    "raw_public",
    "raw_signature",
    "sgx_body",
    "sign_quote",
    "td15_body",
    "td_body",
]

QE_MR_SIGNER: Final = bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff")
_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_TD_PARTS: Final = {
    "tee_tcb_svn": 16,
    "mr_seam": 48,
    "mr_signer_seam": 48,
    "seam_attributes": 8,
    "td_attributes": 8,
    "xfam": 8,
    "mr_td": 48,
    "mr_config_id": 48,
    "mr_owner": 48,
    "mr_owner_config": 48,
    "rtmr0": 48,
    "rtmr1": 48,
    "rtmr2": 48,
    "rtmr3": 48,
}
_BODY_TYPES: Final = {584: 2, 648: 3}
_TD_USUAL: Final = {
    "tee_tcb_svn": bytes.fromhex("05010200000000000000000000000000"),
    # SEPT_VE_DISABLE, as in every trust domain of Linux.
    "td_attributes": bytes.fromhex("0000001000000000"),
    "xfam": bytes.fromhex("e702060000000000"),
}


def raw_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    """X ‖ y, 64 bytes."""
    public = key.public_key()
    return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """R ‖ s, 64 bytes."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def sgx_body(
    report_data: bytes,
    *,
    mr_enclave: bytes,
    mr_signer: bytes,
    isv_prod_id: int = 0,
    isv_svn: int = 0,
    attributes: bytes = bytes.fromhex("0500000000000000e700000000000000"),
    config_id: bytes = bytes(64),
) -> bytes:
    """An enclave's report, 384 bytes."""
    return b"".join(
        (
            bytes([5] * 16 + [0] * 32),
            _sized(attributes, 16, "attributes"),
            _sized(mr_enclave, 32, "mr_enclave"),
            bytes(32),
            _sized(mr_signer, 32, "mr_signer"),
            bytes(32),
            _sized(config_id, 64, "config_id"),
            struct.pack("<HH", isv_prod_id, isv_svn),
            bytes(60),
            _sized(report_data, 64, "report data"),
        )
    )


def td_body(report_data: bytes, parts: Mapping[str, bytes]) -> bytes:
    """A trust domain's report of version 1.0, 584 bytes; parts that are not given are zero or as usual."""
    if unknown := set(parts) - set(_TD_PARTS):
        raise ValueError(f"a trust domain's report has no {', '.join(sorted(unknown))}")
    body = b"".join(
        _sized(parts.get(name, _TD_USUAL.get(name, bytes(size))), size, name)
        for name, size in _TD_PARTS.items()
    )
    return body + _sized(report_data, 64, "report data")


def td15_body(report_data: bytes, parts: Mapping[str, bytes]) -> bytes:
    """A trust domain's report of version 1.5, 648 bytes: on a module that was not updated since."""
    body = td_body(report_data, parts)
    return body + body[:16] + bytes(48)


def _sized(value: bytes, size: int, name: str) -> bytes:
    if len(value) != size:
        raise ValueError(f"{name} has {len(value)} bytes, not {size}")
    return value


def sign_quote(
    body: bytes,
    *,
    tdx: bool,
    attestation: ec.EllipticCurvePrivateKey,
    pck: ec.EllipticCurvePrivateKey,
    chain: bytes,
    qe_svn: int,
    version: int,
) -> bytes:
    """The whole quote.

    Args:
        body: the report.
        tdx: a report of a trust domain; otherwise of an enclave.
        attestation: key of the quoting enclave.
        pck: key of the platform, that vouches for it.
        chain: PEM: of the PCK, its CA, the root.
        qe_svn: the version that the quoting enclave says to have.
        version: of the quote's format: 3 for SGX, 4 or 5 for TDX.
    """
    # In version 3 the place of the TEE type is reserved, and zero.
    signed = struct.pack("<HHIHH", version, 2, 0x81 if tdx else 0, qe_svn, 11) + _VENDOR + bytes(20)
    if version == 5:
        signed += struct.pack("<HI", _BODY_TYPES[len(body)], len(body))
    signed += body
    auth = bytes(range(32))
    public = raw_public(attestation)
    qe = sgx_body(
        hashlib.sha256(public + auth).digest() + bytes(32),
        mr_enclave=hashlib.sha256(b"quoting enclave").digest(),
        mr_signer=QE_MR_SIGNER,
        isv_prod_id=2 if tdx else 1,
        isv_svn=qe_svn,
        attributes=bytes.fromhex("1100000000000000e700000000000000"),
    )
    certified = qe + raw_signature(pck, qe) + struct.pack("<H", len(auth)) + auth
    certified += struct.pack("<HI", 5, len(chain)) + chain
    signature = raw_signature(attestation, signed) + public
    signature += certified if version == 3 else struct.pack("<HI", 6, len(certified)) + certified
    return signed + struct.pack("<I", len(signature)) + signature
