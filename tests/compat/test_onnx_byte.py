"""The one-byte scheme: what it is, and what is refused."""

import pytest
from big_files import PATTERN
from foreign import PIECE, decrypted, memory_source, peak_memory, secret
from hypothesis import given
from hypothesis import strategies as st

from strongroom.compat.onnx_byte import OnnxByteCodec
from strongroom.errors import FormatError, InvalidKey, UsageError


def test_vector():
    assert decrypted(OnnxByteCodec(None), bytes.fromhex("006f6e6e78"), "m.onnx") == {"m.onnx": b"onnx"}


@given(data=st.binary(max_size=100), request=st.integers(1, 40))
def test_the_rest_is_the_model(data, request):
    assert decrypted(OnnxByteCodec(None), b"\0" + data, "m.onnx", request) == {"m.onnx": data}


@pytest.mark.parametrize("size", [0, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_sizes_around_the_pieces(size):
    data = (PATTERN * 4)[:size]
    assert decrypted(OnnxByteCodec(None), b"\0" + data, "m.onnx") == {"m.onnx": data}


@pytest.mark.parametrize("data", [b"", b"\x08\x07onnx", b"\x01onnx"])
def test_without_the_zero_byte(data):
    codec = OnnxByteCodec(None)
    with pytest.raises(FormatError, match="zero byte"):
        codec.decrypt(memory_source(data), "m.onnx")
    assert not codec.recognises("m.onnx", data)


def test_which_files():
    codec = OnnxByteCodec(None)
    assert codec.recognises("1/model.onnx", b"\0\x08")
    assert not codec.leaves_plain("1/model.onnx")
    assert codec.leaves_plain("config.pbtxt")
    assert not codec.recognises("config.pbtxt", b"\0")
    assert "no encryption" in codec.unprotected


def test_no_key_and_no_export():
    with pytest.raises(InvalidKey, match="has no key"):
        OnnxByteCodec(secret(b"key"))
    codec = OnnxByteCodec(None)
    assert not codec.writes
    with pytest.raises(UsageError, match="not written"):
        codec.encrypt(None, "", None)


def test_big_file_in_constant_memory(tmp_path):
    with open(tmp_path / "f", "wb") as file:
        file.write(b"\0")
        for _ in range(256):
            file.write(PATTERN)
    assert peak_memory("big_files", "decrypt", "onnx-byte", "", tmp_path / "f", 256) < 32 << 20
    (tmp_path / "f").unlink()
