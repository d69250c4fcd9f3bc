"""Endorsements from a caching proxy that nobody has to trust."""

from __future__ import annotations

from typing import Final

from strongroom.attest.endorsements import Wanted
from strongroom.attest.sources.naming import path_of
from strongroom.attest.sources.web import Web, check_url
from strongroom.errors import MissingEndorsement

__all__ = ["HttpSource"]

_SIGNED_BY_NOBODY: Final = frozenset({"jwks"})


class HttpSource:
    """``GET URL/what/name``, with the names of :func:`~.naming.path_of`: a directory behind a web server.

    What it answers is authenticated by the verifier. Key sets are not signed, and never asked of it.

    Args:
        url: http or https.
        web: the client.

    Raises:
        UsageError: it is no such URL.
    """

    def __init__(self, url: str, web: Web | None = None) -> None:
        self._url = check_url(url)
        self._web = web or Web()

    def fetch(self, wanted: Wanted) -> bytes:
        """The endorsement; see :class:`~strongroom.attest.endorsements.EndorsementSource`.

        Raises:
            MissingEndorsement: the proxy does not have it, or it is a key set.
            Unavailable: it did not answer.
        """
        if wanted.what in _SIGNED_BY_NOBODY:
            raise MissingEndorsement("A key set is not taken from a proxy: nobody signs it.")
        path = path_of(wanted)
        # A percent sign in the name of a file is a percent sign of the path, not an escape.
        return self._web.get(f"{self._url}/{path.replace('%', '%25')}").body
