"""Is the evidence authentic? One function per kind of evidence; clock, roots and endorsements are arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.limits import MAX_ENDORSEMENTS, MAX_EVIDENCE
from strongroom.errors import MalformedEvidence

if TYPE_CHECKING:
    from strongroom.attest.endorsements import EndorsementSource
    from strongroom.attest.roots import Roots

__all__ = ["Context", "Verifier", "verify"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a verification depends on besides the evidence.

    Attributes:
        now: with a time zone; the moment for which everything must be valid.
        roots: whom to believe.
        endorsements: where to ask for what the evidence does not bring; None asks nobody.
    """

    now: datetime
    roots: Roots
    endorsements: EndorsementSource | None = None


Verifier = Callable[[Evidence, Context], Claims]
"""Raises an EvidenceError, or Unavailable where an endorsement could not be fetched."""


def verify(evidence: Evidence, context: Context) -> Claims:
    """What ``evidence`` says, once it is known to be authentic.

    Signatures, chains up to a root of ``context``, validity at ``context.now``, revocation. Neither
    the measurements nor what it is bound to are compared with anything: that is for
    :mod:`strongroom.attest.appraise` and for whoever gave the challenge.

    Raises:
        MalformedEvidence: it is not what its kind says.
        NotAuthentic: a signature, a chain, a date or a revocation list speaks against it.
        MissingEndorsement: what would vouch for it is not at hand.
        Unavailable: an endorsement source does not answer.
        MissingExtra: the packages for this kind are not installed.
    """
    from strongroom.attest.registry import verifier_of

    _check_sizes(evidence.data, evidence.endorsements)
    return verifier_of(evidence.kind)(evidence, context)


def _check_sizes(data: bytes, endorsements: Sequence[bytes]) -> None:
    if not data:
        raise MalformedEvidence("The evidence is empty.")
    if len(data) > MAX_EVIDENCE:
        raise MalformedEvidence(f"Evidence has more than {MAX_EVIDENCE} bytes.")
    if sum(map(len, endorsements)) > MAX_ENDORSEMENTS:
        raise MalformedEvidence(f"Endorsements have more than {MAX_ENDORSEMENTS} bytes.")
