"""What a model's configuration says to the agent: ``parameters`` of ``model_repository_agents``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

from strongroom.errors import InvalidKey, UsageError, os_errors
from strongroom.keys import Passphrase
from strongroom.providers.sources import KeySource

__all__ = ["Parameters", "Wipe"]

Wipe = Literal["load_complete", "unload"]
_WIPE: Final = ("load_complete", "unload")
_KNOWN: Final = ("key", "passphrase_file", "wipe", "directory")
_MAX_PASSPHRASE: Final = 1 << 16
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - checked to be memory before use


@dataclass(frozen=True)
class Parameters:
    """Of one model.

    Attributes:
        key: what ``strongroom.open`` takes, as text: a path, ``unix:///…``, ``https://…``, ``env:NAME``.
        passphrase_file: a file whose first line is the passphrase.
        wipe: when the plaintext goes: once the model is loaded, or with it.
        directory: where the private directory is made; in memory.
    """

    key: str | None = None
    passphrase_file: str | None = None
    wipe: Wipe = "load_complete"
    directory: str = _SHARED_MEMORY

    @classmethod
    def parse(cls, said: Mapping[str, str]) -> Parameters:
        """Check what was said.

        Raises:
            UsageError: a parameter is not known, or cannot be that; the value of ``key`` is not repeated.
        """
        for name in said:
            if name not in _KNOWN:
                raise UsageError(
                    f"The repository agent knows no parameter {name[:80]!r}.",
                    hint=f"Known: {', '.join(_KNOWN)}.",
                )
        wipe = said.get("wipe", _WIPE[0])
        if wipe not in _WIPE:
            raise UsageError(
                f"The parameter wipe is {wipe[:80]!r}.", hint=f"It can be: {', '.join(_WIPE)}."
            )
        if said.get("key") and said.get("passphrase_file"):
            raise UsageError(
                "The parameters key and passphrase_file are both given.", hint="Give one of them."
            )
        directory = said.get("directory", _SHARED_MEMORY)
        if not os.path.isabs(directory):
            raise UsageError("The parameter directory is no absolute path.")
        return cls(
            said.get("key") or None, said.get("passphrase_file") or None, cast("Wipe", wipe), directory
        )

    def key_source(self) -> KeySource | None:
        """Who can open the model; None leaves it to the environment of the server, and to the model.

        Raises:
            StrongroomError: the file of the passphrase cannot be read.
        """
        if self.passphrase_file is None:
            return self.key
        buffer = bytearray(_MAX_PASSPHRASE)
        with os_errors(self.passphrase_file), open(self.passphrase_file, "rb", buffering=0) as file:
            size = file.readinto(buffer)
        try:
            line, found, _ = buffer[:size].partition(b"\n")
            if not found and size == len(buffer):
                raise InvalidKey(f"{self.passphrase_file}: a passphrase has at most {size} bytes.")
            return Passphrase(bytes(line.removesuffix(b"\r")))
        finally:
            buffer[:] = bytes(len(buffer))
