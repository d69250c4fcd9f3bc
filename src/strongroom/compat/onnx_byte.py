"""The one-byte scheme of an article on decrypting models in a Triton repository agent.

A file whose name ends in ``.onnx`` is a zero byte and then the model; all other files are as they were.
This is no encryption: there is no key, and nothing is protected, neither secrecy nor integrity.
"""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.compat.base import Codec, PlainFile, Write
from strongroom.compat.streams import pieces, read_range
from strongroom.errors import FormatError
from strongroom.model.storage import Source

__all__ = ["OnnxByteCodec"]

_MARK = b"\x00"


class OnnxByteCodec(Codec):
    """A zero byte before an ONNX model. Read only, in constant memory."""

    name = "onnx-byte"
    title = "one-byte ONNX scheme of the Triton repository agent article"
    unprotected = (
        "It is no encryption at all: one zero byte stands before the model, and there is no key."
    )
    takes_key = False

    def recognises(self, path: str, head: bytes) -> bool:
        return path.endswith(".onnx") and head.startswith(_MARK)

    def leaves_plain(self, path: str) -> bool:
        return not path.endswith(".onnx")

    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        # The original drops the byte whatever it is, and so spoils a model that is in clear.
        if source.size == 0 or read_range(source, 0, 1) != _MARK:
            raise FormatError(
                f"{source.name} does not begin with a zero byte.",
                hint="It is in clear already, or is no model.",
            )

        def copy_to(write: Write) -> None:
            pieces(source, 1, source.size, write)

        return [PlainFile(self.plain_path(path), copy_to)]
