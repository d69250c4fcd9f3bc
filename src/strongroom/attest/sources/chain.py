"""Several sources: the first that has an endorsement gives it."""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.attest.endorsements import EndorsementSource, RenewableSource, Wanted
from strongroom.errors import MissingEndorsement, Unavailable

__all__ = ["ChainSource"]


class ChainSource:
    """Sources in order. One that does not answer now does not stop the next from being asked."""

    def __init__(self, sources: Sequence[EndorsementSource]) -> None:
        self._sources = tuple(sources)

    def fetch_newer(self, wanted: Wanted, old: bytes) -> bytes:
        """See :class:`~strongroom.attest.endorsements.RenewableSource`; of the first source that has it."""
        for source in self._sources:
            try:
                current = source.fetch(wanted)
            except (MissingEndorsement, Unavailable):
                continue
            if current == old and isinstance(source, RenewableSource):
                return source.fetch_newer(wanted, old)
            return current
        return old

    def fetch(self, wanted: Wanted) -> bytes:
        """The endorsement; see :class:`~strongroom.attest.endorsements.EndorsementSource`.

        Raises:
            Unavailable: nobody has it, and one did not answer.
            MissingEndorsement: nobody has it.
        """
        unavailable: Unavailable | None = None
        for source in self._sources:
            try:
                return source.fetch(wanted)
            except MissingEndorsement:
                continue
            except Unavailable as error:
                unavailable = unavailable or error
        if unavailable is not None:
            raise unavailable
        raise MissingEndorsement(
            f"No source of endorsements has this one, of the kind {wanted.what}.",
            hint="Send it along with the evidence, or configure another source.",
        )
