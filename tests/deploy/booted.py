"""systemd as the first process of namespaces of its own, over this machine's files, of which it changes none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TIMEOUT = 120

# The environment as an operator would have installed it, wherever this one lies: services see no homes.
_BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mkdir -p opt/packages opt/python opt/source old
mount --bind "$2" opt/packages
mount --bind "$3" opt/source
mount --rbind "$1/../share" mnt
mount --bind "$4" opt/python
mount -t tmpfs -o mode=0755 tmpfs dev
mkdir dev/pts dev/shm
for one in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "ptmx 5 2" "fuse 10 229"; do
  set -- $one
  mknod -m 666 "dev/$1" c "$2" "$3"
done
mount -t devpts devpts dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs tmpfs tmp
rm -rf opt/strongroom etc/strongroom etc/machine-id etc/systemd/system/*
: > etc/machine-id
for one in systemd-binfmt.service systemd-modules-load.service systemd-remount-fs.service systemd-sysctl.service \\
  systemd-timesyncd.service systemd-tmpfiles-setup-dev.service systemd-udevd.service systemd-update-utmp.service \\
  proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount sys-kernel-config.mount \\
  sys-kernel-debug.mount sys-kernel-tracing.mount; do
  ln -s /dev/null "etc/systemd/system/$one"
done
pivot_root . old
umount -l old
# As systemd does where it is in no container: credentials come into a service by propagation.
mount --make-rshared /
# An interpreter that was built in a home looks there for its library.
echo /opt/python/lib > /etc/ld.so.conf.d/0-python.conf
ldconfig
/opt/python/bin/python3 -m venv --without-pip /opt/strongroom
printf '/opt/packages\\n/opt/source\\n' > "$(echo /opt/strongroom/lib/python3*/site-packages)/strongroom.pth"
printf '#!/opt/strongroom/bin/python3\\nfrom strongroom.cli import main\\nmain()\\n' > /opt/strongroom/bin/strongroom
chmod 755 /opt/strongroom/bin/strongroom
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=sysinit.target \\
  --log-target=journal --show-status=0
"""


def why_not() -> str | None:
    """What is missing here, if something is."""
    if os.geteuid() != 0:
        return "namespaces with a systemd of their own take root"
    for one in ("/lib/systemd/systemd", shutil.which("nsenter")):
        if one is None or not os.path.exists(one):
            return "systemd and nsenter are not installed"
    if " cgroup2 " not in Path("/proc/mounts").read_text():
        return "there are no control groups of version 2"
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--cgroup",
            "--net",
            "mount",
            "-t",
            "proc",
            "proc",
            "/proc",
        ],
        capture_output=True,
        check=False,
    )
    return None if done.returncode == 0 else "this machine allows no namespaces"


def _own_group() -> Path:
    """The directory of this process's control group, version 2."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    mounted = next(fields[1] for fields in mounts if fields[2] == "cgroup2")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return Path(mounted + next(line[3:] for line in lines if line.startswith("0::")))


class Machine:
    """A system that has started.

    Args:
        place: an empty directory.

    Attributes:
        share: a directory of this machine, there as ``/mnt``.
    """

    def __init__(self, place: Path) -> None:
        self.share = place / "share"
        self.share.mkdir()
        (place / "mounts").mkdir()
        packages = sysconfig.get_path("purelib")
        self._log = (place / "boot.log").open("w+b")
        # A control group of its own, whose children are the services.
        self._group = _own_group() / f"strongroom-test-{os.getpid()}"
        self._group.mkdir()
        self._process = subprocess.Popen(
            [
                *(
                    "bash",
                    "-c",
                    'echo $$ > "$0/cgroup.procs" && exec setpriv --pdeathsig KILL "$@"',
                    self._group,
                ),
                *(
                    "unshare",
                    "--mount",
                    "--pid",
                    "--fork",
                    "--kill-child",
                    "--cgroup",
                    "--uts",
                    "--ipc",
                    "--net",
                ),
                *(
                    "bash",
                    "-c",
                    _BOOT,
                    "boot",
                    place / "mounts",
                    packages,
                    ROOT / "src",
                    sys.base_prefix,
                ),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._leader = ""
        try:
            self._await_start()
        except BaseException:
            self.close()
            raise

    def _await_start(self) -> None:
        end = time.monotonic() + TIMEOUT
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while True:
            assert self._process.poll() is None, self._said()
            assert time.monotonic() < end, self._said()
            found = children.read_text().split() if children.exists() else []
            if found and os.path.basename(os.readlink(f"/proc/{found[0]}/exe")) == "systemd":
                self._leader = found[0]
                done = self.run("systemctl", "is-active", "sysinit.target", check=False)
                if done.stdout.strip() == "active":
                    return
            time.sleep(0.1)

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def run(
        self, *command: object, check: bool = True, input: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as root."""
        path = "/opt/strongroom/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            [
                *(
                    "nsenter",
                    "--target",
                    self._leader,
                    "--mount",
                    "--pid",
                    "--net",
                    "--uts",
                    "--ipc",
                    "--cgroup",
                ),
                *(
                    "env",
                    "-i",
                    "-C",
                    "/",
                    f"PATH={path}",
                    *(f"{key}={value}" for key, value in environment.items()),
                ),
                *map(str, command),
            ],
            input=input,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done

    def start(self, unit: str) -> None:
        """Start a unit, which has told systemd that it is ready when this returns."""
        done = self.run("systemctl", "start", unit, check=False)
        assert done.returncode == 0, (
            self.run("systemctl", "status", "--no-pager", "--lines=0", unit, check=False).stdout,
            self.log(unit),
        )

    def log(self, unit: str) -> str:
        """What a unit has written."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def property(self, unit: str, name: str) -> str:
        """What systemd says of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def close(self) -> None:
        """End it, and all that runs in it."""
        self._process.kill()
        self._process.wait()
        self._log.close()
        end = time.monotonic() + TIMEOUT
        while "populated 1" in (self._group / "cgroup.events").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        for path, _, _ in os.walk(self._group, topdown=False):
            os.rmdir(path)
