"""Keys and plaintext stay where they belong: not in messages, not in core dumps."""

import os
import shutil
import subprocess
import sys

import pytest

import strongroom
from strongroom import SecretBytes, SymmetricKey
from strongroom.testing.raw import pattern

# What the child must not show is derived in it, so that no literal of it lies in its memory.
CHILD = r"""
import hashlib, sys
import strongroom
from strongroom.crypto.secret import SecretBytes, keep_out_of_core_dumps

model = strongroom.open(sys.argv[1], key=sys.argv[2])
plain = model.load()
part = bytearray(10)
model.open().readinto(part)
model.verify()
visible = bytearray(hashlib.shake_256(b"visible").digest(48))
hidden = SecretBytes.take(hashlib.shake_256(b"hidden").digest(48))
print("ready", flush=True)
sys.stdin.read()
"""
SIZE = 3_000_000


def marks(data):
    """Pieces of 32 bytes all over the data, the ends among them."""
    return [data[at : at + 32] for at in range(0, len(data) - 31, (len(data) - 32) // 15)]


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """The core of a process that has a model open and loaded; and the keys of that model."""
    if not shutil.which("gcore"):
        pytest.skip("gcore (Debian: gdb) is not installed")
    place = tmp_path_factory.mktemp("core")
    key = SymmetricKey(SecretBytes(pattern("core dump key", 32)))
    (place / "key").write_bytes(key.encode())
    (place / "plain").write_bytes(pattern("core dump plaintext", SIZE))
    strongroom.seal(place / "plain", place / "sealed", key=key)
    with strongroom.open(place / "sealed", key=key) as model:
        keys = {
            "DEK": bytes(model._keys.dek.buffer),
            "K_payload": bytes(model._keys.payload.buffer),
            "K_header": bytes(model._keys._header.buffer),
            "key": pattern("core dump key", 32),
            "key file": key.encode().strip(b"=\n"),
        }
    command = [sys.executable, "-c", CHILD, place / "sealed", place / "key"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        gcore = subprocess.run(
            ["gcore", "-o", place / "core", str(child.pid)], capture_output=True, check=False
        )
        child.communicate(b"")
    core = place / f"core.{child.pid}"
    if not core.exists():
        pytest.skip(f"this system lets nobody dump a process: {gcore.stderr[-200:]!r}")
    yield core.read_bytes(), keys
    core.unlink()


def test_dump_shows_ordinary_memory(dump):
    """Otherwise the tests below would prove nothing."""
    import hashlib

    core, _ = dump
    found = hashlib.shake_256(b"visible").digest(48) in core
    assert found


def test_dump_holds_no_secret_bytes(dump):
    import hashlib

    core, _ = dump
    found = hashlib.shake_256(b"hidden").digest(48) in core
    assert not found


@pytest.mark.parametrize("name", ["DEK", "K_payload", "K_header", "key", "key file"])
def test_dump_holds_no_key(dump, name):
    core, keys = dump
    found = keys[name] in core
    assert not found


def test_dump_holds_no_plaintext(dump):
    core, _ = dump
    found = sum(mark in core for mark in marks(pattern("core dump plaintext", SIZE)))
    assert found == 0


def test_a_process_of_its_own_cannot_be_dumped(tmp_path):
    """What the command line does first: no core at all, not even for its own user."""
    script = """
import os, signal
from strongroom.crypto.secret import keep_out_of_core_dumps
keep_out_of_core_dumps()
os.kill(os.getpid(), signal.SIGABRT)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert done.returncode == -6
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("flipped", [4096 + 50, 4096 + 65536 + 5])
def test_a_failed_read_leaves_no_memory_in_its_traceback(tmp_path, flipped):
    """Not what was decrypted so far, and nothing that CPython 3.12 would crash on when it collects it."""
    key = SymmetricKey.generate()
    with strongroom.create(tmp_path / "x", key=key, segment_size=65536) as file:
        file.write(pattern("traceback", 20 * 65536))
    data = bytearray((tmp_path / "x").read_bytes())
    data[flipped] ^= 1
    (tmp_path / "x").write_bytes(data)
    for _ in range(5):
        with pytest.raises(strongroom.errors.PayloadTampered) as caught:
            strongroom.open(tmp_path / "x", key=key).read()
        error, found = caught.value, []
        while error is not None:
            trace = error.__traceback__
            while trace is not None:
                for name, value in trace.tb_frame.f_locals.items():
                    if isinstance(value, memoryview):
                        try:
                            found.append((trace.tb_frame.f_code.co_name, name, len(value)))
                        except ValueError:
                            continue  # released
                trace = trace.tb_next
            error = error.__cause__ or error.__context__
        assert found == []
