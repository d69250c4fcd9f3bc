"""The life of a server: start, stop, restart, workers, replicas, what it leaves in its log."""

import asyncio
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing

import psutil
import pytest
from servers import BUNDLE, Answer, Machine, Server, new_pki, text

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import StorageError
from strongroom.keyserver.services import Services
from strongroom.release.answer import Refused, Released
from strongroom.release.binding import WantedKey
from strongroom.release.messages import Challenge
from strongroom.release.names import KeyName

PATIENCE = 60.0


@pytest.fixture(scope="module")
def pki():
    return new_pki()


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(server):
    try:
        socket.create_connection(("localhost", server.port), timeout=1).close()
    except OSError:
        return True
    return False


def test_a_killed_server_has_kept_everything(tmp_path, pki, database_url):
    server = Server.make(tmp_path / "made", pki=pki, database=database_url).start()
    key = server.add_key()
    server.put_policy()
    (before,) = Machine(pki).ask(server)
    server.admin("POST", "/v1/nodes/evict", {"platform": "piid:00", "reason": "test"})
    token = server.admin("POST", "/v1/tokens", {"name": "a", "role": "auditor"})["token"]
    records = server.admin("GET", "/v1/audit")["records"]
    challenge = Challenge.from_json(server.ask("POST", "/v1/challenge", {}).body)
    request, _, _ = Machine(pki).request(challenge)
    server.stop(signal.SIGKILL)
    server.start()
    # Also a challenge that was given before, since it is kept nowhere; at once, for it has a minute.
    assert server.ask("POST", "/v1/release", request.to_json()).status == 200
    kept = server.ask("GET", "/v1/audit", token=token).body["records"]
    assert kept[: len(records)] == records
    (after,) = Machine(pki).ask(server)
    assert isinstance(before, Released)
    assert isinstance(after, Released)
    assert after.dek == key
    nodes = server.admin("GET", "/v1/nodes")["nodes"]
    assert {one["platform"]: one["evicted"] for one in nodes}["piid:00"] is True
    assert server.stop() == 0
    done = command(server, "verify")
    assert done.returncode == 0, done.stderr


def command(server, verb, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "strongroom", "keyserver", verb, "-c", server.config, *arguments],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def replicas(tmp_path_factory, pki, postgres):
    """Two servers on one PostgreSQL: a second directory with the same configuration and root key."""
    tmp_path = tmp_path_factory.mktemp("replicas")
    first = Server.make(tmp_path / "one", pki=pki, database=postgres.database())
    other = tmp_path / "two" / "server"
    subprocess.run(["cp", "-a", first.directory.parent, other.parent], check=True)
    second = Server(other)
    (other / "audit.anchor").unlink()
    with pytest.raises(AssertionError, match="no such file"):
        second.start()
    done = command(second, "accept-head", "--reason", "a second replica")
    assert done.returncode == 0, done.stderr
    first.start()
    second.start()
    first.add_key()
    first.put_policy()
    yield first, second
    assert [first.stop(), second.stop()] == [0, 0]


def test_a_challenge_of_one_replica_is_good_at_the_other_once(replicas, pki):
    first, second = replicas
    challenge = Challenge.from_json(first.ask("POST", "/v1/challenge", {}).body)
    request, _, _ = Machine(pki).request(challenge)
    body = request.to_json()
    answer = second.ask("POST", "/v1/release", body)
    assert answer.status == 200
    for server in (first, second):
        again = server.ask("POST", "/v1/release", body)
        assert (again.status, again.code) == (403, "challenge")


def test_a_challenge_used_at_both_replicas_at_once_is_good_at_one(replicas, pki):
    for _ in range(10):
        challenge = Challenge.from_json(replicas[0].ask("POST", "/v1/challenge", {}).body)
        request, _, _ = Machine(pki).request(challenge)
        body, answers = request.to_json(), []
        barrier = threading.Barrier(4)

        def ask(server, body=body, answers=answers, barrier=barrier):
            barrier.wait(PATIENCE)
            answers.append(server.ask("POST", "/v1/release", body))

        threads = [threading.Thread(target=ask, args=[one]) for one in replicas * 2]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert sorted(one.status for one in answers) == [200, 403, 403, 403]


def test_what_an_owner_changes_at_one_replica_holds_at_the_other(replicas, pki):
    first, second = replicas
    (released,) = Machine(pki).ask(second)
    assert isinstance(released, Released)
    state = {"name": "resnet50", "version": 1, "state": "revoked", "reason": "leaked"}
    first.admin("POST", "/v1/keys/state", state)
    (refused,) = Machine(pki).ask(second)
    assert isinstance(refused, Refused)
    assert refused.code == "revoked"


def test_draining_says_so_and_finishes_what_is_in_flight(tmp_path, pki):
    server = Server.make(tmp_path / "made", pki=pki)
    server.configure("listen", drain_seconds=2, stop_seconds=20)
    server.start()
    assert server.ask("GET", "/readyz").status == 200
    # Under way: its body is not complete.
    with closing(server.connection()) as slow:
        slow.putrequest("POST", "/v1/challenge")
        slow.putheader("Content-Type", "application/json")
        slow.putheader("Content-Length", "2")
        slow.endheaders(b"{")
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.ask("GET", "/readyz").status == 503)
        answer = server.ask("GET", "/readyz")
        assert (answer.code, answer.headers["retry-after"]) == ("stopping", "2")
        assert server.ask("GET", "/healthz").status == 200
        wait_for(lambda: gone(server))
        assert server.process.poll() is None
        slow.send(b"}")
        assert slow.getresponse().status == 200
    assert server.process.wait(PATIENCE) == 0


def test_sigint_stops_at_once(tmp_path):
    server = Server.make(tmp_path / "made")
    server.configure("listen", drain_seconds=60)
    server.start()
    assert server.stop(signal.SIGINT) == 0


def test_a_log_on_a_full_disk_fails_no_request(tmp_path):
    server = Server.make(tmp_path / "made").start()
    # The database is smaller, and has room.
    size = 64 << 20
    os.truncate(server.log, size)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, size))
    for number in range(3):
        server.add_key(f"key{number}")
        assert server.ask("GET", "/v1/keys").status == 401
    assert server.stop() == 0
    assert server.log.stat().st_size == size


def test_workers_share_a_port_and_are_replaced_and_end_together(tmp_path, pki):
    server = Server.make(tmp_path / "made", pki=pki)
    server.arguments = ("--workers", "2")
    server.start()
    server.add_key()
    server.put_policy()
    for _ in range(8):
        (released,) = Machine(pki).ask(server)
        assert isinstance(released, Released)
    # Added up over the workers, whoever is asked.
    text_of = server.ask("GET", "/metrics", token=server.owner).content.decode()
    assert 'strongroom_releases_total{kind="tdx",outcome="released"} 8.0' in text_of
    assert "strongroom_verify_seconds_bucket" in text_of
    parent = psutil.Process(server.process.pid)
    children = parent.children()
    assert len(children) == 2
    # One that starts and dies at once would not be replaced.
    time.sleep(3.1)
    children[0].kill()
    wait_for(lambda: sum(one["event"] == "ready" for one in server.events()) == 3)
    assert server.ask("GET", "/readyz").status == 200
    below = parent.children(recursive=True)
    server.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(below, timeout=PATIENCE)
    assert alive == []


def test_workers_end_with_an_orderly_end(tmp_path):
    server = Server.make(tmp_path / "made")
    server.arguments = ("--workers", "2")
    server.start()
    below = psutil.Process(server.process.pid).children(recursive=True)
    assert server.stop() == 0
    _, alive = psutil.wait_procs(below, timeout=PATIENCE)
    assert alive == []


def test_workers_that_do_not_start_are_not_started_for_ever(tmp_path):
    server = Server.make(tmp_path / "made")
    (server.directory / "keyserver.db").unlink()
    server.arguments = ("--workers", "2")
    server.start(wait=False)
    assert server.process.wait(PATIENCE) == 7
    assert "no such file" in server.log.read_text()


@pytest.mark.parametrize(
    ("break_it", "code", "said"),
    [
        (lambda it: (it / "tls/server.key").unlink(), 2, "server.key"),
        (lambda it: (it / "tls/server.key").write_text("nonsense"), 4, "are not a certificate"),
        (lambda it: (it / "keyserver.db").unlink(), 2, "keyserver.db"),
        (lambda it: (it.parent / "root.kek").write_text("{}"), 4, "root.kek"),
        (lambda it: (it.parent / "root.kek").chmod(0o644), 4, "can be read by others"),
        (lambda it: (it / "audit.anchor").write_text("{}"), 5, "audit.anchor"),
        (lambda it: (it / "keyserver.toml").write_text("x = 1"), 2, "x is not known"),
    ],
)
def test_a_server_that_cannot_start_says_why(tmp_path, break_it, code, said):
    server = Server.make(tmp_path / "made")
    break_it(server.directory)
    server.start(wait=False)
    assert server.process.wait(PATIENCE) == code
    assert said in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def test_a_port_that_is_taken(tmp_path):
    server = Server.make(tmp_path / "made")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server.configure("listen", port=taken.getsockname()[1])
        server.start(wait=False)
        assert server.process.wait(PATIENCE) == 7
    assert "already in use" in server.log.read_text()


def test_a_server_for_tests_cannot_become_one_for_production(tmp_path, pki):
    server = Server.make(tmp_path / "made", pki=pki)
    changed = server.config.read_text().replace('"TEST-localhost', '"localhost')
    server.config.write_text(re.sub(r"\[attestation\]\ninsecure_test_roots.*\n", "", changed))
    server.start(wait=False)
    assert server.process.wait(PATIENCE) == 2
    assert "made for tests" in server.log.read_text()


def test_a_server_for_production_takes_no_test_roots(tmp_path, pki):
    server = Server.make(tmp_path / "made")
    pki.save(tmp_path / "pki")
    changed = server.config.read_text().replace('"localhost-', '"TEST-localhost-')
    server.config.write_text(changed)
    root = tmp_path / "pki/TEST-ROOT-NOT-FOR-PRODUCTION.intel.pem"
    server.configure("attestation", insecure_test_roots=str(root))
    server.start(wait=False)
    assert server.process.wait(PATIENCE) == 2
    assert "production" in server.log.read_text()


def test_one_address_asks_so_often_and_no_more(tmp_path):
    server = Server.make(tmp_path / "made")
    server.configure("limits", requests_per_second=0.1, burst=5)
    server.start()
    try:
        answers = [server.ask("GET", "/v1/server") for _ in range(8)]
        assert [one.status for one in answers] == [200] * 5 + [429] * 3
        assert answers[-1].code == "too-many-requests"
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 10
        # A supervisor must not take a busy server for a dead one.
        assert [server.ask("GET", path).status for path in ("/healthz", "/readyz")] == [200, 200]
    finally:
        server.stop()


def test_many_who_ask_whether_it_is_ready_cause_one_check_at_a_time():
    running = most = checks = 0
    go = threading.Event()

    class Slow:
        def check(self):
            nonlocal running, most, checks
            running, checks = running + 1, checks + 1
            most = max(most, running)
            assert go.wait(PATIENCE)
            running -= 1
            if checks == 2:
                raise StorageError("gone")

    here = Services(*[None] * 7)
    here.store = Slow()

    async def ask():
        asked = [asyncio.create_task(here.check()) for _ in range(50)]
        while not checks:
            await asyncio.sleep(0)
        asked[0].cancel()
        go.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert found[1:] == [None] * 49
        with pytest.raises(StorageError):
            await here.check()
        await here.check()

    asyncio.run(ask())
    assert (most, checks) == (1, 3)


def test_a_database_that_goes_away_is_said_and_comes_back(tmp_path, pki):
    from postgres import Postgres

    database = Postgres()
    server = Server.make(tmp_path / "made", pki=pki, database=database.database()).start()
    try:
        server.add_key()
        server.put_policy()
        database.stop(signal.SIGQUIT)
        answer = server.ask("GET", "/readyz")
        assert (answer.status, answer.code) == (503, "storage-error")
        assert "retry-after" in answer.headers
        assert str(database.directory) not in answer.content.decode()
        challenge = Challenge.from_json(server.ask("POST", "/v1/challenge", {}).body)
        body = Machine(pki).request(challenge)[0].to_json()
        assert server.ask("POST", "/v1/release", body).status == 503
        assert server.ask("GET", "/healthz").status == 200
        database.start()
        wait_for(lambda: server.ask("GET", "/readyz").status == 200)
        (released,) = Machine(pki).ask(server)
        assert isinstance(released, Released)
    finally:
        server.stop()
        database.close()


def test_nothing_secret_is_in_the_log_and_on_the_command_line(tmp_path, pki):
    phrase = "canary-passphrase-7d1f"
    server = Server.make(tmp_path / "made", pki=pki, passphrase=SecretBytes(phrase.encode()))
    server.environment = {"CANARY": phrase}
    server.configure("kek", passphrase_env="CANARY")
    server.start()
    dek = b"canary-key-0123456789abcdef01234"
    assert len(dek) == 32
    server.add_key(dek=dek)
    server.put_policy()
    token = server.admin("POST", "/v1/tokens", {"name": "a", "role": "auditor"})["token"]
    wanted = (WantedKey(KeyName("resnet50"), BUNDLE), WantedKey(KeyName("other"), BUNDLE))
    answers = Machine(pki).ask(server, wanted)
    assert isinstance(answers[0], Released)
    asked: list[Answer] = [
        server.ask("GET", "/v1/keys?name=canary-query", token=token),
        server.ask("GET", f"/v1/keys/{token}"),
        server.ask("DELETE", f"/v1/tokens/{token}", token=server.owner),
        server.ask("POST", "/v1/release", {"canary-member": "canary-value"}),
        server.ask("POST", "/v1/keys", {"name": "canary-value", "dek": text(dek)}, token=server.owner),
        server.ask("POST", "/v1/release", b'{"a": "canary-body', headers={"X-Canary": "canary-head"}),
        server.ask("GET", "/v1/keys", token="srt_canary-token"),
        server.ask("POST", "/v1/release", b"{}", token="eyJh.canary-token.x"),
        server.ask("PUT", "/v1/policies", {"policy": {"id": "canary-value"}}, token=server.owner),
    ]
    assert [one.status for one in asked] == [200, 404, 400, 400, 400, 400, 401, 401, 400]
    line = " ".join(psutil.Process(server.process.pid).cmdline())
    metrics = server.ask("GET", "/metrics", token=token).content.decode()
    audit = json.dumps(server.admin("GET", "/v1/audit?limit=1000"))
    server.stop()
    log = server.log.read_text()
    secrets = {
        "key": [dek.decode(), dek.hex(), text(dek)],
        "passphrase": [phrase],
        "tokens": [token, token[4:], server.owner, server.owner[4:], "canary-token"],
        "request": ["canary-query", "canary-value", "canary-body", "canary-head", "canary-member"],
    }
    for kind, values in secrets.items():
        for value in values:
            assert value not in log, kind
            assert value not in metrics, kind
            assert value not in line, kind
    for value in [*secrets["key"], *secrets["passphrase"], *secrets["tokens"]]:
        assert value not in audit
        for one in asked:
            assert value not in one.content.decode()
    # The files of a server that is copied away open nothing without the root key's passphrase.
    for path in server.directory.rglob("*"):
        if path.is_file() and path.name != "owner.token":
            content = path.read_bytes()
            for value in [*secrets["key"], phrase, token, server.owner]:
                assert value.encode() not in content, path


def test_the_passphrase_comes_by_a_descriptor(tmp_path):
    server = Server.make(tmp_path / "made", passphrase=SecretBytes(b"correct horse"))
    for phrase, code in (("correct horse", 0), ("wrong", 4)):
        done = command(server, "migrate", "--passphrase-fd", "0", input=f"{phrase}\n")
        assert done.returncode == code, done.stderr
        assert phrase not in done.stderr
    # Nobody to ask.
    assert command(server, "migrate", stdin=subprocess.DEVNULL, start_new_session=True).returncode == 2


@pytest.mark.parametrize("workers", [1, 3])
def test_a_wrong_passphrase_is_tried_once(tmp_path, workers):
    """HSMs and TPMs lock it after a few times; and starting again does not help."""
    server = Server.make(tmp_path / "made", passphrase=SecretBytes(b"correct horse"))
    server.environment = {"PHRASE": "canary-phrase"}
    server.configure("kek", passphrase_env="PHRASE")
    server.arguments = ("--workers", str(workers))
    server.start(wait=False)
    assert server.process.wait(PATIENCE) == 4
    log = server.log.read_text()
    assert log.count("passphrase does not open") == 1
    assert "canary-phrase" not in log
