"""Chains that evidence brings along: leaf first, each issued by the next, with or without the root."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from strongroom.attest.certificates import check_chain, load_certificate
from strongroom.errors import MalformedEvidence

__all__ = ["chain_to"]


def chain_to(
    certificates: Sequence[x509.Certificate],
    root: bytes,
    now: datetime,
    *,
    known: frozenset[x509.ObjectIdentifier] = frozenset(),
) -> tuple[list[x509.Certificate], datetime]:
    """The verified chain, leaf first and the pinned root last, and until when all of it holds.

    Args:
        certificates: as brought along; a root among them is not believed, but compared.
        root: what is believed, PEM or DER.
        now: the moment at which everything must be valid.
        known: critical extensions of the leaf that the caller looks at.

    Raises:
        MalformedEvidence: there is none.
        NotAuthentic: they do not lead to the root.
    """
    if not certificates:
        raise MalformedEvidence("The evidence brings no certificate.")
    pinned = load_certificate(root)
    leaf, *above = certificates
    if above and above[-1] == pinned:
        above.pop()
    until = check_chain(leaf, above, pinned, now, known=known)
    return [leaf, *above, pinned], until
