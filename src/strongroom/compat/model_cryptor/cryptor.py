"""What every cryptor does: keys, encrypting, and decrypting up to the framework."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, Final

from strongroom.compat.model_cryptor.opening import Place, opened
from strongroom.compat.transfer import read_foreign_key
from strongroom.crypto.secret import wipe_bytes
from strongroom.errors import AlreadyExists, InvalidKey, NotFound, UsageError
from strongroom.format.paths import MANIFEST, SEALED_SUFFIX
from strongroom.keys.symmetric import SymmetricKey
from strongroom.model.output import FileOutput
from strongroom.model.reader import SealedModel
from strongroom.model.seal import SealJob, seal_model
from strongroom.model.writer import build_meta
from strongroom.providers import sources
from strongroom.providers.sources import KeySource

__all__ = ["ModelCryptor"]

_KEY_NAME: Final = "license.pem"
_SUFFIX: Final = ".crt"
_MAX_KEY: Final = 64  # bytes of a file that may be a key


class ModelCryptor(ABC):
    """Encrypts and decrypts the models of one type. It keeps nothing: use it from any thread."""

    def generate_crypt_key(self, file: Place | None = None) -> bytes:
        """Write a new key, readable by the user alone, and return it: 44 characters.

        Args:
            file: the key file, or a directory for a ``license.pem``; by default the current one.

        Raises:
            AlreadyExists: there is a file already; keys are never replaced.
            StrongroomError: it cannot be written.
        """
        path = os.fspath(file if file is not None else os.getcwd())
        if os.path.isdir(path):
            path = os.path.join(path, _KEY_NAME)
        encoded = SymmetricKey.generate().encode()
        key = encoded.rstrip()
        wipe_bytes(encoded)
        try:
            output = FileOutput(path, overwrite=False, mode=0o600)
            try:
                output.write(key)
                output.commit()
            except BaseException:
                output.abort()
                raise
        except AlreadyExists as error:
            error.hint = "Give another name. What was encrypted with that key needs it."
            raise
        return key

    def read_crypt_key(self, file: Place) -> tuple[bool, bytes]:
        """``True`` and the key in a key file, 44 characters.

        Raises:
            NotFound, UsageError: there is no such file.
            InvalidKey: it is no key file.
        """
        content = read_foreign_key(os.fspath(file))
        assert content is not None
        text = bytes(content.buffer)
        try:
            return True, SymmetricKey.parse(text).encode().rstrip()
        except InvalidKey:
            raise InvalidKey(
                f"{os.fspath(file)} is not a key file of model_cryptor.",
                hint="It holds 44 characters of base64url. Make one: generate_crypt_key()",
            ) from None
        finally:
            wipe_bytes(text)

    def encrypt(
        self,
        model: Place,
        crypt_key: KeySource,
        crypted_model: Place,
        *,
        map_location: Any = None,
    ) -> None:
        """Seal a model file or directory, as it is: nothing in it is loaded.

        Args:
            model: the path.
            crypt_key: the path of a key file, its content as ``bytes``, or any key of strongroom.
            crypted_model: where the sealed file or directory shall be. In a directory that is there
                (and no sealed model) it gets the name of the model with ``.crt``. A model that is
                there is replaced, in one step when the new one is complete; a key is not.
            map_location: of no consequence, since nothing is loaded.

        Raises:
            StrongroomError: nothing is left at the destination then, and what was there stays.
        """
        source = os.fspath(model)
        destination = os.fspath(crypted_model)
        if not os.path.exists(source):
            raise NotFound(f"{source}: no such file or directory.", hint=_what_to_give(source))
        if os.path.isdir(destination) and not _is_sealed(destination):
            destination = os.path.join(destination, os.path.basename(os.path.abspath(source)) + _SUFFIX)
        recipients = sources.recipients(crypt_key)
        _refuse_to_replace(destination, os.path.isdir(source))
        job = SealJob(recipients, build_meta(None, None, None), overwrite=True)
        seal_model(source, destination, job)

    def decrypt(
        self, model: Place, crypt_key: KeySource, *, map_location: Any = "cpu", **options: Any
    ) -> Any:
        """Load an encrypted model: sealed, or made by model_cryptor.

        Args:
            model: the path; or the URL of a sealed model.
            crypt_key: as for :meth:`encrypt`.
            map_location: where tensors go, as in ``torch.load``; PyTorch only.
            options: for the framework's loader in :mod:`strongroom.loaders`, by its own names.

        Returns:
            What the class of the model type says.

        Raises:
            StrongroomError: the model cannot be opened, is not authentic, or is of another type.
            the framework's errors: as its own loader raises them.
        """
        with opened(model, crypt_key) as sealed:
            return self._load(sealed, map_location, options)

    @abstractmethod
    def _load(self, model: SealedModel, map_location: Any, options: dict[str, Any]) -> Any: ...


def _what_to_give(source: str) -> str | None:
    folder, prefix = os.path.split(os.path.abspath(source))
    if prefix and os.path.isdir(folder):
        beside = [name for name in os.listdir(folder) if name.startswith(prefix + ".")]
        if beside:  # Paddle and TensorFlow call several files by what they have in common
            return f"There is {min(beside)}. For a model of several files give their directory."
    return None


def _is_sealed(directory: str) -> bool:
    return os.path.exists(os.path.join(directory, MANIFEST + SEALED_SUFFIX))


def _refuse_to_replace(destination: str, directory: bool) -> None:
    """Refuse to replace a key, a directory that is no sealed model, and one kind by the other."""
    if os.path.isdir(destination):
        if not _is_sealed(destination):
            raise AlreadyExists(f"{destination} is there already, and is no sealed model.")
        if not directory:
            raise UsageError(
                f"{destination} is a sealed directory, and the model is one file.",
                hint="Give another name, or remove it first.",
            )
    elif os.path.isfile(destination):
        if directory:
            raise UsageError(
                f"{destination} is a file, and the model is a directory.",
                hint="Give another name, or remove it first.",
            )
        if _is_key(destination):
            raise AlreadyExists(
                f"{destination} is a key, which is never replaced.", hint="Give another name."
            )


def _is_key(path: str) -> bool:
    if not 0 < os.path.getsize(path) <= _MAX_KEY:
        return False
    try:
        sources.identities(os.path.abspath(path))
    except InvalidKey:
        return False
    return True
