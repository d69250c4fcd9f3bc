"""Root keys of every kind as an owner has them: by the command line alone, from ``init`` to another root key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from kek_places import tcti
from servers import Server

from ports import held_port
from strongroom.pki.certificates import issue, new_ca

PROGRAM = (str(Path(sys.executable).with_name("strongroom")),)
# A client asks five times a server that cannot answer, over ten seconds.
HURRIED = (
    *(sys.executable, "-c"),
    "import time; time.sleep = lambda seconds: None; from strongroom.cli import main; main()",
)
PHRASE = "canary-phrase-9035"
TIMEOUT = 120
KINDS = ["passphrase", "key-file", "pkcs11", "aws-kms", "vault", "tpm"]


@pytest.fixture
def away_pkcs11(softhsm):
    @contextmanager
    def away():
        (softhsm / "tokens").rename(softhsm / "away")
        try:
            yield
        finally:
            (softhsm / "away").rename(softhsm / "tokens")

    return away


@pytest.fixture
def away_vault(transit):
    @contextmanager
    def away():
        transit.sealed = True
        try:
            yield
        finally:
            transit.sealed = False

    return away


@dataclass
class Place:
    """Where a root key is to be, and what opens it."""

    source: str
    secret: str | None
    away: Callable[[], AbstractContextManager[None]] | None = None


@pytest.fixture
def place(request, tmp_path):
    """``place("pkcs11")``: where no root key is yet."""

    def of(kind):
        if kind in ("passphrase", "key-file"):
            secret = PHRASE if kind == "passphrase" else None
            return Place(f"file:{tmp_path}/{kind}.kek", secret)
        name = kind.partition("-")[0]
        # A TPM is asked at the start alone, and moto forgets its keys when it goes.
        away = None if name in ("aws", "tpm") else request.getfixturevalue(f"away_{name}")
        return Place(*request.getfixturevalue(f"{name}_source"), away)

    return of


@dataclass
class Owner:
    """Somebody at a terminal; keeps what was printed."""

    here: Path
    environment: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def run(self, *words, expect=0, secret=None, new_secret=None, program=PROGRAM):
        """A command line; secrets come by descriptors, as a shell gives them with ``3< FILE``."""
        command, descriptors = [*program, *map(str, words)], []
        for option, value in (("--passphrase-fd", secret), ("--new-passphrase-fd", new_secret)):
            if value is not None:
                reader, writer = os.pipe()
                os.write(writer, f"{value}\n".encode())
                os.close(writer)
                descriptors.append(reader)
                command += [option, str(reader)]
        environment = {**os.environ, **self.environment}
        # Nobody to ask.
        done = subprocess.run(
            command,
            cwd=self.here,
            env=environment,
            pass_fds=descriptors,
            capture_output=True,
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
        )
        for one in descriptors:
            os.close(one)
        said = (done.stdout + done.stderr).decode()
        self.said.append(said)
        assert done.returncode == expect, said
        assert "Traceback" not in said
        return said


class World(Owner):
    """A server, its owner, and a machine that serves, known by its client certificate."""

    def make(self, place):
        url = f"https://localhost:{held_port()}"
        if place.source.startswith("file:"):
            path = place.source.removeprefix("file:")
            options = ["--kek-key-file", path] if place.secret is None else []
        else:
            self.run("keyserver", "make-kek", place.source, secret=place.secret)
            options = ["--kek", place.source]
        self.run("keyserver", "init", "keys", "--url", url, *options, secret=place.secret)
        self.server = Server(self.here / "keys")
        # Of all kinds this is the one that does not outlive a fork.
        workers = 2 if place.source.startswith("pkcs11:") else 1
        self.server.configure("listen", drain_seconds=0, workers=workers)
        self.server.configure("verification", workers=1)
        self.server.configure("kek", **self.secret_of(place))  # init has written the source
        now = datetime.now(UTC)
        ca, ca_key = new_ca("machines", now)
        (self.here / "keys" / "clients.pem").write_bytes(ca)
        (self.here / "node.pem").write_bytes(b"".join(issue(ca, ca_key, "node", [], now)))
        self.server.configure("tls", client_ca="clients.pem")
        node = {**self.server.profile, "client_certificate": str(self.here / "node.pem")}
        (self.here / "node.json").write_text(json.dumps(node))
        policy = {
            "id": "p",
            "version": 1,
            "keys": ["m/"],
            "any": [{"kind": "mtls", "subject": "CN=node"}],
        }
        (self.here / "policy.json").write_text(json.dumps(policy))

    def reconfigure(self, place):
        """As the documentation says after a rotation: the source, and where its secret is."""
        document = self.server.config.read_text()
        lines = [one for one in document.splitlines() if not one.startswith("passphrase_file")]
        self.server.config.write_text("\n".join(lines) + "\n")
        self.server.configure("kek", source=place.source, **self.secret_of(place))

    def secret_of(self, place):
        if place.secret is None:
            return {}
        (self.here / "secret").write_text(place.secret + "\n")
        return {"passphrase_file": str(self.here / "secret")}

    def as_owner(self, *words, **options):
        self.environment["STRONGROOM_KEYSERVER"] = str(self.here / "keys" / "owner.json")
        return self.run(*words, **options)

    def as_node(self, *words, **options):
        self.environment["STRONGROOM_KEYSERVER"] = str(self.here / "node.json")
        return self.run(*words, **options)

    def seal(self, name):
        (self.here / f"{name}.bin").write_bytes(os.urandom(1000))
        recipient = f"{self.server.profile['url']}/m/{name}"
        self.as_owner("seal", f"{name}.bin", "-o", f"{name}.sealed", "-r", recipient)

    def everything(self):
        return "".join(self.said) + self.server.log.read_text()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    if made.server.process is not None:
        made.server.stop()


def ready(world):
    world.server.start()
    world.as_owner("policy", "put", "policy.json")
    for name in ("one", "two"):
        world.seal(name)
    world.as_node("verify", "one.sealed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_root_key_of_every_kind_from_init_to_another(kind, place, world):
    here = place(kind)
    world.make(here)
    ready(world)
    if here.away is not None:
        with here.away():
            said = world.as_node("verify", "two.sealed", expect=7, program=HURRIED)
            assert "cannot" in said
            assert world.server.ask("GET", "/readyz").status == 200
        world.as_node("verify", "two.sealed")
    assert world.server.stop() == 0
    world.server.start()
    world.as_node("verify", "one.sealed")
    # To another kind, while the server runs.
    other = place(KINDS[(KINDS.index(kind) + 1) % len(KINDS)])
    if not other.source.startswith(("file:", "tpm:")):
        world.run("keyserver", "make-kek", other.source, secret=other.secret)
    config = ["-c", "keys/keyserver.toml"]
    said = world.run("keyserver", "rotate-kek", *config, "--to", other.source, new_secret=other.secret)
    assert other.source in said
    world.as_node("verify", "two.sealed", expect=7, program=HURRIED)
    assert world.server.stop() == 0
    world.run("keyserver", "verify", *config, expect=4)
    world.reconfigure(other)
    world.run("keyserver", "verify", *config)
    world.server.start()
    for name in ("one", "two"):
        world.as_node("verify", f"{name}.sealed")
    assert world.server.stop() == 0
    for secret in {here.secret, other.secret} - {None}:
        assert secret not in world.everything()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["passphrase", "pkcs11", "vault", "tpm"])
def test_a_wrong_secret_does_not_start_a_server(kind, place, world):
    here = place(kind)
    world.make(here)
    wrong = "canary-wrong-5527"
    (world.here / "secret").write_text(wrong + "\n")
    code = 7 if kind == "vault" else 4  # Vault says no more than that it is not allowed
    world.run("keyserver", "migrate", "-c", "keys/keyserver.toml", expect=code)
    world.server.start(wait=False)
    assert world.server.process.wait(TIMEOUT) == code
    (world.here / "secret").unlink()
    assert "no such file" in world.run("keyserver", "run", "-c", "keys/keyserver.toml", expect=2)
    assert wrong not in world.everything()
    assert here.secret not in world.everything()


@pytest.mark.slow
def test_the_tpm_of_another_machine_does_not_open(place, world, tpm):
    here = place("tpm")
    world.make(here)
    world.server.configure("kek", source=here.source.replace(tcti(tpm / "one"), tcti(tpm / "two")))
    said = world.run("keyserver", "run", "-c", "keys/keyserver.toml", expect=4)
    assert "not made by this TPM" in said
    world.server.configure("kek", source=here.source.replace("one", "none"))
    world.run("keyserver", "run", "-c", "keys/keyserver.toml", expect=7)


def test_a_root_key_is_made_once_and_asks_for_what_it_needs(tmp_path):
    owner = Owner(tmp_path)
    owner.run("keyserver", "make-kek", "file:root.kek")
    before = (tmp_path / "root.kek").read_bytes()
    assert (tmp_path / "root.kek").stat().st_mode & 0o777 == 0o600
    assert "exists already" in owner.run("keyserver", "make-kek", "file:root.kek", expect=2)
    assert (tmp_path / "root.kek").read_bytes() == before
    owner.run("keyserver", "make-kek", "file:phrase.kek", secret=PHRASE)
    for words in (
        ["make-kek", "pkcs11:token=a;object=b?module-path=/nowhere.so"],
        ["init", "keys", "--kek", "file:phrase.kek"],
    ):
        assert "no terminal" in owner.run("keyserver", *words, expect=2)
    assert "Known are" in owner.run("keyserver", "make-kek", "gpg:x", expect=2)
    assert not (tmp_path / "keys").exists()
    owner.run("keyserver", "init", "keys", "--kek", "file:phrase.kek", secret=PHRASE)
    assert PHRASE not in "".join(owner.said)
