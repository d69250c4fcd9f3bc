"""What codecs leave in memory: nothing of what turned out not to be authentic, and no copies of keys."""

import subprocess
import sys

import pytest
import torch
from foreign import secret
from tensorizer import EncryptionParams

from strongroom.compat import gramine_parallel, sgx_pytorch, tensorizer
from strongroom.compat.gramine_cipher import GroupDecryptor, GroupEncryptor, NodeKeys
from strongroom.compat.gramine_worker import READS
from strongroom.compat.gramine_writer import entries
from strongroom.crypto.secret import wipe_bytes
from strongroom.errors import ForeignTampered, StrongroomError
from strongroom.testing.memory import BytesSource

KEY = bytes(range(60, 92))


@pytest.fixture
def wiped(monkeypatch):
    """What the modules wiped: as it was before, and itself."""
    found = []

    def wipe(data):
        found.append((bytes(bytearray(data)), data))
        wipe_bytes(data)

    for module in (gramine_parallel, tensorizer):
        monkeypatch.setattr(module, "wipe_bytes", wipe)
    yield found
    assert not any(any(data) for _, data in found)


@pytest.mark.parametrize("last", [0, 5, 95])
def test_a_group_of_which_one_node_is_not_authentic(last):
    """Its nodes are decrypted from the last to the first; the first is wrong."""
    encryptor, decryptor = GroupEncryptor(), GroupDecryptor()
    size = (last + 1) * 4096
    encryptor.plaintext[:size] = b"m" * size
    keys = NodeKeys(secret(KEY)).of_group(0)[1:]
    tags = encryptor.seal(keys, size)
    node = entries(keys[: last + 1], tags)
    for position in (None, 4096, 8191):
        decryptor.nodes[:] = encryptor.nodes
        if position is not None:
            decryptor.nodes[position] ^= 1
        assert decryptor.open(node, 0, last) is (position is None)
        assert any(decryptor.plaintext) is (position is None)


def test_a_tensor_that_is_not_authentic(monkeypatch):
    made = []

    def empty(*arguments, **options):
        made.append(real(*arguments, **options))
        return made[-1]

    real = torch.empty
    encrypted = sgx_pytorch.encrypt_tensor(torch.ones(5000), secret(KEY[:16]))
    encrypted[-1] ^= 1
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ForeignTampered):
        sgx_pytorch.decrypt_tensor(encrypted, secret(KEY[:16]), "w")
    assert [len(one) for one in made] == [5000]
    assert not made[0].any()


def test_what_processes_are_sent(wiped, tmp_path):
    with (
        open(tmp_path / "f", "wb+") as file,
        gramine_parallel._pool(1, READS, file.fileno(), 4096, secret(KEY)),
    ):
        assert [KEY in before for before, _ in wiped] == [True, True]


def test_a_key_for_tensorizer(wiped):
    EncryptionParams(key=KEY)  # it is one that the package takes
    codec = tensorizer.TensorizerCodec(secret(KEY), {})
    (file,) = codec.decrypt(BytesSource(b"|TZR|" + bytes(100)), "m.tensors")
    with pytest.raises(StrongroomError):
        file.copy_to(lambda piece: None)
    assert [before for before, _ in wiped] == [KEY]


UNDUMPABLE = """
import ctypes, resource
from strongroom.compat import gramine_worker
gramine_worker.serve = lambda tasks, answers: None
gramine_worker.main()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0])
"""


def test_processes_are_not_dumped():
    done = subprocess.run([sys.executable, "-c", UNDUMPABLE], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0"], done.stderr
