"""What reading a file of model_cryptor writes, seen from outside: system calls, by strace."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from cryptography.fernet import Fernet

KEY = Fernet.generate_key()
MARK = b"PLAINTEXTOFMODEL"
CALLS = (
    "write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,splice,mmap,fallocate,ftruncate"
)
MEMORY = re.compile(r"/memfd:|/dev/(null|pts/|tty)|pipe:|socket:|anon_inode:")
SCRIPT = """
import sys
from strongroom.compat.model_cryptor import CryptorFactory, ModelType
cryptor = CryptorFactory.instance(ModelType.MODEL_TORCH)
if sys.argv[1] == "leak":
    open("leak", "wb").write(cryptor.decrypt("m.pth.crt", "license.pem")["w"].numpy().tobytes())
else:
    assert cryptor.decrypt("m.pth.crt", "license.pem")["w"].numel() == 8 << 20
"""

traced = pytest.mark.skipif(
    shutil.which("strace") is None
    or subprocess.run(["strace", "true"], capture_output=True).returncode != 0,
    reason="needs strace (apt-get install strace), and leave to trace",
)


def outside_of_memory(log):
    """The calls that write to a file, or map one for it, and the file is on a disk."""
    found = []
    for line in log.splitlines():
        call = re.match(r"\d+\s+(\w+)\((.*)", line)
        if not call:
            continue
        name, arguments = call.groups()
        if name == "mmap" and not ("MAP_SHARED" in arguments and "PROT_WRITE" in arguments):
            continue
        targets = re.findall(r"\d+<([^>]*)>", arguments)
        if targets and not any(MEMORY.match(target) for target in targets):
            found.append(line[:200])
    return found


@traced
@pytest.mark.parametrize("what", ["load", "leak"])
def test_no_plaintext_on_a_disk(tmp_path, what):
    weights = torch.frombuffer(bytearray(MARK * (8 << 16)), dtype=torch.uint8)
    torch.save({"w": weights}, tmp_path / "m.pth")
    (tmp_path / "m.pth.crt").write_bytes(Fernet(KEY).encrypt((tmp_path / "m.pth").read_bytes()))
    (tmp_path / "license.pem").write_bytes(KEY)
    (tmp_path / "m.pth").unlink()
    done = subprocess.run(
        [
            *("strace", "-f", "-y", "-qq", "-s", "64", "-o", tmp_path / "log", "-e", "signal=none"),
            *("-e", f"trace={CALLS}", sys.executable, "-B", "-c", SCRIPT, what),
        ],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = outside_of_memory((tmp_path / "log").read_text(errors="replace"))
    assert bool(written) == (what == "leak"), written[:5]
    if what == "leak":
        assert MARK.decode() in "".join(written)
    left = {path.name for path in tmp_path.iterdir()} - {"log", "leak"}
    assert left == {"m.pth.crt", "license.pem"}
