"""``tpm:PATH``: a root key in a file that only the TPM of this machine opens.

The key is sealed under the storage root of the owner hierarchy, with the passphrase as its authorisation
value: the TPM locks out who guesses, and the file says whether there is one. It is unsealed once, at the start, through an encrypted session, and
then held in memory. ``tpm:PATH?tcti=…`` names another TPM than ``/dev/tpmrm0``. Lost with the machine:
keep a second root key elsewhere, or a backup that is under one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from strongroom.attest.collect.tpm_device import tpm2
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import InvalidKey, NoKey, Unavailable, UsageError, WrongPassphrase, os_errors
from strongroom.format.encoding import b64url, parse_json, unb64url_text
from strongroom.keyserver.keks.envelope import ROOT_SIZE, HeldKek
from strongroom.keyserver.keks.file import write_new

__all__ = ["create_kek", "needs_passphrase", "open_kek"]

tss: Final[Any] = tpm2()

_KIND: Final = "tpm-root-key"
_DEVICE: Final = "device:/dev/tpmrm0"
_MAX_FILE: Final = 1 << 14
_MAX_AUTH: Final = 32
_WRONG_AUTH: Final = (0x98E, 0x9A2)  # TPM_RC_AUTH_FAIL, TPM_RC_BAD_AUTH, of the first session
_LOCKOUT: Final = 0x921
_NOT_ITS: Final = (0x1DF, 0x18B, 0x1D2)  # TPM_RC_INTEGRITY, _HANDLE, _KEY, of a parameter or handle


def _place(place: str) -> tuple[Path, str]:
    path, _, query = place.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not path or not set(options) <= {"tcti"}:
        raise UsageError("This is not the file of a root key in a TPM.", hint="Write tpm:PATH.")
    return Path(path), options.get("tcti", _DEVICE)


def _auth(passphrase: SecretBytes | None) -> bytes:
    value = bytes(passphrase.buffer) if passphrase is not None else b""
    if len(value) > _MAX_AUTH:
        raise InvalidKey(f"A passphrase for a TPM has at most {_MAX_AUTH} bytes.")
    return value


@contextmanager
def _connected(tcti: str) -> Iterator[Any]:
    code: int | None = None
    try:
        connection = tss.ESAPI(tcti)
    except (tss.TSS2_Exception, RuntimeError):
        raise Unavailable(f"No TPM answers at {tcti}.") from None
    try:
        yield connection
    except tss.TSS2_Exception as error:
        code = error.rc
    finally:
        connection.close()
    if code is None:
        return
    if code in _WRONG_AUTH:
        raise WrongPassphrase("The passphrase does not open the root key in the TPM.")
    if code == _LOCKOUT:
        raise Unavailable(
            "The TPM is locked: too many wrong passphrases.", hint="Wait, or clear the lockout."
        )
    if code in _NOT_ITS:
        raise InvalidKey(
            "The file was not made by this TPM, or was changed.",
            hint="It opens on the machine where it was made, until its TPM is cleared.",
        )
    raise Unavailable(f"The TPM does not do it (code {code:#x}).")


@contextmanager
def _storage_root(connection: Any) -> Iterator[Any]:
    attributes = tss.TPMA_OBJECT
    public = tss.TPM2B_PUBLIC.parse(
        "ecc",
        objectAttributes=attributes.RESTRICTED
        | attributes.DECRYPT
        | attributes.NODA
        | attributes.FIXEDTPM
        | attributes.FIXEDPARENT
        | attributes.SENSITIVEDATAORIGIN
        | attributes.USERWITHAUTH,
    )
    primary = connection.create_primary(None, public)[0]
    try:
        yield primary
    finally:
        connection.flush_context(primary)


@contextmanager
def _encrypted(connection: Any, primary: Any) -> Iterator[Any]:
    """A session salted to the storage root: what passes the bus is of no use to who listens."""
    session = connection.start_auth_session(
        tpm_key=primary,
        bind=tss.ESYS_TR.NONE,
        session_type=tss.TPM2_SE.HMAC,
        symmetric=tss.TPMT_SYM_DEF(
            algorithm=tss.TPM2_ALG.AES,
            keyBits=tss.TPMU_SYM_KEY_BITS(sym=128),
            mode=tss.TPMU_SYM_MODE(sym=tss.TPM2_ALG.CFB),
        ),
        auth_hash=tss.TPM2_ALG.SHA256,
    )
    connection.trsess_set_attributes(
        session, tss.TPMA_SESSION.CONTINUESESSION | tss.TPMA_SESSION.DECRYPT | tss.TPMA_SESSION.ENCRYPT
    )
    try:
        yield session
    finally:
        connection.flush_context(session)


def create_kek(place: str, passphrase: SecretBytes | None) -> HeldKek:
    """A new root key, sealed by the TPM into a new file."""
    path, tcti = _place(place)
    attributes = tss.TPMA_OBJECT
    template = tss.TPM2B_PUBLIC.parse(
        "keyedhash",
        # Without NODA: wrong passphrases lock the TPM.
        objectAttributes=attributes.FIXEDTPM | attributes.FIXEDPARENT | attributes.USERWITHAUTH,
    )
    root = SecretBytes.random(ROOT_SIZE)
    with (
        _connected(tcti) as connection,
        _storage_root(connection) as primary,
        _encrypted(connection, primary) as session,
    ):
        sensitive = tss.TPM2B_SENSITIVE_CREATE(
            tss.TPMS_SENSITIVE_CREATE(
                userAuth=tss.TPM2B_AUTH(_auth(passphrase)),
                data=tss.TPM2B_SENSITIVE_DATA(bytes(root.buffer)),
            )
        )
        private, public, *_ = connection.create(primary, sensitive, template, session1=session)
        document = {
            "v": 1,
            "kind": _KIND,
            "public": b64url(public.marshal()),
            "private": b64url(private.marshal()),
            "passphrase": passphrase is not None,
        }
    with os_errors(path):
        write_new(path, json.dumps(document, indent=1).encode() + b"\n")
    return HeldKek("tpm", root)


def _read(path: Path) -> dict[str, Any]:
    with os_errors(path), open(path, "rb") as file:
        content = file.read(_MAX_FILE)
    try:
        document = parse_json(content)
        if (document.get("v"), document.get("kind")) == (1, _KIND):
            return dict(document)
    except (ValueError, AttributeError):
        pass
    raise _nonsense(path)


def _nonsense(path: Path) -> InvalidKey:
    return InvalidKey(f"{path} is not the file of a root key in a TPM.")


def needs_passphrase(place: str) -> bool:
    """Whether the file says so; a wrong passphrase counts towards the lockout of the TPM."""
    return _read(_place(place)[0]).get("passphrase") is True


def open_kek(place: str, passphrase: SecretBytes | None) -> HeldKek:
    """The root key that the TPM unseals; see :func:`strongroom.keyserver.kek.open_kek`."""
    path, tcti = _place(place)
    document = _read(path)
    try:
        public, _ = tss.TPM2B_PUBLIC.unmarshal(unb64url_text(document["public"]))
        private, _ = tss.TPM2B_PRIVATE.unmarshal(unb64url_text(document["private"]))
    except (ValueError, KeyError, TypeError, tss.TSS2_Exception):
        raise _nonsense(path) from None
    if passphrase is None and document.get("passphrase") is True:
        raise NoKey(f"{path} is under a passphrase, and none was given.")
    with (
        _connected(tcti) as connection,
        _storage_root(connection) as primary,
        _encrypted(connection, primary) as session,
    ):
        handle = connection.load(primary, private, public)
        try:
            connection.tr_set_auth(handle, tss.TPM2B_AUTH(_auth(passphrase)))
            found = connection.unseal(handle, session1=session)
            root = SecretBytes.take(bytes(found))
        finally:
            connection.flush_context(handle)
    if len(root) != ROOT_SIZE:
        raise InvalidKey(f"{path} holds no root key.")
    return HeldKek("tpm", root)
