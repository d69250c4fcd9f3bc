"""Intel's collateral: when what it is made of holds. Whether it is authentic is for the library to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from cryptography import x509

from strongroom.attest.certificate_parsing import UNREADABLE, load_certificates, load_crl, quiet
from strongroom.attest.crl_numbers import crl_numbers
from strongroom.attest.limits import MAX_ENDORSEMENTS
from strongroom.errors import MalformedEvidence, MissingEndorsement, MissingExtra, NotAuthentic
from strongroom.format.encoding import parse_json

__all__ = ["Collateral", "Span", "check_spans", "spans_of"]

_CHAINS: Final = {
    "pck_crl_issuer_chain": "issuer of PCK certificates",
    "tcb_info_issuer_chain": "issuer of the TCB info",
    "qe_identity_issuer_chain": "issuer of the QE identity",
}
_CRLS: Final = {"root_ca_crl": "CRL of the root", "pck_crl": "CRL of PCK certificates"}
_DOCUMENTS: Final = {"tcb_info": "TCB info", "qe_identity": "QE identity"}
_SIGNATURES: Final = ("tcb_info_signature", "qe_identity_signature")
_KEPT: Final = 16
"""Parsed collaterals that are kept: one for each model of machine and TEE, 20 KB each."""


@dataclass(frozen=True, slots=True)
class Span:
    """From when until when something holds.

    Attributes:
        what: for messages.
        begin: with a time zone, as ``end``.
        end: the first moment at which it does not.
        certified: false for the certificates of a chain behind its first one. What is sent along
            there may be anything, as the library goes by the pinned root: it must hold, and yet has
            no say in when the claims end.
    """

    what: str
    begin: datetime
    end: datetime
    certified: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Collateral:
    """What vouches for a quote: Intel's statements on TCB levels and revocation, and who signed them.

    Attributes:
        parsed: the library's ``QuoteCollateralV3``.
        spans: of every certificate, revocation list and statement in it.
        pck_crl: revocation list of PCK certificates.
        root_crl: revocation list of their CAs.
    """

    parsed: Any
    spans: Sequence[Span]
    pck_crl: x509.CertificateRevocationList
    root_crl: x509.CertificateRevocationList

    @classmethod
    def parse(cls, data: bytes) -> Collateral:
        """Parse the JSON form of QuoteCollateralV3: chains in PEM, CRLs and signatures in hexadecimal.

        Raises:
            MissingEndorsement: it is something else.
            MissingExtra: dcap-qvl is not installed.
        """
        if len(data) > MAX_ENDORSEMENTS:
            raise MissingEndorsement(f"Intel's collateral has more than {MAX_ENDORSEMENTS} bytes.")
        try:
            return _parse(bytes(data))
        except (*UNREADABLE, KeyError, MalformedEvidence) as error:
            # A KeyError says no more than the member's name.
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            reason = reason[:200].rstrip(".")
            raise MissingEndorsement(f"This is not Intel's collateral: {reason}.") from None

    def check_revoked(self, chain: Sequence[x509.Certificate]) -> None:
        """Name what is revoked; the library refuses it as well, without a word on the reason.

        Raises:
            NotAuthentic: a certificate of the platform's chain is.
        """
        with quiet():
            for index, one in enumerate(chain):
                self._check_revoked(one, ca=bool(index))

    def crl_numbers(self, *, test_root: bool) -> Mapping[str, int]:
        """See :func:`.crl_numbers.crl_numbers`; read once, since it takes 45 µs."""
        return dict(_crl_numbers(self, test_root))

    def _check_revoked(self, one: x509.Certificate, *, ca: bool) -> None:
        crl = self.root_crl if ca else self.pck_crl
        what = "CA of this platform's PCK certificate" if ca else "PCK certificate of this platform"
        try:
            entry = crl.get_revoked_certificate_by_serial_number(one.serial_number)
        except UNREADABLE:
            raise NotAuthentic(f"Whether the {what} is revoked cannot be read.") from None
        if entry is not None:
            raise NotAuthentic(f"The {what} is revoked.")


@lru_cache(_KEPT)
def _crl_numbers(collateral: Collateral, test_root: bool) -> Mapping[str, int]:
    return crl_numbers((collateral.pck_crl, collateral.root_crl), test_root=test_root)


@lru_cache(_KEPT)
def _parse(data: bytes) -> Collateral:
    members = parse_json(data)
    names = (*_CHAINS, *_CRLS, *_DOCUMENTS, *_SIGNATURES)
    texts = {name: members[name] for name in names}
    if wrong := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise ValueError(f"{wrong[0]} is no text")
    spans: list[Span] = []
    for name, what in _CHAINS.items():
        spans += spans_of(load_certificates(texts[name].encode()), what)
    raw = {name: bytes.fromhex(texts[name]) for name in _CRLS}
    crls = {name: load_crl(raw[name]) for name in _CRLS}
    for name, what in _CRLS.items():
        crl = crls[name]
        if crl.next_update_utc is None:
            raise ValueError(f"the {what} does not say until when it holds")
        spans.append(Span(what, crl.last_update_utc, crl.next_update_utc))
    for name, what in _DOCUMENTS.items():
        said = parse_json(texts[name].encode())
        spans.append(Span(what, _moment(said["issueDate"]), _moment(said["nextUpdate"])))
    return Collateral(_library_form(texts, raw), tuple(spans), crls["pck_crl"], crls["root_ca_crl"])


def _library_form(texts: dict[str, str], crls: dict[str, bytes]) -> Any:
    try:
        from dcap_qvl import QuoteCollateralV3
    except ImportError:
        raise MissingExtra("Verifying quotes of SGX and TDX", "attest") from None
    signatures = {name: bytes.fromhex(texts[name]) for name in _SIGNATURES}
    return QuoteCollateralV3(**{**texts, **crls, **signatures})


def _moment(text: object) -> datetime:
    moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    if moment is None or moment.tzinfo is None:
        raise ValueError("a date has no time zone")
    return moment.astimezone(UTC)


def spans_of(chain: Sequence[x509.Certificate], what: str) -> list[Span]:
    """When the certificates of a chain hold."""
    return [
        Span(f"certificate of the {what}", one.not_valid_before_utc, one.not_valid_after_utc, not index)
        for index, one in enumerate(chain)
    ]


def check_spans(spans: Sequence[Span], now: datetime) -> datetime:
    """The first end of the certified ``spans``; all of them hold now.

    Raises:
        NotAuthentic: one has ended or has not begun.
    """
    for span in spans:
        if now < span.begin:
            raise NotAuthentic(
                f"The {span.what} is from the future: it holds from {span.begin:%Y-%m-%dT%H:%M:%SZ} on.",
                hint="Check the clock of this machine.",
            )
        if now >= span.end:
            raise NotAuthentic(
                f"The {span.what} has expired: it held until {span.end:%Y-%m-%dT%H:%M:%SZ}.",
                hint="Fetch Intel's collateral again.",
            )
    return min(span.end for span in spans if span.certified)
