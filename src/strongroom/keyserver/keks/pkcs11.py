"""``pkcs11:…``: a root key that never leaves an HSM; AES-256-GCM inside it.

The place is a URI of RFC 7512: ``pkcs11:token=keys;object=root?module-path=/usr/lib/softhsm/libsofthsm2.so``.
The PIN is the passphrase, or in the file that ``pin-source`` names. A process that forks must open its
root key after that. An HSM that was away is logged in to again when it is back, once: HSMs lock a PIN that
is wrong a few times.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote

import pkcs11

from strongroom.crypto.apart import load_apart
from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import (
    AccessError,
    AlreadyExists,
    InvalidKey,
    NoKey,
    NotFound,
    StrongroomError,
    Unavailable,
    UsageError,
    WrongPassphrase,
    os_errors,
)
from strongroom.keyserver.keks.envelope import does_not_open, text_of

__all__ = ["Pkcs11Kek", "create_kek", "needs_passphrase", "open_kek"]

_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
_PATH: Final = {"token", "object"}
_QUERY: Final = {"module-path", "pin-source"}
_AGAIN_SECONDS: Final = 1.0
"""Between two attempts to reach an HSM that is away: many requests wait for it."""

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
        return text_of(passphrase, "PIN")
    if "pin-source" not in options:
        raise NoKey(
            "The HSM needs a PIN, and none was given.",
            hint="Give --passphrase-fd, or name its file: kek.passphrase_file.",
        )
    path = Path(options["pin-source"].removeprefix("file:"))
    with os_errors(path):
        content = path.read_bytes()
    with SecretBytes.take(content.partition(b"\n")[0].removesuffix(b"\r") or b"\0") as line:
        return text_of(line, "PIN")


def needs_passphrase(place: str) -> bool:
    """Whether it opens only with a PIN that must be given."""
    return "pin-source" not in _parse(place)[2]


def _session(place: str, passphrase: SecretBytes | None, *, write: bool) -> tuple[Any, str]:
    token_label, label, options = _parse(place)
    if not os.path.exists(options["module-path"]):
        raise NotFound(f"{options['module-path']}: no such file or directory.")
    pin = _pin(options, passphrase)
    wrong = locked = False
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
    except (pkcs11.PinLocked, pkcs11.PinExpired):
        locked = True
    except pkcs11.NoSuchToken:
        _start_anew(options["module-path"])
        raise NotFound(f"The HSM has no token {token_label}.") from None
    except pkcs11.MultipleTokensReturned:
        raise UsageError(f"Several tokens have the name {token_label}.") from None
    except (pkcs11.PKCS11Error, RuntimeError) as error:
        _start_anew(options["module-path"])
        raise _unavailable(error) from None
    if locked:
        raise InvalidKey(
            f"The PIN of the token {token_label} is locked or has expired.",
            hint="Its security officer can set another one.",
        )
    assert wrong
    raise WrongPassphrase(f"The PIN does not open the token {token_label}.")


def _start_anew(module: str) -> None:
    """Let the module look at its tokens when it is used next: most do so only when they are initialised."""
    with suppress(pkcs11.PKCS11Error, RuntimeError):
        pkcs11.lib(module).finalize()


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
    # Kept, to log in again: the caller may wipe his.
    pin = None if passphrase is None else SecretBytes(passphrase.buffer)
    return Pkcs11Kek(lambda: _open(place, pin))


def _open(place: str, passphrase: SecretBytes | None) -> tuple[Any, Any]:
    """A session that is logged in, and the key."""
    session, label = _session(place, passphrase, write=False)
    try:
        found = _find(session, label)
        if not found:
            raise NotFound(
                f"The HSM has no key {label}.", hint="Make one: strongroom keyserver make-kek."
            )
        if len(found) > 1:
            raise UsageError(f"Several keys in the HSM have the label {label}.")
        return session, _checked(found[0])
    except pkcs11.PKCS11Error as error:
        problem = _unavailable(error)
    except BaseException:
        session.close()
        raise
    with suppress(pkcs11.PKCS11Error):
        session.close()
    raise problem


def _checked(key: Any) -> Any:
    """The key, if it can be a root key.

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
            hint="strongroom keyserver make-kek makes one.",
        )
    return key


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
        connect: gives a session that is logged in, and the key; asked again when the HSM was away.
    """

    def __init__(self, connect: Callable[[], tuple[Any, Any]]) -> None:
        self._connect = connect
        self._session, self._key = connect()
        self._lock = threading.Lock()
        self._sessions = 1
        self._again = 0.0
        self._refusal: str | None = None
        self.id = _id(self._key)

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
        for _ in range(2):
            with self._lock:
                session = self._sessions
                try:
                    found = self._key.decrypt(
                        wrapped[_NONCE_SIZE:], mechanism=mechanism, mechanism_param=parameters
                    )
                    return SecretBytes.take(found)
                except pkcs11.PKCS11Error:
                    pass
            # HSMs say that a tag is wrong in the same words as that they are broken: is it broken?
            with SecretBytes(b"probe") as probe:
                self.wrap(probe, b"")
            if session == self._sessions:
                raise does_not_open()
        raise Unavailable("The HSM comes and goes.")

    def _asked(self, run: Callable[[], T]) -> T:
        with self._lock:
            try:
                return run()
            except pkcs11.PKCS11Error as error:
                problem = _unavailable(error)
            if not self._reconnect():
                raise problem
            try:
                return run()
            except pkcs11.PKCS11Error as error:
                problem = _unavailable(error)
        raise problem

    def _reconnect(self) -> bool:
        """Log in again; False where that was just tried.

        Raises:
            Unavailable: it is of no use.
        """
        if self._refusal is not None:
            raise Unavailable(f"The HSM is not asked again: {self._refusal}")
        if time.monotonic() < self._again:
            return False
        with suppress(pkcs11.PKCS11Error):
            self._session.close()
        try:
            session, key = self._connect()
        except StrongroomError as error:
            self._again = time.monotonic() + _AGAIN_SECONDS
            if isinstance(error, AccessError):
                self._refusal = error.message
            raise Unavailable(f"The HSM is away: {error.message}") from None
        if _id(key) != self.id:
            session.close()
            self._refusal = "it has another key of this name."
            raise Unavailable(f"The HSM is not what it was: {self._refusal}")
        self._session, self._key = session, key
        self._sessions += 1
        return True

    def close(self) -> None:
        """Close the session; the one that logged in logs all others of this process out."""
        with self._lock:
            self._refusal = "it was closed."
            self._session.close()

    def __repr__(self) -> str:
        return f"<Pkcs11Kek {self.id}>"


def _id(key: Any) -> str:
    return f"pkcs11:{key.id.hex()}"


def _gcm(nonce: bytes, aad: bytes) -> tuple[Any, Any]:
    return pkcs11.Mechanism.AES_GCM, pkcs11.GCMParams(nonce, aad, _TAG_SIZE * 8)
