"""What a process has for itself: mounts that reach nobody else, and, without root, its files in ``/proc``."""

import os
import subprocess
import sys

import pytest
from running import TIMEOUT, needs_namespaces

pytestmark = [
    needs_namespaces,
    pytest.mark.skipif(os.getuid() != 0, reason="takes root to be somebody else, and to share mounts"),
]

NOBODY = 65534

MOUNT = """
import os, sys
from strongroom.mount.private import enter_mounts, mount_memory
child = os.fork()
if child == 0:
    enter_mounts()
    mount_memory(sys.argv[1])
    open(sys.argv[1] + "/file", "w").close()
    os._exit(len(os.listdir(sys.argv[1])))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.listdir(sys.argv[1]))
"""

DUMPABLE = f"""
import ctypes, os
from strongroom.mount import private
os.setgroups([])
os.setresgid(*[{NOBODY}] * 3)
os.setresuid(*[{NOBODY}] * 3)
prctl = ctypes.CDLL(None).prctl
assert prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
try:
    private.enter_mounts()
except PermissionError:
    print("refused")
else:
    print(os.getuid(), prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""


def python(code, *arguments, before=()):
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
    return done.stdout.strip()


def test_what_is_mounted_is_not_seen_outside(tmp_path):
    """Where mounts are shared between namespaces too, as systemd has them."""
    shared = ["unshare", "--mount", "sh", "-c", 'mount --make-rshared / && exec "$@"', "sh"]
    assert python(MOUNT, tmp_path, before=shared) == "1 []"


def test_who_is_not_root_stays_undumpable():
    said = python(DUMPABLE)
    if said == "refused":
        pytest.skip("user namespaces are not allowed here")
    assert said == f"{NOBODY} 0"
