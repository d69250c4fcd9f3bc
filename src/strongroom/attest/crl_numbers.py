"""Numbers of revocation lists: they rise, and so tell an old list that is brought back from the newest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cryptography import x509

from strongroom.attest.certificate_parsing import UNREADABLE, extensions_of, quiet
from strongroom.errors import NotAuthentic

__all__ = ["crl_numbers"]

_BITS: Final = 160
"""Of a number, by RFC 5280."""

_NAME: Final = 240
"""Characters that are kept of an issuer's name."""


def crl_numbers(crls: Iterable[x509.CertificateRevocationList], *, test_root: bool) -> dict[str, int]:
    """Who issued them → their numbers; a list that has no number is older than any that has one.

    Args:
        crls: authentic ones.
        test_root: under a root that is for tests: its issuers are not mixed up with those whose names
            they may bear.

    Raises:
        NotAuthentic: a list does not say its number in a way that can be read.
    """
    found: dict[str, int] = {}
    for crl in crls:
        issuer, number = _issuer(crl), _number(crl)
        issuer = f"{'test: ' if test_root else ''}{issuer}"
        found[issuer] = min(number, found.get(issuer, number))
    return found


def _issuer(crl: x509.CertificateRevocationList) -> str:
    """The issuer, by name and key: two with one name are two."""
    with quiet():
        name = crl.issuer.rfc4514_string()[:_NAME]
    try:
        extension = extensions_of(crl).get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return name
    except UNREADABLE:
        raise NotAuthentic(f"The revocation list of {name} does not say whose it is.") from None
    return f"{name} {(extension.value.key_identifier or b'')[:20].hex()}".rstrip()


def _number(crl: x509.CertificateRevocationList) -> int:
    try:
        number = extensions_of(crl).get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0
    except UNREADABLE:
        number = -1
    if number < 0 or number.bit_length() > _BITS:
        raise NotAuthentic("The number of a revocation list cannot be read.")
    return number
