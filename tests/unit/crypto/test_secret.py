import copy
import ctypes
import gc
import os
import pickle
import resource
import subprocess
import sys

import pytest

from strongroom import SecretBytes
from strongroom.crypto.secret import wipe_bytes
from strongroom.model.memory import address_of


def peek(address, size):
    return ctypes.string_at(address, size)


def test_holds_the_bytes():
    secret = SecretBytes(b"\x01\x02\x03")
    assert len(secret) == 3
    assert bytes(secret.buffer) == b"\x01\x02\x03"
    assert secret == SecretBytes(bytearray(b"\x01\x02\x03"))
    assert secret != SecretBytes(b"\x01\x02\x04")
    assert secret != SecretBytes(b"\x01\x02")
    assert secret != b"\x01\x02\x03"


def test_has_at_least_one_byte():
    with pytest.raises(ValueError, match="at least one byte"):
        SecretBytes(b"")


@pytest.mark.parametrize("show", [repr, str, "{}".format, "{!r}".format])
def test_shows_its_length_only(show):
    assert show(SecretBytes(b"hunter2")) == "<SecretBytes: 7 bytes>"


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_refuses_pickling_and_copying(leak):
    with pytest.raises(TypeError, match="pickled or copied"):
        leak(SecretBytes(b"hunter2"))


def test_cannot_be_a_key_of_a_table():
    with pytest.raises(TypeError):
        hash(SecretBytes(b"x"))


def test_has_no_other_attributes():
    assert not hasattr(SecretBytes(b"x"), "__dict__")


def test_with_block_wipes():
    with SecretBytes(b"hunter2") as secret:
        address = address_of(secret.buffer)
        assert peek(address, 7) == b"hunter2"
    assert peek(address, 7) == bytes(7)


def test_wipe_on_an_exception():
    secret = SecretBytes(b"hunter2")
    with pytest.raises(KeyError), secret:
        raise KeyError
    assert bytes(secret.buffer) == bytes(7)


def test_collection_wipes():
    secret = SecretBytes(b"hunter2")
    view = secret.buffer  # keeps the page mapped, not the object
    del secret
    gc.collect()
    assert bytes(view) == bytes(7)


def test_take_wipes_what_it_took():
    data = b"".join([b"hun", b"ter2"])
    address = id(data) + bytes.__basicsize__ - 1
    assert peek(address, 7) == b"hunter2"
    secret = SecretBytes.take(data)
    assert peek(address, 7) == bytes(7)
    assert bytes(secret.buffer) == b"hunter2"


@pytest.mark.parametrize("size", [0, 1])
def test_shared_constants_are_not_wiped(size):
    one = bytes([65])[:size]
    wipe_bytes(one)
    assert one == b"A"[:size]


def test_random_is_random():
    assert SecretBytes.random(32) != SecretBytes.random(32)
    assert any(SecretBytes.random(32).buffer)


def mapping_flags(address):
    """VmFlags of the mapping that holds ``address``."""
    inside = False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                first, last = (int(part, 16) for part in head.split("-"))
                inside = first <= address < last
            elif inside and head == "VmFlags:":
                return line.split()[1:]
    raise AssertionError("no mapping there")


def test_page_is_left_out_of_core_dumps():
    secret = SecretBytes(b"hunter2")
    assert "dd" in mapping_flags(address_of(secret.buffer))


def test_page_is_locked():
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == 0 and os.geteuid() != 0:
        pytest.skip("RLIMIT_MEMLOCK is 0: nothing can be locked here")
    secret = SecretBytes(b"hunter2")
    assert "lo" in mapping_flags(address_of(secret.buffer))


def test_works_where_nothing_can_be_locked():
    script = """
import ctypes, os, resource
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
try:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
except PermissionError:
    pass  # no privileges to begin with
from strongroom.crypto.secret import SecretBytes
secret = SecretBytes(b"hunter2")
assert bytes(secret.buffer) == b"hunter2"
"""
    # Loaded before the privileges go: the package may lie where nobody else can read.
    preload = "import strongroom.crypto.secret\n"
    subprocess.run([sys.executable, "-c", preload + script], check=True, timeout=60)


def test_keep_out_of_core_dumps():
    script = """
import ctypes, resource
from strongroom.crypto.secret import keep_out_of_core_dumps
keep_out_of_core_dumps()
assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
assert ctypes.CDLL(None).prctl(3, 0, 0, 0, 0) == 0, "PR_GET_DUMPABLE"
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
