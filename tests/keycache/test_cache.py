"""The key cache as a process, against a server that can lie, hang and go away."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from caches import Cache, LocalCache, eventually
from release_stub import BUNDLE, StubServer

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AlreadyExists,
    NotAuthorised,
    NotFound,
    ReleaseDenied,
    ServerUnavailable,
    UsageError,
)
from strongroom.format.encoding import b64url
from strongroom.keycache import server
from strongroom.keycache.config import Config, read_config, user_id
from strongroom.keycache.rules import Allow, KeyRule
from strongroom.keycache.sockets import listen
from strongroom.providers.unix_socket import MAX_REQUEST, frame
from strongroom.release.binding import WantedKey
from strongroom.release.names import KeyName

WANTED = WantedKey(KeyName("m", 1), BUNDLE)
REQUEST = {"v": 1, "op": "key", **WANTED.to_json()}


def given(cache, wanted=WANTED):
    key = cache.client.key(wanted)
    return bytes(key.buffer)


ASKERS = """
import os, sys, time
from strongroom.providers.unix_socket import KeyCache
from strongroom.release.binding import WantedKey
from strongroom.release.names import KeyName
cache, wanted = KeyCache(sys.argv[1]), WantedKey(KeyName("m", 1), bytes(range(16)))
start, children = time.monotonic() + 0.5, []
for _ in range(50):
    child = os.fork()
    if not child:
        time.sleep(max(0, start - time.monotonic()))
        key = cache.key(wanted)  # kept: a key that nobody has is wiped
        os._exit(0 if bytes(key.buffer) == bytes(range(32)) else 1)
    children.append(child)
print(sum(os.waitpid(child, 0)[1] == 0 for child in children))
"""


def test_one_release_for_fifty_processes(stub, process):
    stub.add("m", bytes(range(32)))
    honest = stub._answer

    def slowly(path, *rest):
        if path == "/v1/release":
            time.sleep(1.5)  # until all of them wait
        return honest(path, *rest)

    stub._answer = slowly
    done = subprocess.run(
        [sys.executable, "-c", ASKERS, process.uri], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "50", done.stderr
    assert stub.count("/v1/release") == 1
    status = process.status()
    assert (status["releases"], status["leases"][0]["served"]) == (1, 50)


def test_current_and_numbered(stub, cache):
    first, second = stub.add("m"), stub.add("m")
    for key, dek in (("m@1", first), ("m@2", second), ("m", second)):
        wanted = WantedKey(KeyName.parse(key), BUNDLE)
        assert given(cache, wanted) == dek
    assert sorted(one["version"] for one in cache.status()["leases"]) == [1, 2, 2]


def test_an_outage_within_the_lease_is_not_noticed(stub, cache):
    dek = stub.add("m")
    stub.lease = 4
    assert given(cache) == dek
    end = datetime.fromisoformat(cache.status()["leases"][0]["not_after"])
    stub.stop()
    served = 0
    while True:
        asked = datetime.now(UTC)
        try:
            key = cache.client.key(WANTED)
        except ServerUnavailable:
            break
        assert asked < end
        assert bytes(key.buffer) == dek
        served += 1
        time.sleep(0.02)
    assert served > 10
    assert datetime.now(UTC) >= end
    assert cache.status()["leases"] == []
    assert "are not renewed yet" in cache.log.read_text()
    stub.start()
    time.sleep(2.1)  # for so long a failure is repeated
    assert given(cache) == dek


def test_renewed(stub, cache):
    dek = stub.add("m")
    stub.lease = 2
    cache.client.key(WANTED)
    first = cache.status()["leases"][0]["not_after"]
    eventually(lambda: cache.status()["renewals"] >= 3)
    assert cache.status()["leases"][0]["not_after"] > first
    assert given(cache) == dek
    assert stub.count("/v1/release") == 1


def test_many_leases_are_renewed_together(stub, cache):
    stub.lease = 4
    for index in range(40):
        stub.add(f"m{index}")
        cache.client.key(WantedKey(KeyName(f"m{index}"), BUNDLE))
    eventually(lambda: cache.status()["renewals"] >= 40)
    assert max(len(body["leases"]) for body in stub.requests if "leases" in body) <= 32
    assert len(cache.status()["leases"]) == 40


@pytest.mark.parametrize("code", ["revoked", "evicted", "something new"])
def test_withdrawn_at_renewal(stub, cache, code):
    stub.add("m")
    stub.lease = 4
    cache.client.key(WANTED)
    end = datetime.fromisoformat(cache.status()["leases"][0]["not_after"])
    stub.refuse["m"] = code
    eventually(lambda: not cache.status()["leases"])
    assert datetime.now(UTC) < end
    with pytest.raises(ReleaseDenied) as caught:
        cache.client.key(WANTED)
    assert caught.value.code == code
    assert f"withdrew it: {code}" in cache.log.read_text()


def test_evidence_anew(stub, cache):
    dek = stub.add("m")
    stub.lease = 2
    cache.client.key(WANTED)
    honest = stub._renew

    def renew(body):
        stub.refuse["m"] = "attest-again"
        try:
            return honest(body)
        finally:
            del stub.refuse["m"]

    def thrice():
        # A machine so busy that it has let the lease end begins again: test_holder.py has clocks of its own.
        assert given(cache) == dek
        return cache.status()["releases"] >= 3

    stub._renew = renew
    eventually(thrice)
    assert len(cache.status()["leases"]) == 1


def test_answers_of_others_are_not_taken_for_renewals(stub, cache):
    """Whoever sits between can keep the server's answers back, and make none."""
    stub.add("m")
    stub.lease = 4
    cache.client.key(WANTED)
    end = datetime.fromisoformat(cache.status()["leases"][0]["not_after"])
    kept = []
    stub.forge = lambda answer: kept.append(answer) or {**answer, "signature": b64url(bytes(64))}
    eventually(lambda: not cache.status()["leases"])
    assert kept
    assert datetime.now(UTC) >= end


def test_failures_are_remembered_for_a_moment(stub, cache):
    stub.add("m")
    stub.refuse["m"] = "policy"
    began = time.monotonic()
    while time.monotonic() < began + 1:
        with pytest.raises(ReleaseDenied):
            cache.client.key(WANTED)
    # A second one is asked for after two seconds.
    assert stub.count("/v1/release") <= 1 + (time.monotonic() - began) / 2
    del stub.refuse["m"]
    eventually(lambda: _given(cache))


def _given(cache):
    try:
        return cache.client.key(WANTED)
    except ReleaseDenied:
        return None


def test_the_end(stub, process):
    stub.add("m")
    process.client.key(WANTED)
    assert process.stop() == 0
    assert stub.ended == list(stub.leases)
    assert not process.socket.exists()
    assert os.listdir(process.socket.parent) == ["keys.sock.lock"]
    with pytest.raises(ServerUnavailable, match="no key cache"):
        process.client.key(WANTED)


def test_the_end_while_the_server_is_away(stub, process):
    stub.add("m")
    process.client.key(WANTED)
    stub.stop()
    began = time.monotonic()
    assert process.stop() == 0
    assert time.monotonic() - began < 60


def test_killed_and_started_again(stub, process):
    dek = stub.add("m")
    process.client.key(WANTED)
    assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    assert process.socket.exists()
    with pytest.raises(ServerUnavailable):
        process.client.key(WANTED)
    process.start()
    assert process.status()["leases"] == []
    assert given(process) == dek
    assert stub.count("/v1/release") == 2


def memory(pid):
    """All that the process can read of its own memory."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in maps:
            start, end, mode = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
            if mode.startswith("rw"):
                try:
                    file.seek(int(start, 16))
                    yield file.read(int(end, 16) - int(start, 16))
                except (OSError, OverflowError, ValueError):
                    continue


def test_wiped_from_memory(stub, process, as_nobody):
    dek = stub.add("m")
    stub.lease = 3
    process.client.key(WANTED)
    # While it is renewed there may be two.
    eventually(lambda: sum(part.count(dek) for part in memory(process.process.pid)) == 1)
    stub.refuse["m"] = "revoked"
    eventually(lambda: not process.status()["leases"])
    assert not any(dek in part for part in memory(process.process.pid))


def test_no_core_dump_and_locked(stub, process):
    stub.add("m")
    process.client.key(WANTED)
    pid = process.process.pid
    with open(f"/proc/{pid}/limits") as file:
        assert re.search(r"Max core file size +0 ", file.read())
    with open(f"/proc/{pid}/status") as file:
        assert int(re.search(r"VmLck:\s+(\d+) kB", file.read())[1]) >= 4


def test_never_in_a_log_or_a_file(stub, process, tmp_path):
    dek = stub.add("m")
    stub.lease = 2
    process.client.key(WANTED)
    eventually(lambda: process.status()["renewals"])
    with pytest.raises(ReleaseDenied):
        process.client.key(WantedKey(KeyName("unknown"), BUNDLE))
    status = json.dumps(process.status())
    process.stop()
    spellings = [dek, dek.hex().encode(), b64url(dek).encode(), repr(dek).encode()]
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                content = file.read()
            assert not any(one in content for one in spellings), name
    assert b64url(dek) not in status
    assert not any(id in status or id in process.log.read_text() for id in stub.leases)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A server and a cache for all tests that do no harm to them."""
    place = tmp_path_factory.mktemp("shared")
    (place / "run").mkdir()
    stub = StubServer(place / "stub")
    stub.add("m")
    cache = LocalCache(place / "run" / "keys.sock", stub.profile_file).start()
    yield stub, cache
    cache.stop()
    stub.stop()


def test_written_to_the_socket_and_nowhere_else(stub, place, tmp_path):
    """By the system calls of the process: no file, no pipe, no other socket sees the key."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    dek = stub.add("m")
    stub.lease = 2
    trace = tmp_path / "trace"
    calls = "trace=write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,memfd_create"
    cache = Cache(place, stub.profile_file)
    cache.before = ["strace", "-D", "-f", "-xx", "-s", "100000", "-e", calls, "-o", str(trace)]
    cache.start()
    key = cache.client.key(WANTED)
    assert bytes(key.buffer) == dek
    eventually(lambda: cache.status()["renewals"])
    cache.stop()
    eventually(lambda: "+++ exited with 0" in trace.read_text())
    spelt = "".join(f"\\x{byte:02x}" for byte in dek)
    lines = [line for line in trace.read_text().splitlines() if spelt in line]
    assert len(lines) == 1
    assert "sendmsg(" in lines[0]


class TestPeers:
    def connect(self, cache):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(60)
        connection.connect(str(cache.socket))
        return connection

    def answer(self, connection):
        size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
        return json.loads(connection.recv(size, socket.MSG_WAITALL)) if size else None

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{}",
            b"null",
            b"[]",
            b"\xff\xfe",
            b'{"v":1}',
            b'{"v":2,"op":"status"}',
            b'{"v":1,"op":"status","more":1}',
            b'{"v":1,"op":"keys"}',
            b'{"v":1,"v":1,"op":"status"}',
            b"[" * 4000,
            frame({**REQUEST, "version": 0})[4:],
            frame({**REQUEST, "version": True})[4:],
            frame({**REQUEST, "version": "newest"})[4:],
            frame({**REQUEST, "name": "../m"})[4:],
            frame({**REQUEST, "name": 7})[4:],
            frame({**REQUEST, "bundle": "AAAA"})[4:],
            frame({**REQUEST, "bundle": None})[4:],
            frame({**REQUEST, "path": "x"})[4:],
        ],
        ids=lambda data: repr(data[:40]),
    )
    def test_what_is_no_request(self, shared, data):
        _, cache = shared
        with self.connect(cache) as connection:
            connection.sendall(len(data).to_bytes(4, "big") + data)
            assert self.answer(connection)["error"]["code"] == "usage-error"
            # And the connection goes on.
            connection.sendall(frame(REQUEST))
            assert self.answer(connection)["key"] == 32

    @pytest.mark.parametrize("size", [MAX_REQUEST + 1, 1 << 31, (1 << 32) - 1])
    def test_what_is_too_long(self, shared, size):
        _, cache = shared
        with self.connect(cache) as connection:
            connection.sendall(size.to_bytes(4, "big") + b"x" * 100)
            assert self.answer(connection)["error"]["message"] == "The request is too long."
            assert connection.recv(1) == b""

    def test_several_at_once_and_in_pieces(self, shared):
        _, cache = shared
        with self.connect(cache) as connection:
            for byte in frame(REQUEST):
                connection.sendall(bytes([byte]))
            connection.sendall(frame(REQUEST) * 3)
            for _ in range(4):
                assert self.answer(connection)["key"] == 32
                assert len(connection.recv(32, socket.MSG_WAITALL)) == 32

    def test_slow_peers_are_left(self, shared, monkeypatch):
        _, cache = shared
        monkeypatch.setattr(server, "IDLE_SECONDS", 2.0)
        slow = [self.connect(cache) for _ in range(100)]
        for connection in slow:
            connection.sendall(b"\0\0")
        assert cache.client.key(WANTED)
        for connection in slow:
            assert connection.recv(1) == b""
            connection.close()
        eventually(lambda: cache.status()["connections"] == 1)

    def test_one_user_has_so_many_connections(self, shared):
        _, cache = shared
        many = [self.connect(cache) for _ in range(256)]
        with self.connect(cache) as one_more:
            assert one_more.recv(1) == b""
        with pytest.raises(ServerUnavailable):
            cache.client.key(WANTED)
        for connection in many:
            connection.close()
        eventually(lambda: _status(cache))
        assert cache.client.key(WANTED)

    def test_a_peer_that_does_not_read(self, shared):
        _, cache = shared
        with self.connect(cache) as connection:
            connection.settimeout(1)
            with pytest.raises(OSError):
                while True:
                    connection.sendall(frame(REQUEST) * 100)
            assert cache.client.key(WANTED)

    def test_a_peer_that_goes_while_its_key_is_fetched(self, stub, cache):
        stub.add("m")
        honest = stub._answer
        stub._answer = lambda *rest: time.sleep(0.3) or honest(*rest)
        with self.connect(cache) as connection:
            connection.sendall(frame(REQUEST))
        assert cache.client.key(WANTED)
        assert stub.count("/v1/release") == 1


def _status(cache):
    try:
        return cache.status()
    except ServerUnavailable:
        return None


class TestUsers:
    @pytest.fixture
    def place(self):
        """A directory that other users can enter."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            os.mkdir(folder + "/run", 0o755)
            from pathlib import Path

            yield Path(folder) / "run" / "keys.sock"

    @pytest.fixture
    def run(self, place, stub):
        made = []

        def run(gid=65534, keys=(), **allow):
            allow = Allow(**{name: frozenset(value) for name, value in allow.items()})
            config = Config(gid=gid, allow=allow, keys=keys)
            made.append(LocalCache(place, stub.profile_file, config).start())
            return made[-1]

        stub.add("m", bytes(range(32)))
        yield run
        for one in made:
            one.stop()

    def ask(self, cache, user, group=65534, program=sys.executable, name="m", request=None):
        """Ask as another user, with nothing but the standard library; the code of the refusal."""
        code = (
            "import json, socket, sys\n"
            "c = socket.socket(socket.AF_UNIX)\n"
            "try: c.connect(sys.argv[1])\n"
            "except PermissionError: print('no way in'); sys.exit()\n"
            "c.sendall(bytes.fromhex(sys.argv[2]))\n"
            "take = lambda n: c.recv(n, socket.MSG_WAITALL)\n"
            "said = json.loads(take(int.from_bytes(take(4), 'big')))\n"
            "print(said['error']['code'] if 'error' in said else take(32).hex())"
        )
        request = frame(request or {**REQUEST, "name": name}).hex()
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", code, str(cache.socket), request],
            user=user,
            group=group,
            extra_groups=[],
            capture_output=True,
            text=True,
            cwd="/",
        )
        assert not done.stderr, done.stderr
        return done.stdout.strip()

    GIVEN = bytes(range(32)).hex()

    def test_only_root_and_its_own_user(self, run, as_nobody):
        cache = run(gid=None)
        assert os.stat(cache.socket).st_mode & 0o777 == 0o660
        assert self.ask(cache, as_nobody) == "no way in"
        assert self.ask(cache, 0, 0) == self.GIVEN

    def test_the_socket_alone_is_no_permission(self, run, as_nobody, stub):
        cache = run()
        assert self.ask(cache, as_nobody) == "not-authorised"
        assert stub.asked == []
        assert self.ask(cache, 0, 0) == self.GIVEN

    def test_allowed_by_user(self, run, as_nobody):
        cache = run(uids=[user_id("nobody")])
        assert self.ask(cache, as_nobody) == self.GIVEN
        assert self.ask(cache, 1) == "not-authorised"

    def test_allowed_by_group(self, run, as_nobody):
        cache = run(gids=[65534])
        assert self.ask(cache, 1, 65534) == self.GIVEN

    def test_only_a_program(self, run, as_nobody):
        cache = run(uids=[65534], exes=["/bin/cat"])
        assert self.ask(cache, as_nobody) == "not-authorised"
        assert self.ask(cache, 0, 0) == "not-authorised"
        cache.stop()
        program = os.path.realpath("/usr/bin/python3")
        cache = run(uids=[65534], exes=[program])
        assert self.ask(cache, as_nobody) == self.GIVEN

    def test_rules_for_a_key(self, run, as_nobody, stub, tmp_path):
        stub.add("team/m", bytes(range(32)))
        stub.add("team/secret/m", bytes(range(32)))
        (tmp_path / "c.toml").write_text(
            '[keys."team/*"]\nusers = ["nobody"]\n[keys."team/secret/*"]\nusers = [0]\n'
        )
        cache = run(keys=read_config(tmp_path / "c.toml").keys)
        assert self.ask(cache, as_nobody, name="team/m") == self.GIVEN
        assert self.ask(cache, 0, 0, name="team/m") == "not-authorised"
        assert self.ask(cache, as_nobody, name="team/secret/m") == "not-authorised"
        assert self.ask(cache, 0, 0, name="team/secret/m") == self.GIVEN
        assert self.ask(cache, as_nobody, name="m") == "not-authorised"

    def test_a_key_that_is_held_is_not_for_everybody(self, run, as_nobody):
        cache = run()
        assert self.ask(cache, 0, 0) == self.GIVEN
        assert self.ask(cache, as_nobody) == "not-authorised"

    def test_what_is_held_is_not_told_to_everybody(self, run, as_nobody, stub):
        team = (KeyRule("m", Allow(uids=frozenset({65534}))),)
        cache = run(keys=team)
        status = {"v": 1, "op": "status"}
        assert self.ask(cache, as_nobody) == self.GIVEN
        assert self.ask(cache, as_nobody, request=status) == "not-authorised"

    def test_a_socket_of_somebody_else(self, place, as_nobody):
        """A client gives nothing to, and takes nothing from, who sits in the cache's place."""
        os.chown(place.parent, 1, 1)
        code = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen();"
            "print('ready', flush=True); c, _ = s.accept(); print(len(c.recv(100)))"
        )
        os.chmod(place.parent, 0o757)
        thief = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-c", code, str(place)],
            user=as_nobody,
            group=65534,
            extra_groups=[],
            stdout=subprocess.PIPE,
            cwd="/",
        )
        with thief:
            thief.stdout.readline()
            os.chmod(place.parent, 0o755)
            from strongroom.providers.unix_socket import KeyCache

            with pytest.raises(NotAuthorised, match="put there by user 65534"):
                KeyCache(f"unix://{place}").key(WANTED)
            assert thief.stdout.read().strip() == b"0"


class TestPlaces:
    def refused(self, place, match, error=UsageError):
        with pytest.raises(error, match=match), listen(str(place)):
            pass

    @pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
    def test_a_directory_of_others(self, tmp_path, mode):
        (tmp_path / "run").mkdir()
        (tmp_path / "run").chmod(mode)
        self.refused(tmp_path / "run" / "keys.sock", "can change what is in")
        assert os.listdir(tmp_path / "run") == []

    def test_a_directory_in_one_of_others(self, tmp_path):
        (tmp_path / "open" / "run").mkdir(parents=True)
        (tmp_path / "open").chmod(0o777)
        self.refused(tmp_path / "open" / "run" / "keys.sock", "can change what is in")

    def test_a_directory_that_somebody_else_owns(self, tmp_path, as_nobody):
        (tmp_path / "run").mkdir()
        os.chown(tmp_path / "run", as_nobody, 65534)
        self.refused(tmp_path / "run" / "keys.sock", "can change what is in")

    def test_by_a_link(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run").chmod(0o777)
        (tmp_path / "link").symlink_to(tmp_path / "run")
        self.refused(tmp_path / "link" / "keys.sock", "can change what is in")

    def test_by_a_link_that_others_can_replace(self, tmp_path):
        # Short names: with the name of the test, a path of a socket has hardly room for them.
        for name in ("run", "all"):
            (tmp_path / name).mkdir()
        link = tmp_path / "all" / "to"
        link.symlink_to(tmp_path / "run")
        with listen(str(link / "s")):
            pass
        (tmp_path / "all").chmod(0o777)
        self.refused(link / "s", "can change what is in")

    def test_by_a_link_of_somebody_else(self, tmp_path, as_nobody):
        (tmp_path / "run").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "run")
        os.chown(tmp_path / "link", as_nobody, 65534, follow_symlinks=False)
        self.refused(tmp_path / "link" / "keys.sock", "can change what is in")

    def test_no_directory(self, tmp_path):
        self.refused(tmp_path / "run" / "keys.sock", "no such", NotFound)

    def test_a_path_that_is_too_long(self, tmp_path):
        (tmp_path / ("x" * 100)).mkdir()
        self.refused(tmp_path / ("x" * 100) / "keys.sock", "too long")
        assert os.listdir(tmp_path / ("x" * 100)) == ["keys.sock.lock"]

    def test_something_that_is_no_socket(self, tmp_path):
        (tmp_path / "keys.sock").write_text("mine")
        self.refused(tmp_path / "keys.sock", "no socket", AlreadyExists)
        assert (tmp_path / "keys.sock").read_text() == "mine"

    def test_a_lock_that_is_a_link(self, tmp_path):
        (tmp_path / "keys.sock.lock").symlink_to(tmp_path / "elsewhere")
        self.refused(tmp_path / "keys.sock", "symbolic link")
        assert not (tmp_path / "elsewhere").exists()

    def test_another_cache(self, stub, cache):
        stub.add("m")
        self.refused(cache.socket, "runs at", AlreadyExists)
        assert cache.client.key(WANTED)

    def test_its_name_is_gone_only_if_it_is_its_own(self, tmp_path):
        place = tmp_path / "keys.sock"
        with listen(str(place)):
            place.unlink()
            place.write_text("another's")
        assert place.read_text() == "another's"

    def test_on_the_command_line(self, stub, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run").chmod(0o777)
        command = [sys.executable, "-m", "strongroom", "keycache", "run"]
        place = str(tmp_path / "run" / "keys.sock")
        done = subprocess.run(
            [*command, "--socket", place, "--server", str(stub.profile_file)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "can change what is in" in done.stderr


@pytest.mark.parametrize(
    "uri", ["unix:keys.sock", "unix://keys.sock", "unix:", "unix:////x", "unix:/a\0"]
)
def test_uris_of_sockets(uri):
    from strongroom.providers.unix_socket import socket_path

    assert socket_path("unix:///run/x.sock") == socket_path("unix:/run/x.sock") == "/run/x.sock"
    with pytest.raises(UsageError):
        socket_path(uri)


def test_systemd_is_told(stub, tmp_path):
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place))
        listener.settimeout(60)
        (tmp_path / "run").mkdir()
        cache = Cache(tmp_path / "run" / "k.sock", stub.profile_file, NOTIFY_SOCKET=str(place)).start()
        assert listener.recv(100) == b"READY=1"
        cache.stop()
        assert listener.recv(100) == b"STOPPING=1"


def test_the_status_on_the_command_line(stub, process):
    stub.add("m")
    process.client.key(WANTED)
    command = [
        sys.executable,
        "-m",
        "strongroom",
        "keycache",
        "status",
        "--socket",
        str(process.socket),
    ]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "m@1" in shown.stdout
    machine = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert json.loads(machine.stdout)["leases"][0]["name"] == "m"


def test_keys_arrive_in_locked_memory(stub, cache):
    stub.add("m")
    key = cache.client.key(WANTED)
    assert isinstance(key, SecretBytes)
    assert "32 bytes" in repr(key)
