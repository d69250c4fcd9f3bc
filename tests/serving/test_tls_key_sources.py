"""A TLS key whose own key is in a key server: a real one, which a machine under a test root asks."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from front_process import Pki, Server
from test_front_tls import grpc_answers, rest_answers, shown

from ports import held_port
from strongroom.errors import NoMatchingRecipient, UsageError
from strongroom.serving.settings import Tls
from strongroom.serving.tls import Certificates
from strongroom.serving.tls_files import read

pytest.importorskip("dcap_qvl", reason="a key server needs the extra [keyserver]")
sys.path.insert(0, str(Path(__file__).parent.parent / "keyserver"))

import servers

PROGRAM = Path(sys.executable).with_name("strongroom")


def strongroom(*words, **environment):
    """Run the program; what it says."""
    done = subprocess.run(
        [PROGRAM, *map(str, words)],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A key server that is at the same place after each start, and the profiles of who asks it."""
    place = tmp_path_factory.mktemp("keys")
    made = servers.Server.make(place, pki=servers.new_pki())
    made.configure("listen", port=held_port())
    made.start()
    try:
        made.put_policy(keys=["server-tls"])
        token = place / "token"
        token.write_text(made.owner)
        token.chmod(0o600)
        node = [sys.executable, "-m", "strongroom.testing.synthetic_node", str(place / "pki")]
        measured = ["--mr-td", servers.MR_TD.hex(), "--rtmr0", servers.RTMR0.hex()]
        made.machine = place / "machine.json"
        made.administrator = place / "administrator.json"
        for path, more in (
            (made.machine, {"attester": f"exec:{shlex.join([*node, *measured])}"}),
            (made.administrator, {"token_file": str(token)}),
        ):
            path.write_text(json.dumps({**made.profile, "url": made.url, **more}))
        yield made
    finally:
        if made.process is not None:
            made.stop()


class Ca(Pki):
    """A CA made by the program; certificates whose keys are sealed before they are written."""

    def __init__(self, place: Path, keys: servers.Server) -> None:
        self.place, self.keys = place, keys
        strongroom("pki", "init", place / "pki")
        self.ca_file = place / "pki" / "ca.pem"
        self.ca = self.ca_file.read_bytes()

    def server(self, *more):
        owner = str(self.keys.administrator)
        said = strongroom(
            *("pki", "server", self.place / "pki", "localhost", "127.0.0.1", "--json"),
            *("-r", f"{self.keys.url}/server-tls", *more),
            STRONGROOM_KEYSERVER=owner,
        )
        # The policy has the current version released, and no other.
        strongroom("keys", "rotate", "server-tls", STRONGROOM_KEYSERVER=owner)
        return {name: json.loads(said)[name] for name in ("certificate", "key")}


@pytest.fixture
def ca(tmp_path, keys, monkeypatch):
    # Of the machine that serves: it has no token.
    monkeypatch.setenv("STRONGROOM_KEYSERVER", str(keys.machine))
    for name in ("STRONGROOM_KEY", "STRONGROOM_KEY_FILE", "STRONGROOM_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return Ca(tmp_path, keys)


def test_a_key_from_the_key_server_and_another_after_it(start, ca, tmp_path):
    tls = ca.server()
    assert sorted(one.name for one in (tmp_path / "pki").iterdir()) == [
        *("ca.key", "ca.pem", "server.chain.pem", "server.key.sealed", "server.pem")
    ]
    server = start(tls=tls)
    assert rest_answers(server, ca) is None
    assert grpc_answers(server, ca) is None
    before = shown(server.rest)[1]
    ca.server("--force")
    server.until(lambda: server.lines("certificate read"), 60)
    after = shown(server.rest)[1]
    assert after != before
    assert shown(server.grpc)[1] == after
    assert rest_answers(server, ca) is None
    # The only key in the clear is that of the CA.
    ca_key = tmp_path / "pki" / "ca.key"
    files = [*tmp_path.rglob("*"), *Path(f"/proc/{server.process.pid}/fd").iterdir()]
    in_clear = [one for one in files if one.is_file() and b"PRIVATE KEY" in one.read_bytes()]
    assert in_clear == [ca_key]
    assert "PRIVATE KEY" not in server.text()


def test_models_may_have_another_key(ca, tmp_path):
    strongroom("keygen", "-o", tmp_path / "models.txt")
    found = read(Tls(**ca.server(), open_with=str(tmp_path / "models.txt")))
    assert found.key.startswith(b"-----BEGIN")
    # What is sealed for neither says for whom it is.
    strongroom("keygen", "-o", tmp_path / "other.txt")
    strongroom(
        *("pki", "server", tmp_path / "pki", "localhost", "-o", tmp_path / "pki" / "plain"),
        *("-k", tmp_path / "other.txt"),
    )
    tls = {
        "certificate": str(tmp_path / "pki" / "plain.pem"),
        "key": str(tmp_path / "pki" / "plain.key.sealed"),
    }
    with pytest.raises(NoMatchingRecipient, match="it is sealed for: A256KW"):
        read(Tls(**tls, open_with=str(tmp_path / "models.txt")))
    assert read(Tls(**tls, open_with=str(tmp_path / "other.txt"))).key


@pytest.mark.slow
def test_a_key_server_that_is_away(start, ca, keys, tmp_path):
    tls = ca.server()
    keys.stop()
    place = tmp_path / "early"
    place.mkdir()
    (place / "m").write_text("0")
    early = Waiting(place, {"models": [{"name": "m", "path": str(place / "m")}], "tls": tls})
    try:
        # At the start there is nothing to listen with: it is asked again until it is there.
        early.until(lambda: early.lines("certificate not read; tried again"), 60)
        assert early.process.poll() is None
        assert not early.line("listening")
        keys.start()
        early.until(lambda: early.line("listening") and "AVAILABLE" in early.text(), 90)
        early.rest, early.grpc = (early.line("listening")[one] for one in ("rest_port", "grpc_port"))
        assert rest_answers(early, ca) is None
        before = shown(early.rest)[1]
        # Later the certificate of before stays, requests are answered, and it is tried again.
        renewed = ca.server("-o", tmp_path / "renewed")
        keys.stop()
        for name, path in renewed.items():
            Path(path).replace(tls[name])
        early.until(lambda: early.lines("certificate not read; the one before stays"), 60)
        assert rest_answers(early, ca) is None
        assert shown(early.rest)[1] == before
        keys.start()
        early.until(lambda: early.lines("certificate read"), 120)
        assert shown(early.rest)[1] != before
        assert shown(early.rest)[1] == shown(early.grpc)[1]
        assert rest_answers(early, ca) is None
        assert early.stop() == 0
    finally:
        early.kill()
        if keys.process is None:
            keys.start()


class Waiting(Server):
    """A server that does not listen yet."""

    def __init__(self, place: Path, settings) -> None:
        import front_process

        self.place, self.log = place, place / "log"
        with self.log.open("wb") as log:
            command = [sys.executable, front_process.__file__, json.dumps(settings)]
            self.process = subprocess.Popen(command, stderr=log, cwd=place)


def test_a_machine_that_the_policy_does_not_know(ca, keys, tmp_path, monkeypatch):
    other = json.loads(keys.machine.read_text())
    other["attester"] = other["attester"].replace(servers.MR_TD.hex(), "18" * 48)
    (tmp_path / "other.json").write_text(json.dumps(other))
    tls = ca.server()
    monkeypatch.setenv("STRONGROOM_KEYSERVER", str(tmp_path / "other.json"))
    done = subprocess.run(
        [
            PROGRAM,
            "serve",
            "m=nowhere.sealed",
            "--tls-cert",
            tls["certificate"],
            "--tls-key",
            tls["key"],
        ],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert b"server-tls" in done.stderr


@pytest.mark.parametrize("key", ["https://keys.example/server-tls", "unix:/run/keys.sock", "env:KEY"])
def test_a_url_is_no_key(key):
    with pytest.raises(UsageError, match="a file, and no URL") as caught:
        Certificates(Tls("server.pem", key))
    assert "strongroom seal" in caught.value.hint
