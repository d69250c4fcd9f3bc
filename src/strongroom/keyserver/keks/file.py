"""``file:PATH``: a root key in a file, under a passphrase (Argon2id, RFC 9106) or as it is.

JSON, mode 0600: ``{"v": 1, "kind": "root-key", "protection": {…}, "key": base64url}``. Under a passphrase
``key`` is wrapped by AES-256-GCM; the passphrase can be changed without touching a database.
"""

from __future__ import annotations

import json
import os
import stat
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import HeaderTampered, InvalidKey, NoKey, WrongPassphrase, os_errors
from strongroom.format.encoding import b64url, canonical_json, parse_json, unb64url_text
from strongroom.format.limits import MAX_ARGON2_LANES, MAX_ARGON2_MEMORY, MAX_ARGON2_PASSES
from strongroom.keyserver.keks.envelope import ROOT_SIZE, HeldKek

__all__ = ["change_passphrase", "create_kek", "needs_passphrase", "open_kek", "write_new"]

_KIND: Final = "root-key"
_SALT_SIZE: Final = 16
_PASSES: Final = 3
_MEMORY: Final = 1 << 16
_LANES: Final = 4
# RFC 9106, section 4, second recommended option: 64 MiB, some 0.1 s of one core here.
_MAX_FILE: Final = 1 << 16


def open_kek(place: str, passphrase: SecretBytes | None) -> HeldKek:
    """The root key in the file ``place``; see :func:`strongroom.keyserver.kek.open_kek`."""
    return HeldKek("file", _read(Path(place), passphrase))


def create_kek(place: str, passphrase: SecretBytes | None) -> HeldKek:
    """A new root key in the new file ``place``."""
    root = SecretBytes.random(ROOT_SIZE)
    path = Path(place)
    content = _content(root, passphrase)
    with os_errors(path):
        write_new(path, content)
    return HeldKek("file", root)


def needs_passphrase(place: str) -> bool:
    """Whether the file is under a passphrase."""
    try:
        with _read(Path(place), None):
            return False
    except NoKey:
        return True


def change_passphrase(place: str, old: SecretBytes | None, new: SecretBytes | None) -> None:
    """Protect the same root key otherwise; None means by the mode of the file alone.

    Raises:
        NotFound, InvalidKey, NoKey, WrongPassphrase: as for opening.
    """
    path = Path(place)
    with _read(path, old) as root:
        content = _content(root, new)
    beside = path.with_name(path.name + ".new")
    with os_errors(path):
        beside.unlink(missing_ok=True)
        write_new(beside, content)
        os.replace(beside, path)
        _sync(path.parent)


def write_new(path: Path, content: bytes) -> None:
    """A new file of mode 0600, on the disk when this returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aad(protection: Mapping[str, Any]) -> bytes:
    return canonical_json({"v": 1, "kind": _KIND, "protection": dict(protection)})


def _content(root: SecretBytes, passphrase: SecretBytes | None) -> bytes:
    if passphrase is None:
        protection: dict[str, Any] = {"by": "mode"}
        key = b64url(bytes(root.buffer))
    else:
        salt = os.urandom(_SALT_SIZE)
        protection = {
            "by": "Argon2id",
            "salt": b64url(salt),
            "t": _PASSES,
            "m": _MEMORY,
            "p": _LANES,
        }
        key = b64url(_under(passphrase, protection, salt).wrap(root, _aad(protection)))
    document = {"v": 1, "kind": _KIND, "protection": protection, "key": key}
    return json.dumps(document, indent=1).encode() + b"\n"


def _under(passphrase: SecretBytes, protection: Mapping[str, Any], salt: bytes) -> HeldKek:
    bounds = {"t": (1, MAX_ARGON2_PASSES), "p": (1, MAX_ARGON2_LANES)}
    bounds["m"] = (8 * MAX_ARGON2_LANES, MAX_ARGON2_MEMORY)
    for name, (low, high) in bounds.items():
        if type(protection.get(name)) is not int or not low <= protection[name] <= high:
            raise ValueError
    try:
        text = bytes(passphrase.buffer).decode()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise InvalidKey("The passphrase is empty or not UTF-8.")
    kek = SecretBytes.zeros(ROOT_SIZE)
    kdf = Argon2id(
        salt=salt,
        length=ROOT_SIZE,
        iterations=protection["t"],
        lanes=protection["p"],
        memory_cost=protection["m"],
    )
    with SecretBytes.take(unicodedata.normalize("NFC", text).encode()) as normal:
        kdf.derive_into(normal.buffer, kek.buffer)  # type: ignore[arg-type]  # takes any buffer
    return HeldKek("passphrase", kek)


def _read(path: Path, passphrase: SecretBytes | None) -> SecretBytes:
    with os_errors(path), open(path, "rb") as file:
        status = os.fstat(file.fileno())
        content = file.read(_MAX_FILE)
    # Kubernetes and systemd hand out secrets as files of root that a group can read, that of the server.
    others = 0o037 if status.st_uid == 0 and os.geteuid() != 0 else 0o077
    if stat.S_IMODE(status.st_mode) & others:
        raise InvalidKey(f"{path} can be read by others.", hint=f"chmod 600 {path}")
    nonsense = InvalidKey(f"{path} is not the file of a root key.")
    try:
        document = parse_json(content)
        if document.get("v") != 1 or document.get("kind") != _KIND:
            raise nonsense
        protection, key = document["protection"], unb64url_text(document["key"])
        by = protection["by"]
        if by == "mode" and len(key) == ROOT_SIZE:
            return SecretBytes.take(key)
        if by != "Argon2id":
            raise nonsense
        if passphrase is None:
            raise NoKey(f"{path} is under a passphrase, and none was given.")
        salt = unb64url_text(protection["salt"])
        root = _under(passphrase, protection, salt).unwrap(key, _aad(protection))
    except (ValueError, KeyError, TypeError):
        raise nonsense from None
    except HeaderTampered:
        raise WrongPassphrase(f"The passphrase does not open {path}.") from None
    if len(root) != ROOT_SIZE:
        raise nonsense
    return root
