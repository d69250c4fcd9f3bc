"""Endorsements from a directory: for machines without a network, and for tests.

Files are found by name::

    intel/tdx_90c06f000000_platform.json        amd-vcek/Milan_HWID_3_0_20_209.der
    amd-chain/Milan_vcek.pem                    amd-crl/Milan_vcek.crl
    nvidia-rim/NV_GPU_DRIVER_GH100_580.95.05.xml
    nvidia-ocsp/SHA-256.der                     jwks/https%3A%2F%2Fissuer.example.json

or lie in the directory itself under any name, and are found by their content: Intel's collateral,
and NVIDIA's manifests. The directory is as trusted as the configuration that names it, for a key set
(jwks) is authenticated by nothing else.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from strongroom.attest.endorsements import Wanted
from strongroom.attest.limits import MAX_ENDORSEMENTS
from strongroom.attest.nvidia_rim import MAX_RIM, parse_rim, version_of
from strongroom.attest.sources.naming import path_of
from strongroom.errors import MissingEndorsement, StrongroomError, Unavailable, UsageError, os_errors
from strongroom.format.encoding import parse_json

__all__ = ["DirectorySource"]

_MAX_LOOSE: Final = 256
"""Files that are looked into for what no name says."""


class DirectorySource:
    """An endorsement source that reads files, and can be filled.

    Args:
        directory: must exist.

    Raises:
        UsageError: it is no directory.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        if not os.path.isdir(self._directory):
            raise UsageError(f"{self._directory} is not a directory of endorsements.")

    def fetch(self, wanted: Wanted) -> bytes:
        """The endorsement; see :class:`~strongroom.attest.endorsements.EndorsementSource`.

        Raises:
            MissingEndorsement: it is not there, or several are and nothing says which.
            Unavailable: a file cannot be read.
        """
        data = self._read(os.path.join(self._directory, path_of(wanted)))
        if data is None:
            data = self._by_content(wanted)
        if data is None:
            raise MissingEndorsement(
                f"The directory of endorsements does not have {path_of(wanted)}.",
                hint=f"Put it into {self._directory}.",
            )
        return data

    def store(self, wanted: Wanted, data: bytes) -> str:
        """Put an endorsement into the directory under its name, and return its path.

        Raises:
            StorageError: writing fails.
        """
        path = os.path.join(self._directory, path_of(wanted))
        with os_errors(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        return path

    def written(self, wanted: Wanted) -> datetime:
        """When the file of this name was written.

        Raises:
            MissingEndorsement: there is none of this name.
        """
        try:
            seconds = os.stat(os.path.join(self._directory, path_of(wanted))).st_mtime
        except OSError:
            raise MissingEndorsement("The directory of endorsements does not have it.") from None
        return datetime.fromtimestamp(seconds, UTC)

    def _read(self, path: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_ENDORSEMENTS + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise Unavailable(f"{path}: {os.strerror(error.errno or 0).lower()}.") from None
        if len(data) > MAX_ENDORSEMENTS:
            raise MissingEndorsement(f"{path} has more than {MAX_ENDORSEMENTS} bytes.")
        return data

    def _by_content(self, wanted: Wanted) -> bytes | None:
        if wanted.what not in {"intel", "nvidia-rim"}:
            return None
        found = {data for data in self._loose() if _is(wanted, data)}
        if len(found) > 1:
            raise MissingEndorsement(
                f"The directory has several files that could be {path_of(wanted)}.",
                hint="Give the right one this name.",
            )
        return found.pop() if found else None

    def _loose(self) -> Iterator[bytes]:
        try:
            entries = sorted(os.scandir(self._directory), key=lambda entry: entry.name)
        except OSError as error:
            raise Unavailable(f"{self._directory}: {os.strerror(error.errno or 0).lower()}.") from None
        for entry in [one for one in entries if one.is_file()][:_MAX_LOOSE]:
            data = self._read(entry.path)
            if data is not None:
                yield data


def _is(wanted: Wanted, data: bytes) -> bool:
    """Whether a file is what is wanted, as far as it says so itself."""
    try:
        if wanted.what == "nvidia-rim":
            if data.lstrip()[:1] != b"<" or len(data) > MAX_RIM:
                return False
            version = version_of(parse_rim(data))
            return (
                wanted.members["id"].upper().endswith((f"_{version}", f"_{version.replace('.', '')}"))
            )
        if data.lstrip()[:1] != b"{":
            return False
        members = parse_json(data)
        statement = json.loads(members["tcb_info"])
        chain = str(members["pck_crl_issuer_chain"])
    except (StrongroomError, ValueError, TypeError, KeyError):
        return False
    return bool(
        statement.get("id") == wanted.members["tee"].upper()
        and str(statement.get("fmspc")).lower() == wanted.members["fmspc"].lower()
        and _crl_is_of(chain, wanted.members["ca"])
    )


def _crl_is_of(chain: str, authority: str) -> bool:
    from strongroom.attest.certificates import load_certificates, name_of

    return authority.lower() in name_of(load_certificates(chain.encode())[0]).lower()
