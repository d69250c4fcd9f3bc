"""From the configuration to roots: whom this server believes about machines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from strongroom.attest.jws_keys import parse_key_set
from strongroom.attest.roots import Issuer, Roots, production
from strongroom.errors import NotAuthentic, NotFound, UsageError, os_errors
from strongroom.keyserver.settings import Attestation, IdentityIssuer, TokenIssuer

__all__ = ["issuers_of", "key_set_specs", "roots_of", "test_root_files"]

_TEST_ROOT: Final = re.compile(
    r"TEST-ROOT-NOT-FOR-PRODUCTION\.(intel|nitro|nvidia_device|nvidia_rim|amd_(?:milan|genoa|turin))\.pem"
)


def test_root_files(place: Path) -> dict[str, Path]:
    """Vendor → file of a root for tests: ``place`` itself, or those in the directory ``place``.

    They are named ``TEST-ROOT-NOT-FOR-PRODUCTION.intel.pem`` (nitro, nvidia_device, nvidia_rim,
    amd_milan, amd_genoa, amd_turin).

    Raises:
        NotFound, UsageError: there are none.
    """
    with os_errors(place):
        files = sorted(place.iterdir()) if place.is_dir() else [place]
    found = {match.group(1): path for path in files if (match := _TEST_ROOT.fullmatch(path.name))}
    if not place.exists():
        raise NotFound(f"{place}: no such file or directory.")
    if not found:
        raise UsageError(
            f"{place} has no roots for tests.",
            hint="Their names begin with TEST-ROOT-NOT-FOR-PRODUCTION.",
        )
    return found


def issuers_of(issuers: list[TokenIssuer]) -> tuple[Issuer, ...]:
    """The issuers of tokens. Their key sets, which change, are for :func:`key_set_specs`.

    Raises:
        NotFound, UsageError: a file cannot be read.
    """

    def read(path: Path | None) -> bytes | None:
        if path is None:
            return None
        with os_errors(path):
            return path.read_bytes()

    return tuple(
        Issuer(one.issuer, one.audience, None, read(one.root), tuple(one.algorithms)) for one in issuers
    )


def key_set_specs(issuers: Sequence[TokenIssuer | IdentityIssuer]) -> list[str]:
    """Sources of the key sets that are in files: specs of :mod:`strongroom.attest.sources`.

    Raises:
        NotFound, UsageError: a file cannot be read, has no key set, or there are several for an issuer.
    """
    files: dict[str, Path] = {}
    for one in issuers:
        if one.jwks is None:
            continue
        with os_errors(one.jwks):
            content = one.jwks.read_bytes()
        try:
            parse_key_set(content)
        except NotAuthentic:
            raise UsageError(f"{one.jwks} is no set of keys (JWKS).") from None
        if files.setdefault(one.issuer, one.jwks) != one.jwks:
            raise UsageError(f"The issuer {one.issuer} has key sets in several files.")
    return [f"jwks-file:{quote(issuer, safe='')}={path}" for issuer, path in files.items()]


def roots_of(attestation: Attestation) -> Roots:
    """The vendors' roots, or roots for tests in their place, and the owner's own CAs and issuers.

    Raises:
        NotFound, UsageError: a file cannot be read.
    """
    roots = production()
    if attestation.insecure_test_roots is not None:
        roots = _with_test_roots(roots, test_root_files(attestation.insecure_test_roots))
    tpm = []
    for path in attestation.tpm_cas:
        with os_errors(path):
            tpm.append(path.read_bytes())
    return replace(roots, tpm=tuple(tpm), issuers=issuers_of(attestation.issuers))


def _with_test_roots(roots: Roots, files: dict[str, Path]) -> Roots:
    changes: dict[str, Any] = {}
    amd = dict(roots.amd)
    for vendor, path in files.items():
        with os_errors(path):
            content = path.read_bytes()
        if vendor.startswith("amd_"):
            amd[vendor.removeprefix("amd_").capitalize()] = content
        else:
            changes[vendor] = content
    return replace(roots, amd=amd, test=True, **changes)
