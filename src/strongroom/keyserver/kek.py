"""The root key-encryption key: what wraps every key in the database, and is never in it.

========================== ==================================================
source                     where the root key is
========================== ==================================================
``file:PATH``              a file, under a passphrase or readable by the server alone
``pkcs11:…``               an HSM, by its URI (RFC 7512)
``aws-kms:KEY``            AWS KMS, by id or ARN
``vault:MOUNT/KEY``        the transit engine of Vault or OpenBao
``tpm:PATH``               a file that only the TPM of this machine opens
========================== ==================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, cast, runtime_checkable

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import MissingExtra, UsageError

__all__ = ["KINDS", "RootKek", "create_kek", "in_file", "needs_passphrase", "open_kek"]

KINDS: Final[Mapping[str, tuple[str, str]]] = {
    "file": ("strongroom.keyserver.keks.file", "keyserver"),
    "pkcs11": ("strongroom.keyserver.keks.pkcs11", "pkcs11"),
    "aws-kms": ("strongroom.keyserver.keks.aws_kms", "aws-kms"),
    "vault": ("strongroom.keyserver.keks.vault", "vault"),
    "tpm": ("strongroom.keyserver.keks.tpm", "tpm"),
}
"""Kind → module with ``needs_passphrase``, ``open_kek``, ``create_kek``, and the extra that has its packages."""


@runtime_checkable
class RootKek(Protocol):
    """Wraps 32-byte keys. Safe to use from several threads."""

    id: str
    """Names the key, not its place: a database remembers under which one it is. At most 300 characters."""

    def wrap(self, secret: SecretBytes, aad: bytes) -> bytes:
        """Encrypt ``secret`` such that it opens with the same ``aad`` only.

        Raises:
            Unavailable: whatever holds the root key does not answer.
        """
        ...

    def unwrap(self, wrapped: bytes, aad: bytes) -> SecretBytes:
        """Undo :meth:`wrap`.

        Raises:
            HeaderTampered: it was wrapped by another key, with another ``aad``, or was changed.
            Unavailable: whatever holds the root key does not answer.
        """
        ...


class _Module(Protocol):
    def needs_passphrase(self, place: str) -> bool: ...

    def open_kek(self, place: str, passphrase: SecretBytes | None) -> RootKek: ...

    def create_kek(self, place: str, passphrase: SecretBytes | None) -> RootKek: ...


def _module(source: str) -> tuple[_Module, str]:
    kind, separator, place = source.partition(":")
    if not separator or not place or kind not in KINDS:
        raise UsageError(
            "This is not the source of a root key.", hint="Known are: " + ", ".join(KINDS) + "."
        )
    name, extra = KINDS[kind]
    try:
        return cast("_Module", import_module(name)), place
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("strongroom"):
            raise
        raise MissingExtra(f"A root key in {kind}", extra) from None


def needs_passphrase(source: str) -> bool:
    """Whether the root key at ``source`` opens only with a passphrase, PIN or token that must be given.

    Nothing that counts wrong attempts is asked.

    Raises:
        UsageError, NotFound, InvalidKey: it is no source, or nothing is there.
    """
    module, place = _module(source)
    return module.needs_passphrase(place)


def in_file(source: str) -> Path | None:
    """The file that a root key is kept in; None where it is not in a file of this machine."""
    kind, _, place = source.partition(":")
    if kind == "tpm":
        place = place.partition("?")[0]
    return Path(place) if kind in ("file", "tpm") else None


def open_kek(source: str, passphrase: SecretBytes | None = None) -> RootKek:
    """The root key at ``source``.

    Args:
        source: see the table above.
        passphrase: of a file; PIN of an HSM; authorisation value of a TPM.

    Raises:
        UsageError: the source cannot be one.
        NotFound: nothing is there.
        MissingExtra: its packages are not installed.
        WrongPassphrase, InvalidKey: it does not open.
        Unavailable: whatever holds it does not answer.
    """
    module, place = _module(source)
    return module.open_kek(place, passphrase)


def create_kek(source: str, passphrase: SecretBytes | None = None) -> RootKek:
    """A new root key at ``source``, which must not have one yet.

    Args:
        source: see the table above.
        passphrase: as for :func:`open_kek`.

    Raises:
        AlreadyExists: there is one.
        StrongroomError: as :func:`open_kek`.
    """
    module, place = _module(source)
    return module.create_kek(place, passphrase)
