"""``aws-kms:KEY``: a root key in AWS KMS, by id, ARN or ``alias/NAME``.

What a key is wrapped with is its encryption context: KMS checks it, and CloudTrail shows it.
``?region=…&endpoint=…`` where the environment does not say; credentials are those of the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from strongroom.crypto.secret import SecretBytes, wipe_bytes
from strongroom.errors import AlreadyExists, InvalidKey, NotFound, Unavailable, UsageError
from strongroom.keyserver.keks.envelope import does_not_open

__all__ = ["KmsKek", "create_kek", "needs_passphrase", "open_kek"]

_CONTEXT: Final = "strongroom"
_OPTIONS: Final = {"region", "endpoint"}
_CONFIG: Final = Config(
    connect_timeout=3, read_timeout=5, retries={"mode": "standard", "max_attempts": 3}
)
_TAMPERED: Final = ("InvalidCiphertextException", "IncorrectKeyException")

T = TypeVar("T")


def _client(place: str) -> tuple[Any, str]:
    key, _, query = place.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if not key or not set(options) <= _OPTIONS:
        raise UsageError(
            "This is not a key of AWS KMS.", hint="Write aws-kms:alias/NAME?region=eu-central-1."
        )
    try:
        client = boto3.client(
            "kms",
            region_name=options.get("region"),
            endpoint_url=options.get("endpoint"),
            config=_CONFIG,
        )
    except (BotoCoreError, ValueError) as error:
        raise UsageError(f"AWS KMS cannot be used: {error}.") from None
    return client, key


def _asked(call: Callable[[], T]) -> T:
    """What KMS answers; errors without its words, which may quote the request."""
    try:
        return call()
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "?"))
    except BotoCoreError as error:
        code = type(error).__name__
    if code == "NotFoundException":
        raise NotFound("AWS KMS has no such key.")
    if code in _TAMPERED:
        raise does_not_open()
    raise Unavailable(
        f"AWS KMS does not do it ({code}).", hint="See whether the key is enabled and its policy fits."
    )


def needs_passphrase(place: str) -> bool:
    """Never: credentials are those of the environment."""
    return False


def open_kek(place: str, passphrase: SecretBytes | None) -> KmsKek:
    """The root key in KMS; see :func:`strongroom.keyserver.kek.open_kek`."""
    client, key = _client(place)
    return KmsKek(client, _asked(lambda: client.describe_key(KeyId=key))["KeyMetadata"])


def create_kek(place: str, passphrase: SecretBytes | None) -> KmsKek:
    """A new root key in KMS, under a new alias."""
    client, key = _client(place)
    if not key.startswith("alias/"):
        raise UsageError("A new key in AWS KMS needs a name.", hint="Write aws-kms:alias/NAME.")
    try:
        _asked(lambda: client.describe_key(KeyId=key))
    except NotFound:
        pass
    else:
        raise AlreadyExists(f"AWS KMS has a key {key} already.")
    made = _asked(lambda: client.create_key(Description="Root key of a strongroom key server"))
    id = made["KeyMetadata"]["KeyId"]
    _asked(lambda: client.create_alias(AliasName=key, TargetKeyId=id))
    return open_kek(place, passphrase)


class KmsKek:
    """A key in KMS.

    Args:
        client: of boto3; safe for threads.
        about: as ``DescribeKey`` gives it.
    """

    def __init__(self, client: Any, about: dict[str, Any]) -> None:
        """Look at the key.

        Raises:
            InvalidKey: it is not one that encrypts, or is not enabled.
        """
        if (about.get("KeySpec"), about.get("KeyState")) != ("SYMMETRIC_DEFAULT", "Enabled"):
            raise InvalidKey("This key of AWS KMS is not symmetric, or not enabled.")
        self._client = client
        self._key = about["Arn"]
        self.id = f"aws-kms:{self._key}"

    def wrap(self, secret: SecretBytes, aad: bytes) -> bytes:
        plain = bytes(secret.buffer)
        try:
            answer = _asked(
                lambda: self._client.encrypt(
                    KeyId=self._key, Plaintext=plain, EncryptionContext={_CONTEXT: aad.decode()}
                )
            )
        finally:
            wipe_bytes(plain)
        return bytes(answer["CiphertextBlob"])

    def unwrap(self, wrapped: bytes, aad: bytes) -> SecretBytes:
        if not wrapped:
            raise does_not_open()
        answer = _asked(
            lambda: self._client.decrypt(
                KeyId=self._key, CiphertextBlob=wrapped, EncryptionContext={_CONTEXT: aad.decode()}
            )
        )
        return SecretBytes.take(answer["Plaintext"])

    def __repr__(self) -> str:
        return f"<KmsKek {self.id}>"
