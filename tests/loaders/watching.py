"""How much memory a process has, files in memory included; run as a program it watches another one.

    python watching.py PID

prints a line when it begins, and the highest number of bytes when its standard input ends. It is a
process of its own, since a framework that loads lets no other thread of Python run.
"""

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path


def status(pid, field):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(field)


def files_in_memory(pid):
    """Bytes of open memory files, and of private directories in /dev/shm."""
    found = {}
    with contextlib.suppress(OSError):  # one that goes meanwhile
        for place in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(place).startswith("/memfd:"):
                    found[place.stat().st_ino] = place.stat().st_blocks << 9
        for place in Path("/dev/shm").glob(f"strongroom-{pid}-*/**/*"):
            with contextlib.suppress(OSError):
                found[place.lstat().st_ino] = place.lstat().st_blocks << 9
    return sum(found.values())


def in_use(pid):
    """Bytes of memory of a process; what is mapped of memory files is not counted twice."""
    own = status(pid, "RssAnon") + status(pid, "RssFile")
    return own + max(status(pid, "RssShmem"), files_in_memory(pid))


@contextlib.contextmanager
def watched():
    """A list that gets the highest number of bytes of this process during the block."""
    highest = []
    command = [sys.executable, "-S", __file__, str(os.getpid())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        watcher.stdout.readline()
        yield highest
        watcher.stdin.close()
        highest.append(int(watcher.stdout.readline()))


def main():
    pid, highest = int(sys.argv[1]), 0
    print("watching", flush=True)
    while not select.select([sys.stdin], [], [], 0.0005)[0]:
        highest = max(highest, in_use(pid))
    print(highest)


if __name__ == "__main__":
    main()
