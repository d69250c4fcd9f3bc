"""Whom a verifier believes: the vendors' roots, or roots for tests, which are never both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

__all__ = ["Issuer", "Roots", "production"]


@dataclass(frozen=True, slots=True)
class Issuer:
    """Somebody whose tokens are believed.

    Attributes:
        issuer: the ``iss`` member, exactly.
        jwks: key set as JSON, or None to ask the endorsement source for it.
        root: PEM of the root to which the ``x5c`` chain of a token must lead, instead of a key set.
        algorithms: that are accepted.
        audience: the ``aud`` member that a token must have; empty for an issuer whose tokens have none,
            such as NRAS and Trustee.
    """

    issuer: str
    audience: str
    jwks: bytes | None = None
    root: bytes | None = None
    algorithms: Sequence[str] = ("RS256", "ES256", "ES384", "PS256")


@dataclass(frozen=True, slots=True)
class Roots:
    """Certificates in PEM, by vendor.

    Attributes:
        intel: SGX root CA, for SGX and TDX.
        amd: product (Milan, Genoa, Turin) → ARK.
        nitro: AWS Nitro Enclaves root.
        nvidia_device: NVIDIA device identity CA.
        nvidia_rim: NVIDIA CoRIM signing root.
        tpm: CAs of endorsement keys, that the owner believes; none by default.
        issuers: of tokens; none by default.
        test: these are roots for tests. Every claim says so, and a store that has production
            keys does not take it.
    """

    intel: bytes
    amd: Mapping[str, bytes]
    nitro: bytes
    nvidia_device: bytes
    nvidia_rim: bytes
    tpm: Sequence[bytes] = ()
    issuers: Sequence[Issuer] = field(default=())
    test: bool = False


@cache
def production() -> Roots:
    """The vendors' own roots, as shipped with this release; see ``data/roots/README`` for their sources."""
    place = files("strongroom.attest") / "data" / "roots"

    def read(name: str) -> bytes:
        return (place / name).read_bytes()

    return Roots(
        intel=read("intel_sgx_root.pem"),
        amd={
            product: read(f"amd_{product.lower()}_ark.pem") for product in ("Milan", "Genoa", "Turin")
        },
        nitro=read("aws_nitro_root.pem"),
        nvidia_device=read("nvidia_device_root.pem"),
        nvidia_rim=read("nvidia_rim_root.pem"),
    )
