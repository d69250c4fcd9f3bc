"""Where endorsements come from: what vouches for the keys behind evidence.

A source is asked by kind and members; whatever it answers is authenticated by the verifier, so that a
cache in between needs no trust. What can be revoked it is asked for first, even if the evidence brought it
along: that may be of last month.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

__all__ = ["EndorsementSource", "RenewableSource", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One endorsement.

    ============== ===================================== =========================================
    what           members                               the answer
    ============== ===================================== =========================================
    intel          tee (sgx, tdx), fmspc, ca             collateral as JSON (QuoteCollateralV3)
    amd-vcek       product, hwid, bl, tee, snp, ucode;   DER
                   of Turin fmc too
    amd-chain      product, signer (vcek, vlek)          PEM: ASK or ASVK, then ARK
    amd-crl        product, signer                       DER
    nvidia-rim     id                                    the RIM, XML
    nvidia-ocsp    request (hex)                         OCSP response, DER
    jwks           issuer                                JSON
    ============== ===================================== =========================================
    """

    what: str
    members: Mapping[str, str] = field(default_factory=dict)


class EndorsementSource(Protocol):
    """Answers with bytes that nobody has authenticated yet."""

    def fetch(self, wanted: Wanted) -> bytes:
        """The endorsement.

        Raises:
            MissingEndorsement: this source does not have it.
            Unavailable: it did not answer.
        """
        ...


@runtime_checkable
class RenewableSource(EndorsementSource, Protocol):
    """A source that can be told that what it gave does not do any more."""

    def fetch_newer(self, wanted: Wanted, old: bytes) -> bytes:
        """What has taken the place of ``old``.

        ``old`` itself, where nothing has, where nothing new can be had, and where that was tried a
        moment ago: whoever makes evidence can make a verifier ask.
        """
        ...
