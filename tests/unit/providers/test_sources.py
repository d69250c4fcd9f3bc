import os
import subprocess
import sys
from pathlib import Path

import pytest

import strongroom
from strongroom import HpkeIdentity, HpkeRecipient, Passphrase, SecretBytes, SymmetricKey
from strongroom.crypto.hpke import X25519
from strongroom.errors import InvalidKey, NoKey, NotFound, StrongroomError, UsageError
from strongroom.format.header import Header
from strongroom.providers.sources import identities, parse_key, read_recipients, recipients

RAW = bytes(range(32))
KEY = SymmetricKey(SecretBytes(RAW))
TEXT = KEY.encode().decode().strip()
IDENTITY = HpkeIdentity(X25519, SecretBytes(RAW))


@pytest.fixture(autouse=True)
def _no_keys_in_the_environment(monkeypatch):
    monkeypatch.delenv("STRONGROOM_KEY", raising=False)
    monkeypatch.delenv("STRONGROOM_KEY_FILE", raising=False)


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key.txt"
    path.write_bytes(KEY.encode())
    return path


def one(key, environ=None):
    (found,) = identities(key, {} if environ is None else environ)
    return found


class TestWaysToSayAKey:
    def test_path(self, key_file):
        for key in (key_file, str(key_file), f"file:{key_file}", f"file://{key_file}", [key_file]):
            assert one(key).kid == KEY.kid

    def test_relative_path(self, key_file, monkeypatch):
        monkeypatch.chdir(key_file.parent)
        assert one("key.txt").kid == KEY.kid
        assert one("file:key.txt").kid == KEY.kid

    def test_bytes(self):
        for key in (RAW, bytearray(RAW), SecretBytes(RAW), KEY.encode(), bytearray(KEY.encode())):
            assert one(key).kid == KEY.kid

    def test_secret_is_copied(self):
        secret = SecretBytes(RAW)
        found = one(secret)
        secret.wipe()
        assert found.wrap(SecretBytes(RAW), None) == KEY.wrap(SecretBytes(RAW), None)

    def test_objects(self):
        for key in (KEY, Passphrase("x"), IDENTITY):
            assert one(key) is key

    def test_identity_file(self, tmp_path):
        path = tmp_path / "identity"
        path.write_bytes(IDENTITY.encode())
        assert one(path).recipient.kid == IDENTITY.recipient.kid
        assert one(IDENTITY.encode()).recipient.kid == IDENTITY.recipient.kid

    def test_list(self, key_file):
        found = identities([key_file, [IDENTITY, (Passphrase("x"),)]])
        assert [type(key).__name__ for key in found] == ["SymmetricKey", "HpkeIdentity", "Passphrase"]

    def test_environment_by_uri(self):
        assert one("env:MY_KEY", {"MY_KEY": TEXT}).kid == KEY.kid
        assert one("env:MY_KEY", {"MY_KEY": TEXT + "\n"}).kid == KEY.kid

    def test_environment_by_default(self, key_file):
        assert one(None, {"STRONGROOM_KEY": TEXT}).kid == KEY.kid
        assert one(None, {"STRONGROOM_KEY_FILE": str(key_file)}).kid == KEY.kid
        assert recipients(None, environ={"STRONGROOM_KEY": TEXT})[0].kid == KEY.kid

    def test_environment_of_the_process(self, monkeypatch, tmp_path):
        monkeypatch.setenv("STRONGROOM_KEY", TEXT)
        (tmp_path / "m").write_bytes(b"x")
        strongroom.seal(tmp_path / "m", tmp_path / "m.sealed")
        with strongroom.open(tmp_path / "m.sealed") as model:
            assert model.read() == b"x"

    def test_recipients(self):
        public = str(IDENTITY.recipient)
        found = recipients(KEY, [public, IDENTITY.recipient])
        assert [type(key) for key in found] == [SymmetricKey, HpkeRecipient, HpkeRecipient]
        assert recipients(public)[0].kid == IDENTITY.recipient.kid

    def test_a_file_named_like_a_uri(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("env:x").write_bytes(KEY.encode())
        assert one("env:x").kid == KEY.kid


class TestRefusals:
    def check(self, call, error, match=None):
        with pytest.raises(error, match=match) as caught:
            call()
        assert type(caught.value) is error
        return caught.value

    def test_no_key(self):
        # Only the header can say that the key is in a key server.
        header = Header(bytes(16), "m", recipients=({"alg": "A256KW"},))
        for environ in ({}, {"STRONGROOM_KEY": ""}):
            (nobody,) = identities(None, environ)
            error = self.check(lambda nobody=nobody: nobody.unwrap(header), NoKey, "No key was given")
            assert "STRONGROOM_KEY_FILE" in error.hint
        self.check(lambda: recipients(None, None, {}), NoKey, "No key was given")
        self.check(lambda: identities([]), NoKey)
        self.check(lambda: identities([[], ()]), NoKey)
        self.check(lambda: recipients([]), NoKey)
        self.check(lambda: identities("env:NOT_SET", {}), NoKey, "NOT_SET")

    def test_two_in_the_environment(self, key_file):
        environ = {"STRONGROOM_KEY": TEXT, "STRONGROOM_KEY_FILE": str(key_file)}
        self.check(lambda: identities(None, environ), UsageError, "both set")

    def test_bad_key_in_the_environment_is_not_repeated(self):
        error = self.check(lambda: identities(None, {"STRONGROOM_KEY": "hunter2"}), InvalidKey)
        assert "hunter2" not in str(error)

    @pytest.mark.parametrize(
        "literal",
        [
            TEXT,
            TEXT.rstrip("="),
            TEXT + "\n",
            " " + TEXT,
            "ab+/" + TEXT[4:],
            RAW.hex(),
            f"file:{TEXT}",
            f"file://{TEXT}",
            f"env:{TEXT}",
            IDENTITY.encode().decode(),
            IDENTITY.encode().decode().splitlines()[1],
            Path(TEXT),
        ],
    )
    def test_a_key_itself_is_refused_and_not_repeated(self, literal):
        error = self.check(lambda: identities(literal, {}), UsageError)
        chain = error
        while chain is not None:
            shown = f"{chain!s} {getattr(chain, 'hint', '')} {vars(chain)}"
            assert TEXT[5:20] not in shown
            assert RAW.hex()[5:20] not in shown
            assert IDENTITY.encode().decode()[-30:-5] not in shown
            chain = chain.__cause__ or chain.__context__

    @pytest.mark.parametrize("empty", [b"", b"\n", b" \r\n\t"])
    def test_empty_file(self, tmp_path, empty):
        (tmp_path / "key").write_bytes(empty)
        error = self.check(lambda: identities(tmp_path / "key"), InvalidKey, "is empty")
        assert "keygen" in error.hint

    @pytest.mark.parametrize(
        "content",
        [
            b"short",
            KEY.encode()[:20],
            KEY.encode() * 2,
            RAW,
            bytes(range(256)),
            b"\x89PNG\r\n\x1a\n",
            b"hpke-x25519-secret:AAAA\n",
            b"hpke-x25519-secret:\xff\n",
            IDENTITY.encode() * 2,
        ],
    )
    def test_bad_file(self, tmp_path, content):
        path = tmp_path / "key"
        path.write_bytes(content)
        error = self.check(lambda: identities(path), InvalidKey)
        assert str(error).startswith(str(path))

    def test_large_file(self, tmp_path):
        with open(tmp_path / "model", "wb") as file:
            file.truncate(1 << 40)
        self.check(lambda: identities(tmp_path / "model"), InvalidKey, "too large")

    def test_missing_file(self, tmp_path):
        self.check(lambda: identities(tmp_path / "key"), NotFound)
        self.check(lambda: identities(f"file:{tmp_path}/key"), NotFound)

    def test_directory(self, tmp_path):
        self.check(lambda: identities(tmp_path), UsageError, "is a directory")

    def test_recipient_given_to_open(self, tmp_path):
        (tmp_path / "key").write_text(f"{IDENTITY.recipient}\n")
        self.check(lambda: identities(tmp_path / "key"), InvalidKey, "public key")
        self.check(lambda: identities(str(IDENTITY.recipient)), InvalidKey, "not open")
        self.check(lambda: identities(IDENTITY.recipient), InvalidKey, "not open")

    def test_identity_that_cannot_seal(self):
        class OpensOnly:
            def unwrap(self, header):
                raise NotImplementedError

        self.check(lambda: recipients(OpensOnly()), InvalidKey, "not seal")

    @pytest.mark.parametrize("key", [1, 1.5, object(), {"key": 1}, {1}])
    def test_something_else(self, key):
        self.check(lambda: identities(key), UsageError, "cannot be a")

    def test_none_in_a_list(self):
        """Not the environment by accident."""
        self.check(lambda: identities([None], {"STRONGROOM_KEY": TEXT}), UsageError)

    def test_unknown_scheme(self):
        self.check(lambda: identities("no-such-kms:alias/x"), UsageError, "no-such-kms")

    @pytest.mark.parametrize("text", ["hpke-x25519:AAAA", "hpke-p256:AAAA", "hpke-x25519:"])
    def test_bad_recipient(self, text):
        self.check(lambda: recipients(text), InvalidKey)

    def test_parse_key_of_text_with_bad_bytes(self):
        self.check(lambda: parse_key(b"\xff-secret:"), InvalidKey, "ASCII")


def test_unreadable_file(tmp_path):
    """In a child without privileges: root reads everything."""
    script = f"""
import os, sys
from strongroom.providers.sources import identities
from strongroom.errors import UsageError
try:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
except PermissionError:
    pass  # no privileges to begin with
try:
    identities({str(tmp_path / "key")!r})
except UsageError as error:
    assert type(error) is UsageError, repr(error)
    assert "permission denied" in str(error), error
else:
    sys.exit("it was read")
"""
    path = tmp_path / "key"
    path.write_bytes(KEY.encode())
    path.chmod(0)
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_plugin_by_entry_point(tmp_path):
    """A real distribution, found by its metadata; imported only when its scheme is used."""
    info = tmp_path / "acme_kms-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-kms\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[strongroom.key_sources]\nacme = acme_kms:source\n")
    (tmp_path / "acme_kms.py").write_text(
        "from strongroom import SymmetricKey, SecretBytes\n"
        "def source(uri):\n"
        "    assert uri == 'acme:alias/x', uri\n"
        "    return SymmetricKey(SecretBytes(bytes(range(32))))\n"
    )
    script = f"""
import sys
from strongroom.providers.sources import identities
identities({RAW!r})
assert "acme_kms" not in sys.modules
(key,) = identities("acme:alias/x")
assert key.kid == {KEY.kid!r}
"""
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, env=environ)


class TestRecipientsFile:
    def test_lines(self, tmp_path):
        other = HpkeIdentity.generate()
        path = tmp_path / "recipients"
        path.write_text(f"# ours\n\n{IDENTITY.recipient}\r\n  \n#x\n{other.recipient}\n")
        assert [key.kid for key in read_recipients(path)] == [
            IDENTITY.recipient.kid,
            other.recipient.kid,
        ]

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ("# nobody\n", "has no recipients"),
            (f"{IDENTITY.recipient}\nsomething\n", "line 2"),
            (f"{IDENTITY.recipient}A\n", "line 1"),
            (f"\n{IDENTITY.encode().decode()}", "line 3"),
            ("", "is empty"),
        ],
    )
    def test_bad_line(self, tmp_path, content, match):
        path = tmp_path / "recipients"
        path.write_text(content)
        with pytest.raises(InvalidKey, match=match) as caught:
            read_recipients(path)
        assert IDENTITY.encode().decode()[-30:-5] not in str(caught.value)


def test_every_error_is_of_the_tree():
    for key in ("", ":", "file:", "env:", "hpke-x25519-secret:AAAA", "\n", "a" * 5000):
        with pytest.raises(StrongroomError):
            identities(key, {})
