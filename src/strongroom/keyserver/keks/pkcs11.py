"""``pkcs11:…``: a root key that never leaves an HSM; AES-256-GCM inside it.

The place is a URI of RFC 7512: ``pkcs11:token=keys;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so``.
The PIN is the passphrase, or in the file that ``pin-source`` names. A process that forks must open its
root key after that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote

import pkcs11

from strongroom.crypto.apart import load_apart
from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import (
    AlreadyExists,
    InvalidKey,
    NoKey,
    NotFound,
    Unavailable,
    UsageError,
    WrongPassphrase,
    os_errors,
)
from strongroom.keyserver.keks.envelope import does_not_open

__all__ = ["Pkcs11Kek", "create_kek", "open_kek"]

_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
_PATH: Final = {"token", "object"}
_QUERY: Final = {"module-path", "pin-source"}

T = TypeVar("T")


def _parse(place: str) -> tuple[str, str, dict[str, str]]:
    path, _, query = place.partition("?")
    pairs = [part.partition("=") for part in path.split(";")]
    found = {name: unquote(value) for name, _, value in pairs}
    options = dict(parse_qsl(query, keep_blank_values=True))
    if set(found) != _PATH or not set(options) <= _QUERY or "module-path" not in options:
        raise UsageError(
            "This is not the URI of a key in an HSM.",
            hint="Write pkcs11:token=NAME;object=LABEL?module-path=/usr/lib/….so",
        )
    return found["token"], found["object"], options


def _pin(options: dict[str, str], passphrase: SecretBytes | None) -> str:
    if passphrase is not None:
        return bytes(passphrase.buffer).decode()
    if "pin-source" not in options:
        raise NoKey("The HSM needs a PIN, and none was given.")
    path = Path(options["pin-source"].removeprefix("file:"))
    with os_errors(path):
        return path.read_text().rstrip("\n")


def _session(place: str, passphrase: SecretBytes | None, *, write: bool) -> tuple[Any, str]:
    token_label, label, options = _parse(place)
    if not os.path.exists(options["module-path"]):
        raise NotFound(f"{options['module-path']}: no such file or directory.")
    pin = _pin(options, passphrase)
    wrong = False
    try:
        with os_errors(options["module-path"]):
            load_apart(options["module-path"])
        library = pkcs11.lib(options["module-path"])
        token = library.get_token(token_label=token_label)
        try:
            return token.open(rw=write, user_pin=pin), label
        except pkcs11.UserAlreadyLoggedIn:
            # A process logs in to a token once, for all its sessions: another root key has done so.
            return token.open(rw=write), label
    except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
        wrong = True
    except pkcs11.NoSuchToken:
        raise NotFound(f"The HSM has no token {token_label}.") from None
    except pkcs11.MultipleTokensReturned:
        raise UsageError(f"Several tokens have the name {token_label}.") from None
    except (pkcs11.PKCS11Error, RuntimeError) as error:
        raise _unavailable(error) from None
    assert wrong
    raise WrongPassphrase(f"The PIN does not open the token {token_label}.")


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"The HSM does not answer as it should ({type(error).__name__}).")


def _find(session: Any, label: str) -> list[Any]:
    # get_key would raise odd errors where two keys have one label.
    wanted = {
        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
        pkcs11.Attribute.LABEL: label,
    }
    return list(session.get_objects(wanted))


def open_kek(place: str, passphrase: SecretBytes | None) -> Pkcs11Kek:
    """The root key in an HSM; see :func:`strongroom.keyserver.kek.open_kek`."""
    session, label = _session(place, passphrase, write=False)
    try:
        found = _find(session, label)
        if not found:
            raise NotFound(f"The HSM has no key {label}.")
        if len(found) > 1:
            raise UsageError(f"Several keys in the HSM have the label {label}.")
        return Pkcs11Kek(session, found[0])
    except pkcs11.PKCS11Error as error:
        problem = _unavailable(error)
    except BaseException:
        session.close()
        raise
    session.close()
    raise problem


def create_kek(place: str, passphrase: SecretBytes | None) -> Pkcs11Kek:
    """A new root key, made in an HSM."""
    session, label = _session(place, passphrase, write=True)
    try:
        if _find(session, label):
            raise AlreadyExists(f"The HSM has a key {label} already.")
        session.generate_key(
            pkcs11.KeyType.AES,
            256,
            id=os.urandom(16),
            label=label,
            store=True,
            capabilities=pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT,
            template={
                pkcs11.Attribute.SENSITIVE: True,
                pkcs11.Attribute.EXTRACTABLE: False,
                pkcs11.Attribute.MODIFIABLE: False,
            },
        )
    except pkcs11.PKCS11Error as error:
        raise _unavailable(error) from None
    finally:
        session.close()
    return open_kek(place, passphrase)


class Pkcs11Kek:
    """A key in an HSM.

    Args:
        session: logged in; belongs to this object from now on.
        key: of it.
    """

    def __init__(self, session: Any, key: Any) -> None:
        """Look at the key.

        Raises:
            InvalidKey: it can leave the HSM, or is no AES key of 256 bits.
        """
        attribute = pkcs11.Attribute
        if (
            key.key_type != pkcs11.KeyType.AES
            or key.key_length != 256
            or key[attribute.EXTRACTABLE]
            or not key[attribute.SENSITIVE]
            or not key.id
        ):
            raise InvalidKey(
                "This key of the HSM is no root key: it must be AES of 256 bits, with an id, sensitive "
                "and not extractable.",
                hint="Let strongroom make it, or make one so.",
            )
        self._session = session
        self._key = key
        self._lock = threading.Lock()
        self.id = f"pkcs11:{key.id.hex()}"

    def wrap(self, secret: SecretBytes, aad: bytes) -> bytes:
        nonce = os.urandom(_NONCE_SIZE)
        mechanism, parameters = _gcm(nonce, aad)

        def run() -> bytes:
            plain = bytes(secret.buffer)
            try:
                return bytes(self._key.encrypt(plain, mechanism=mechanism, mechanism_param=parameters))
            finally:
                wipe_bytes(plain)

        return nonce + self._asked(run)

    def unwrap(self, wrapped: bytes, aad: bytes) -> SecretBytes:
        if len(wrapped) <= _NONCE_SIZE + _TAG_SIZE:
            raise does_not_open()
        mechanism, parameters = _gcm(wrapped[:_NONCE_SIZE], aad)
        try:
            with self._lock:
                found = self._key.decrypt(
                    wrapped[_NONCE_SIZE:], mechanism=mechanism, mechanism_param=parameters
                )
            return SecretBytes.take(found)
        except pkcs11.PKCS11Error:
            pass
        # HSMs say that a tag is wrong in the same words as that they are broken: is it broken?
        with SecretBytes(b"probe") as probe:
            self.wrap(probe, b"")
        raise does_not_open()

    def _asked(self, run: Callable[[], T]) -> T:
        try:
            with self._lock:
                return run()
        except pkcs11.PKCS11Error as error:
            problem = _unavailable(error)
        raise problem

    def close(self) -> None:
        """Close the session; the one that logged in logs all others of this process out."""
        self._session.close()

    def __repr__(self) -> str:
        return f"<Pkcs11Kek {self.id}>"


def _gcm(nonce: bytes, aad: bytes) -> tuple[Any, Any]:
    return pkcs11.Mechanism.AES_GCM, pkcs11.GCMParams(nonce, aad, _TAG_SIZE * 8)
