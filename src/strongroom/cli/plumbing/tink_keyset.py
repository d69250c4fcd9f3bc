"""``strongroom plumbing tink-keyset``: what Google Tink needs to read the payloads of a model.

A payload is a ciphertext of Tink's AES-GCM-HKDF streaming AEAD. Its key is K_payload, and what Tink
calls the associated data is derived from bundle and path (docs: the specification of the format).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, Final

import typer

from strongroom.cli.keyring import opener
from strongroom.cli.terminal import binary_output, note
from strongroom.cli.verb import Key, PassphraseFd, PassphraseOpens, Source, flag, verb
from strongroom.crypto.derive import ModelKeys
from strongroom.errors import os_errors
from strongroom.keys import unwrap
from strongroom.model.output import FileOutput
from strongroom.model.reader import SealedModel, locate, open_model, read_area

__all__ = ["register", "tink_keyset_json"]

_EXAMPLES = """
strongroom plumbing tink-keyset model.pt.sealed -k key.txt -o keyset.json
strongroom plumbing tink-keyset resnet50.sealed -k key.txt | jq .files
"""

_TYPE_URL: Final = "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey"
_SHA256: Final = 3
_DERIVED_KEY_SIZE: Final = 32
_VARINT, _BYTES = 0, 2


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _streaming_key(key: bytes, segment: int) -> bytes:
    """The protobuf message AesGcmHkdfStreamingKey (tink/proto/aes_gcm_hkdf_streaming.proto)."""
    params = _number(1, segment) + _number(2, _DERIVED_KEY_SIZE) + _number(3, _SHA256)
    return _bytes(2, params) + _bytes(3, key)  # version 0 is left out, as protobuf does


def tink_keyset_json(key: bytes, segments: list[int]) -> dict[str, Any]:
    """A cleartext keyset with one key per segment size; Tink tries all of them."""
    return {
        "primaryKeyId": 1,
        "key": [
            {
                "keyData": {
                    "typeUrl": _TYPE_URL,
                    "value": base64.b64encode(_streaming_key(key, segment)).decode(),
                    "keyMaterialType": "SYMMETRIC",
                },
                "status": "ENABLED",
                "keyId": number,
                "outputPrefixType": "RAW",
            }
            for number, segment in enumerate(segments, 1)
        ],
    }


def _payloads(location: str, model: SealedModel) -> Iterator[tuple[str, str, int, int]]:
    """Of every sealed file: path, path in the sealed directory, offset of the payload, segment size."""
    source, tree = locate(location)
    with ExitStack() as stack:
        stack.callback(source.close)
        if tree is None:
            area = read_area(source)
            yield area.header.path, "", area.size, area.header.segment
            return
        stack.callback(tree.close)
        for info in model.files.values():
            if info.sealed:
                model.content(info.path)  # authenticates its header
                stored = info.path + ".sealed"
                member = tree.source(stored)
                stack.callback(member.close)
                area = read_area(member)
                yield info.path, stored, area.size, area.header.segment


def _document(source: str, keys: list[str] | None, passphrase: bool, fd: int | None) -> dict[str, Any]:
    identities = opener(keys, passphrase, fd)()
    with open_model(source, lambda: identities) as model:
        model_keys = ModelKeys(unwrap(model.header, identities), model.bundle)
        try:
            files, segments = [], []
            for path, stored, offset, segment in _payloads(source, model):
                associated = model_keys.associated_data(path)
                segments.append(segment)
                files.append(
                    {
                        "path": path,
                        **({"stored_as": stored} if stored else {}),
                        "payload_offset": offset,
                        "segment": segment,
                        "associated_data": base64.b64encode(associated).decode(),
                        "associated_data_hex": associated.hex(),
                    }
                )
            keyset = tink_keyset_json(bytes(model_keys.payload.buffer), sorted(set(segments)))
        finally:
            model_keys.wipe()
    return {"keyset": keyset, "files": files}


def tink_keyset(
    source: Source,
    key: Key = None,
    passphrase: PassphraseOpens = False,
    passphrase_fd: PassphraseFd = None,
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Where it goes, readable by you alone; - is stdout."
        ),
    ] = "-",
    force: Annotated[bool, flag("--force", help="Replace FILE.")] = False,
) -> None:
    """Export what Google Tink needs to read the payloads. This is key material.

    A JSON document: keyset is a cleartext Tink keyset, and files says for every file where its
    payload begins and which associated data to give. Whoever has it can read the model, and can
    make files that pass for its own.
    """
    stream = binary_output() if output == "-" else None
    text = json.dumps(_document(source, key, passphrase, passphrase_fd), indent=2).encode() + b"\n"
    if stream is not None:
        with os_errors("standard output"):
            stream.write(text)
            stream.flush()
    else:
        file = FileOutput(output, overwrite=force, mode=0o600)
        try:
            file.write(text)
            file.commit()
        except BaseException:
            file.abort()
            raise
    note("This is key material: whoever has it can read the model.", label="warning: ")


def register(app: typer.Typer) -> None:
    """Add the command."""
    verb(app, "tink-keyset", tink_keyset, _EXAMPLES)
