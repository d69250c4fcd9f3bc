"""Files in memory in a control group with a limit."""

import contextlib
import os
import re
import subprocess
from pathlib import Path

import pytest
from mounts import PROGRAM, write_key_file
from running import TIMEOUT, environment, wait_for

import strongroom

MIB = 1 << 20


def own_group():
    """The directory of this process's control group of memory, and the name of the file of its limit."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for kind, limit in (("cgroup", "memory.limit_in_bytes"), ("cgroup2", "memory.max")):
        for _, place, found, options, *_ in mounts:
            if found != kind or (kind == "cgroup" and "memory" not in options.split(",")):
                continue
            for line in lines:
                number, controllers, path = line.split(":", 2)
                if (number == "0") == (kind == "cgroup2") and controllers in ("", "memory"):
                    yield Path(place + path), limit


def removed(place):
    """Whether the group is gone; what has run there may not be over yet, and holds it until then."""
    with contextlib.suppress(OSError):
        place.rmdir()
    return not place.exists()


@contextlib.contextmanager
def group_with_limit():
    """A new group below the one of this process; yields its directory and the file of its limit."""
    for above, limit in own_group():
        place = above / f"strongroom-memory-{os.getpid()}"
        try:
            place.mkdir()
        except OSError:
            continue
        try:
            if (place / limit).exists():
                yield place, place / limit
                return
        finally:
            wait_for(lambda place=place: removed(place), "the end of the group")
    pytest.skip("no control group of memory can be made here")


def test_a_group_of_its_own(tmp_path):
    """With too little room the command is not started, and nobody killed; with more it is started."""
    key = write_key_file(tmp_path)
    with (tmp_path / "plain").open("wb") as file:
        file.truncate(128 * MIB)
    strongroom.seal(tmp_path / "plain", tmp_path / "m.sealed", key=key)
    command = [PROGRAM, "run", "-k", key, "--model", tmp_path / "m.sealed", "--backend", "tmpfs"]
    command += ["--", "sh", "-c", "wc -c < {models}/plain"]
    with group_with_limit() as (group, limit):

        def run(room):
            limit.write_text(f"{room}\n")
            into = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', group]
            return subprocess.run(
                [*into, *command],
                capture_output=True,
                text=True,
                check=False,
                timeout=TIMEOUT,
                env=environment(),
            )

        done = run(128 * MIB)
        assert (done.returncode, done.stdout) == (7, ""), done.stderr
        assert re.search(rf"the control group \S*/{group.name} has \d+ left", done.stderr), done.stderr
        done = run(1024 * MIB)
        assert (done.returncode, done.stdout) == (0, f"{128 * MIB}\n"), done.stderr
