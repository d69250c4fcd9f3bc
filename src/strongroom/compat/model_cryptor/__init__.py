"""In place of the model_cryptor package: its names, its calls, its key files; sealed files instead of Fernet.

::

    from strongroom.compat.model_cryptor import CryptorFactory, ModelType

    cryptor = CryptorFactory.instance(ModelType.MODEL_TORCH)
    cryptor.encrypt(model="resnet18.pth", crypt_key="license.pem", crypted_model="resnet18.pth.crt")
    model = cryptor.decrypt("resnet18.pth.crt", crypt_key="license.pem", map_location="cpu")

What is different:

- All nine model types work, with directories too.
- ``encrypt`` writes a sealed file, byte for byte of the source; nothing is unpickled for it. ``decrypt``
  reads these, and the Fernet files of model_cryptor.
- Failures raise errors of :mod:`strongroom.errors`; nothing is half written, and no key is replaced.
- ``decrypt`` of a PyTorch model makes tensors, containers and ``torch.nn.Module`` objects. A pickle
  with anything else, which could be any code, needs ``weights_only=False``.

One key serves both formats: its 32 bytes wrap the random key of a sealed file (AES-256 key wrap), and
its halves are the two keys of Fernet (HMAC-SHA256, AES-128). No key of one is a key of the other, and
neither format takes the files of the other. But a key that has made Fernet files is worth 128 bits and
not 256, in sealed files too, since each half can be searched for by itself; a key derived from it would
be worth no more, and ``-k license.pem`` would not open what is written here.
"""

from __future__ import annotations

from strongroom.compat.model_cryptor.cryptor import ModelCryptor
from strongroom.compat.model_cryptor.factory import CryptorFactory, ModelType

__all__ = ["CryptorFactory", "ModelCryptor", "ModelType"]
