"""How a cache is set up, and who may have what."""

import os
import shutil
import subprocess
import time

import pytest

from strongroom.errors import NotAuthorised, NotFound, UsageError
from strongroom.keycache.config import Config, group_id, read_config, user_id
from strongroom.keycache.rules import Allow, KeyRule, Peer, Rules


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "c.toml").write_text(text)
        return read_config(tmp_path / "c.toml")

    return read


def test_everything(read, tmp_path):
    found = read(
        'server = "profile.json"\nsocket = "/run/x.sock"\nattester = "tsm"\ngroup = "nogroup"\n'
        '[allow]\nusers = ["nobody", 5]\ngroups = [7]\nprograms = ["/bin/cat"]\n'
        '[keys."team/*"]\nusers = [9]\n[keys.resnet50]\ngroups = [1]\n'
    )
    assert found.server == str(tmp_path / "profile.json")
    assert (found.socket, found.attester, found.gid) == ("/run/x.sock", "tsm", group_id("nogroup"))
    assert found.allow.uids == {user_id("nobody"), 5}
    assert found.allow.exes == {os.path.realpath("/bin/cat")}
    assert [rule.name for rule in found.keys] == ["team/*", "resnet50"]
    assert found.rules.default.uids == {user_id("nobody"), 5, 0, os.geteuid()}


def test_nothing(read):
    assert read("").rules.default == Allow(frozenset({0, os.geteuid()}))
    assert read('server = "https://keys.example"').server == "https://keys.example"


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "more = 1",
        "server = 1",
        'socket = ""',
        "group = -1",
        'group = "no such group"',
        "[allow]\nusers = []",
        "[allow]\nusers = 0",
        "[allow]\nusers = [true]",
        "[allow]\nusers = [-1]",
        "[allow]\nusers = [4294967296]",
        '[allow]\nusers = ["no such user"]',
        '[allow]\nusers = ["*"]',
        '[allow]\nprograms = ["cat"]',
        "[allow]\nprograms = [1]",
        "[allow]\nuids = [1]",
        "allow = 1",
        "keys = 1",
        "[keys.m]",
        '[keys.m]\nprograms = ["/bin/cat"]',
        '[keys."*"]\nusers = [1]',
        '[keys."team*"]\nusers = [1]',
        '[keys."../m"]\nusers = [1]',
        '[keys.""]\nusers = [1]',
        "keys.m = 1",
    ],
)
def test_what_is_none(read, text):
    with pytest.raises(UsageError, match=r"c\.toml"):
        read(text)


def test_files(tmp_path):
    with pytest.raises(NotFound):
        read_config(tmp_path / "absent")
    (tmp_path / "c.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not TOML"):
        read_config(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text("")
    (tmp_path / "c.toml").chmod(0o666)
    with pytest.raises(UsageError, match="by everybody"):
        read_config(tmp_path / "c.toml")


ME = Peer(os.getpid(), 1000, 100, frozenset({7, 8}))
PROGRAM = os.path.realpath("/proc/self/exe")


@pytest.mark.parametrize(
    ("allow", "may"),
    [
        (Allow(), False),
        (Allow(exes=frozenset({PROGRAM})), False),
        (Allow(uids=frozenset({1000})), True),
        (Allow(uids=frozenset({0})), False),
        (Allow(gids=frozenset({100})), True),
        (Allow(gids=frozenset({8})), True),
        (Allow(gids=frozenset({1000})), False),
        (Allow(uids=frozenset({1000}), exes=frozenset({PROGRAM})), True),
        (Allow(uids=frozenset({1000}), exes=frozenset({"/bin/cat"})), False),
        (Allow(uids=frozenset({0}), exes=frozenset({PROGRAM})), False),
    ],
)
def test_peers(allow, may):
    assert allow.permits(ME) is may


def test_a_program_that_cannot_be_seen():
    gone = Peer(2**22 + 1, 1000, 100)
    assert gone.exe is None
    assert not Allow(uids=frozenset({1000}), exes=frozenset({PROGRAM})).permits(gone)


def test_the_longest_name_counts():
    mine, theirs = Allow(uids=frozenset({1000})), Allow(uids=frozenset({1}))
    rules = Rules(
        theirs, [KeyRule("team/*", mine), KeyRule("team/a/*", theirs), KeyRule("team/a/b", mine)]
    )
    for name, may in (
        ("team/x", True),
        ("team", False),
        ("teamx/x", False),
        ("team/a", True),
        ("team/a/c", False),
        ("team/a/b", True),
        ("other", False),
    ):
        if may:
            rules.check(ME, name)
        else:
            with pytest.raises(NotAuthorised):
                rules.check(ME, name)


def test_the_status_is_for_any_program_of_those_users():
    rules = Rules(Allow(uids=frozenset({1000}), exes=frozenset({"/bin/cat"})))
    rules.check_status(ME)
    with pytest.raises(NotAuthorised):
        rules.check(ME, "m")


def test_the_default_is_nobody_else():
    rules = Config().rules
    rules.check(Peer(1, os.geteuid(), 1), "m")
    with pytest.raises(NotAuthorised):
        rules.check(Peer(1, 54321, 0, frozenset({0})), "m")
    with pytest.raises(NotAuthorised):
        rules.check_status(Peer(1, 54321, 0))


def test_a_program_that_was_replaced_is_none(tmp_path):
    """The kernel adds " (deleted)" to its path: no rule can mean that, whatever it says."""
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "600"]) as running:
        try:
            peer = Peer(running.pid, 1, 1)
            allow = Allow(uids=frozenset({1}), exes=frozenset({str(program), f"{program} (deleted)"}))
            deadline = time.monotonic() + 60
            while peer.exe != str(program):  # until it has become that program
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert allow.permits(peer)
            program.unlink()
            assert peer.exe is None
            assert not allow.permits(peer)
        finally:
            running.kill()
