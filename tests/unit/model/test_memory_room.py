"""Whether files in memory have room, as the kernel says it in its files."""

import pytest

from strongroom.errors import StorageError
from strongroom.model.memory_room import check_room, memory_left

MIB = 1 << 20


def lay_out(place, *, cgroup, mounts, groups=(), available=1 << 40, swap=0):
    """A ``/proc`` and mounted hierarchies below ``place``, with the names that Linux gives them."""
    (place / "proc/self").mkdir(parents=True)
    memory = f"MemTotal: 1 kB\nMemAvailable: {available >> 10} kB\nSwapFree: {swap >> 10} kB\n"
    (place / "proc/meminfo").write_text(memory + "HugePages_Free:  0\n")
    (place / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in cgroup))
    lines = (
        f"{30 + number} 24 0:{number} {root} {place}/{at} rw,relatime shared:9 - {kind} {kind} {options}\n"
        for number, (root, at, kind, options) in enumerate(mounts)
    )
    (place / "proc/self/mountinfo").write_text("".join(lines))
    for group, files in dict(groups).items():
        (place / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / group / name).write_text(f"{text}\n")
    return str(place / "proc")


def modern(limit, used, stat="anon 1\nfile 2"):
    return {"memory.max": limit, "memory.current": used, "memory.stat": stat}


def old(limit, used, stat="inactive_file 99999999999"):
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}


UNIFIED = ("/", "sys/cgroup", "cgroup2", "rw,nsdelegate")
MEMORY = ("/", "sys/memory", "cgroup", "rw,memory")
CPU = ("/", "sys/cpu", "cgroup", "rw,cpu")
HYBRID = ["5:cpu:/a", "4:memory:/a/b", "0::/other"]
NONE_OLD = 0x7FFFFFFFFFFFF000

# What there is, and how much of it is left: by which group, or none of them.
LAYOUTS = {
    "own group": (["0::/a/b"], [UNIFIED], {"sys/cgroup/a/b": modern(900, 400)}, 500, "/a/b"),
    "group above": (
        ["0::/a/b"],
        [UNIFIED],
        {"sys/cgroup/a/b": modern("max", 400), "sys/cgroup/a": modern(1000, 700)},
        300,
        "/a",
    ),
    "cached files are given back": (
        ["0::/a"],
        [UNIFIED],
        {
            "sys/cgroup/a": modern(
                1000, 1000, "shmem 500\ninactive_file 200\nactive_file 50\nslab_reclaimable 5"
            )
        },
        255,
        "/a",
    ),
    "container": (["0::/"], [UNIFIED], {"sys/cgroup": modern(1000, 300)}, 700, "/"),
    "namespace elsewhere": (["0::/../../x"], [UNIFIED], {"sys/cgroup": modern(1000, 300)}, 700, "/"),
    "part of a hierarchy": (
        ["0::/docker/1/in"],
        [("/docker/1", "sys/cgroup", "cgroup2", "rw")],
        {"sys/cgroup/in": modern(1000, 100), "sys/cgroup": modern(1000, 300)},
        700,
        "/",
    ),
    "a name with blanks": (
        ["0::/a b"],
        [("/", "sys/the\\040groups", "cgroup2", "rw")],
        {"sys/the groups/a b": modern(1000, 300)},
        700,
        "/a b",
    ),
    "version 1": (
        HYBRID,
        [CPU, MEMORY, UNIFIED],
        {"sys/memory/a/b": old(1000, 400, "inactive_file 900\ntotal_inactive_file 10")},
        610,
        "/a/b",
    ),
    "version 1, container of other names": (
        ["4:memory:/docker/1"],
        [("/docker/1", "sys/memory", "cgroup", "rw,memory")],
        {"sys/memory": old(1000, 400)},
        600,
        "/",
    ),
    "more used than allowed": (["0::/a"], [UNIFIED], {"sys/cgroup/a": modern(1000, 1200)}, 0, "/a"),
    "no limit": (
        HYBRID,
        [CPU, MEMORY, UNIFIED],
        {"sys/memory/a/b": old(NONE_OLD, 400), "sys/cgroup/other": modern("max", 400)},
        None,
        "",
    ),
    "no control groups": ([], [], {}, None, ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_control_groups(tmp_path, layout):
    cgroup, mounts, groups, room, group = LAYOUTS[layout]
    proc = lay_out(tmp_path, cgroup=cgroup, mounts=mounts, groups=groups)
    if room is None:
        check_room(1 << 39, swapped=False, proc=proc)
        return
    check_room(room, swapped=False, proc=proc)
    assert memory_left(proc) == room
    with pytest.raises(StorageError, match=f"control group {group} has {room} left") as caught:
        check_room(room + 1, swapped=False, proc=proc)
    assert "--memory" in caught.value.hint


def test_the_machine(tmp_path):
    proc = lay_out(tmp_path, cgroup=[], mounts=[], available=4 * MIB, swap=2 * MIB)
    check_room(4 * MIB, swapped=False, proc=proc)
    check_room(6 * MIB, swapped=True, proc=proc)
    assert memory_left(proc) == 4 * MIB
    for size, swapped in ((4 * MIB + 1, False), (6 * MIB + 1, True)):
        with pytest.raises(StorageError, match=f"{4 * MIB} are available"):
            check_room(size, swapped=swapped, proc=proc)


def test_where_nothing_is_said(tmp_path):
    check_room(1 << 40, swapped=False, proc=str(tmp_path))
    assert memory_left(str(tmp_path)) >= 1 << 40
