"""``vault:MOUNT/KEY``: a root key in the transit engine of Vault or OpenBao.

``VAULT_ADDR`` says where it is, the passphrase or ``VAULT_TOKEN`` is the token, ``VAULT_CACERT`` its CA,
``VAULT_NAMESPACE`` the namespace. The engine must know ``associated_data`` (Vault 1.13 or later, OpenBao):
one that passes it over is noticed and refused.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from typing import Any, TypeVar

import hvac
import requests
from hvac.exceptions import InvalidPath, InvalidRequest, VaultError

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AlreadyExists,
    HeaderTampered,
    InvalidKey,
    NoKey,
    NotFound,
    Unavailable,
    UsageError,
)
from strongroom.keyserver.keks.envelope import does_not_open, text_of

__all__ = ["VaultKek", "create_kek", "needs_passphrase", "open_kek"]

_SECONDS = 5

T = TypeVar("T")


def _client(place: str, passphrase: SecretBytes | None) -> tuple[Any, str, str]:
    mount, _, name = place.rpartition("/")
    if not mount or not name:
        raise UsageError("This is not a key of Vault.", hint="Write vault:transit/NAME.")
    url = os.environ.get("VAULT_ADDR")
    token = text_of(passphrase, "token") if passphrase else os.environ.get("VAULT_TOKEN")
    if not url or not token:
        raise NoKey(
            "Vault needs VAULT_ADDR and a token.", hint="Give it as the passphrase or VAULT_TOKEN."
        )
    verify = os.environ.get("VAULT_CACERT") or True
    namespace = os.environ.get("VAULT_NAMESPACE")
    client = hvac.Client(url=url, token=token, verify=verify, timeout=_SECONDS, namespace=namespace)
    return client, mount, name


def needs_passphrase(place: str) -> bool:
    """Whether it opens only with a token that must be given."""
    return not os.environ.get("VAULT_TOKEN")


def _asked(call: Callable[[], T], *, refused: Callable[[], Exception] | None = None) -> T:
    """What Vault answers; errors without its words, which may quote the request."""
    problem: Exception
    try:
        return call()
    except InvalidPath:
        problem = NotFound("Vault has no such key.")
    except InvalidRequest:
        problem = refused() if refused else Unavailable("Vault does not take the request.")
    except (VaultError, requests.RequestException) as error:
        problem = Unavailable(
            f"Vault does not answer as it should ({type(error).__name__}).",
            hint="See whether it is sealed, and what the policy of the token allows.",
        )
    raise problem


def open_kek(place: str, passphrase: SecretBytes | None) -> VaultKek:
    """The root key in Vault; see :func:`strongroom.keyserver.kek.open_kek`."""
    client, mount, name = _client(place, passphrase)
    transit = client.secrets.transit
    answer = _asked(lambda: transit.read_key(name=name, mount_point=mount))
    kek = VaultKek(transit, mount, name, answer["data"])
    kek.check_binding()
    return kek


def create_kek(place: str, passphrase: SecretBytes | None) -> VaultKek:
    """A new root key in Vault."""
    client, mount, name = _client(place, passphrase)
    transit = client.secrets.transit
    try:
        _asked(lambda: transit.read_key(name=name, mount_point=mount))
    except NotFound:
        pass
    else:
        raise AlreadyExists(f"Vault has a key {mount}/{name} already.")
    _asked(lambda: transit.create_key(name=name, key_type="aes256-gcm96", mount_point=mount))
    return open_kek(place, passphrase)


class VaultKek:
    """A key in the transit engine.

    Args:
        transit: of a client with a token.
        mount: of the engine.
        name: of the key.
        about: as Vault describes it.
    """

    def __init__(self, transit: Any, mount: str, name: str, about: dict[str, Any]) -> None:
        """Look at the key.

        Raises:
            InvalidKey: it is not AES-256-GCM, or can leave Vault.
        """
        if (
            about.get("type") != "aes256-gcm96"
            or about.get("exportable") is not False
            or about.get("derived")
            or about.get("convergent_encryption")
            or about.get("allow_plaintext_backup")
        ):
            raise InvalidKey(
                "This key of Vault is no root key: it must be aes256-gcm96, neither derived, nor "
                "convergent, nor exportable."
            )
        self._transit = transit
        self._mount = mount
        self._name = name
        # Vault gives keys no id: one that was deleted and made again differs in when it was made.
        made = min(map(str, dict(about["keys"]).values()))
        self.id = f"vault:{mount}/{name}:{made}"

    def check_binding(self) -> None:
        """See that what is wrapped for one place does not open in another.

        Raises:
            InvalidKey: an engine that is too old, which passes associated data over.
            Unavailable: Vault does not answer.
        """
        with SecretBytes(b"probe") as probe:
            wrapped = self.wrap(probe, b"here")
        try:
            self.unwrap(wrapped, b"there").wipe()
        except HeaderTampered:
            return
        raise InvalidKey(
            "This Vault passes associated data over: a key could be moved to another place unnoticed.",
            hint="Vault 1.13 or later binds it.",
        )

    def wrap(self, secret: SecretBytes, aad: bytes) -> bytes:
        # A str, which nobody can wipe: hvac takes nothing else.
        plain = base64.b64encode(secret.buffer).decode()
        answer = _asked(
            lambda: self._transit.encrypt_data(
                name=self._name,
                plaintext=plain,
                associated_data=base64.b64encode(aad).decode(),
                mount_point=self._mount,
            )
        )
        return str(answer["data"]["ciphertext"]).encode()

    def unwrap(self, wrapped: bytes, aad: bytes) -> SecretBytes:
        if not wrapped.startswith(b"vault:v") or not wrapped.isascii():
            raise does_not_open()
        answer = _asked(
            lambda: self._transit.decrypt_data(
                name=self._name,
                ciphertext=wrapped.decode(),
                associated_data=base64.b64encode(aad).decode(),
                mount_point=self._mount,
            ),
            refused=does_not_open,
        )
        try:
            return SecretBytes.take(base64.b64decode(answer["data"]["plaintext"], validate=True))
        except (binascii.Error, ValueError):
            pass
        raise does_not_open()

    def __repr__(self) -> str:
        return f"<VaultKek {self.id}>"
