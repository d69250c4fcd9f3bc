"""Where a server takes endorsements from. Without a word of the owner it asks nobody.

============================ ===============================================================
``files:DIR``                a directory: :mod:`.files`
``proxy:URL``                an untrusted cache: :mod:`.proxy`
``vendor:intel``             Intel's service itself; so ``vendor:amd``, ``vendor:nvidia``
``vendor:intel=URL``         a mirror of it
``jwks:ISSUER``              the key set of an issuer, by discovery
``jwks:ISSUER=URL``          the same, from a URL
``jwks-file:ISSUER=PATH``    the same, from a file; the issuer is percent-encoded
``cache:DIR``                no source: where all processes find what the network has answered
============================ ===============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache as cache_result
from typing import Final
from urllib.parse import unquote

from strongroom.attest.endorsements import EndorsementSource
from strongroom.attest.sources.cache import CachingSource
from strongroom.attest.sources.chain import ChainSource
from strongroom.attest.sources.files import DirectorySource
from strongroom.attest.sources.key_sets import KeySetFile, KeySets
from strongroom.attest.sources.proxy import HttpSource
from strongroom.attest.sources.shared import SharedDirectory
from strongroom.attest.sources.vendor import AmdKds, IntelPcs, IssuerKeys, NvidiaServices
from strongroom.attest.sources.web import Web
from strongroom.errors import UsageError

__all__ = [
    "AmdKds",
    "CachingSource",
    "ChainSource",
    "DirectorySource",
    "HttpSource",
    "IntelPcs",
    "IssuerKeys",
    "KeySetFile",
    "KeySets",
    "NvidiaServices",
    "SharedDirectory",
    "endorsement_source",
]

_CACHE: Final = "cache:"


def endorsement_source(
    specs: Sequence[str],
    *,
    ca: bytes | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> EndorsementSource | None:
    """The sources that ``specs`` name, asked in their order; None without any.

    Args:
        specs: as in the table above.
        ca: PEM of authorities for TLS, instead of those of the system.
        clock: now, with a time zone.

    Raises:
        UsageError: a spec is none of these, there are several caches, or one is of no use.
    """
    caches = [spec.removeprefix(_CACHE) for spec in specs if spec.startswith(_CACHE)]
    specs = [spec for spec in specs if not spec.startswith(_CACHE)]
    if len(caches) > 1 or "" in caches:
        raise UsageError("There is one cache of endorsements at most.", hint="Write cache:DIR.")
    if not specs:
        return None
    shared = SharedDirectory(caches[0]) if caches else None
    # Made when one is needed: it reads the system's authorities.
    web = cache_result(lambda: Web(ca))
    sources: list[EndorsementSource] = []
    for spec in specs:
        source = _source(spec, web)
        if isinstance(source, IssuerKeys):
            source = KeySets(source, clock)
        elif not isinstance(source, DirectorySource | KeySetFile):
            source = CachingSource(source, clock=clock, shared=shared)
        sources.append(source)
    return sources[0] if len(sources) == 1 else ChainSource(sources)


def _source(spec: str, web: Callable[[], Web]) -> EndorsementSource:
    scheme, _, rest = spec.partition(":")
    if scheme == "files" and rest:
        return DirectorySource(rest)
    if scheme == "proxy" and rest:
        return HttpSource(rest, web())
    name, equals, url = rest.partition("=")
    if scheme == "jwks" and name:
        return IssuerKeys({name: url or None}, web())
    if scheme == "jwks-file" and name and url:
        return KeySetFile(unquote(name), url)
    if scheme == "vendor":
        if name == "intel":
            if equals:
                return IntelPcs(url, f"{url}/IntelSGXRootCA.der", web())
            return IntelPcs(web=web())
        if name == "amd":
            return AmdKds(url, web()) if equals else AmdKds(web=web())
        if name == "nvidia":
            if equals:
                return NvidiaServices(url, f"{url}/ocsp", web())
            return NvidiaServices(web=web())
    raise UsageError(
        f"{spec!r} is not a source of endorsements.",
        hint="files:DIR, proxy:URL, vendor:intel, vendor:amd, vendor:nvidia, jwks:ISSUER, cache:DIR",
    )
