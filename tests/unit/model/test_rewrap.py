import errno
import os
import stat

import pytest

import strongroom
import strongroom.testing.raw
from strongroom import HpkeIdentity, Passphrase, SymmetricKey
from strongroom.crypto.hpke import X25519
from strongroom.errors import (
    HeaderTampered,
    IntegrityError,
    LimitExceeded,
    ManifestMismatch,
    NoMatchingRecipient,
    NotFound,
    NotSealed,
    SourceChanged,
    StorageError,
    UsageError,
    WrongPassphrase,
)
from strongroom.model import rewrap as module
from strongroom.model.reader import read_area
from strongroom.model.storage import LocalSource
from strongroom.testing.raw import pattern, sealed, symmetric_entry

PLAIN = pattern("rewrap", 200_000)


@pytest.fixture
def single(tmp_path, key):
    (tmp_path / "m").write_bytes(PLAIN)
    strongroom.seal(tmp_path / "m", tmp_path / "m.sealed", key=key, segment_size=65536, name="n")
    (tmp_path / "m").unlink()
    return tmp_path / "m.sealed"


@pytest.fixture
def directory(tmp_path, key):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(PLAIN)
    strongroom.seal(tmp_path / "d", tmp_path / "d.sealed", key=key)
    return tmp_path / "d.sealed"


def area_of(path):
    source = LocalSource(path)
    try:
        return read_area(source)
    finally:
        source.close()


def payload(path):
    return path.read_bytes()[area_of(path).size :]


def recipients(path):
    return [entry["alg"] for entry in area_of(path).header.recipients]


def opens(path, key):
    with strongroom.open(path, key=key) as model:
        model.verify()
        return model.read("m")


NEW = {
    "symmetric": SymmetricKey.generate,
    "hpke": HpkeIdentity.generate,
    "hpke-x25519": lambda: HpkeIdentity.generate(X25519),
    "passphrase": lambda: Passphrase("new"),
}


@pytest.mark.parametrize("kind", NEW)
def test_each_kind(single, key, kind):
    before, meta = payload(single), area_of(single).header.meta
    new = NEW[kind]()
    strongroom.rewrap(single, key=key, new_key=new)
    assert payload(single) == before
    assert area_of(single).header.meta == meta
    assert opens(single, new) == PLAIN
    with pytest.raises(NoMatchingRecipient):
        strongroom.open(single, key=key)
    strongroom.rewrap(single, key=new, new_key=key)
    assert opens(single, key) == PLAIN
    assert os.listdir(single.parent) == ["m.sealed"]


def test_recipients_by_public_key(single, key):
    identity = HpkeIdentity.generate()
    strongroom.rewrap(single, key=key, recipients=str(identity.recipient))
    assert opens(single, identity) == PLAIN


def test_keep(single, key):
    new = SymmetricKey.generate()
    strongroom.rewrap(single, key=key, new_key=new, keep=True)
    assert opens(single, key) == opens(single, new) == PLAIN
    assert recipients(single) == ["A256KW", "A256KW"]


def test_keep_has_nobody_twice(single, key):
    identity = HpkeIdentity.generate(X25519)
    for _ in range(3):
        strongroom.rewrap(single, key=key, new_key=[key, identity], keep=True)
    assert sorted(recipients(single)) == ["A256KW", "HPKE-X25519"]
    assert opens(single, identity) == PLAIN


def test_keep_keeps_recipients_of_the_future(tmp_path, key):
    path = tmp_path / "m.sealed"
    future = {"alg": "future", "uri": "x", "more": [1]}
    path.write_bytes(sealed(PLAIN, recipients=[future, symmetric_entry()]))
    strongroom.rewrap(path, key=strongroom.testing.raw.KEY, new_key=key, keep=True)
    assert area_of(path).header.recipients[0] == future
    strongroom.rewrap(path, key=key, new_key=key)
    assert recipients(path) == ["A256KW"]


def test_header_area_grows_and_stays(single, key):
    many = [HpkeIdentity.generate() for _ in range(3)]
    before = payload(single)
    strongroom.rewrap(single, key=key, new_key=[key, *many])
    assert area_of(single).size == 8192
    assert payload(single) == before
    assert opens(single, many[2]) == PLAIN
    strongroom.rewrap(single, key=key, new_key=key)
    assert area_of(single).size == 8192, "it does not shrink: the payload need not move then"
    assert opens(single, key) == PLAIN


def test_directory(directory, key):
    before = {p.name: p.read_bytes() for p in directory.iterdir() if p.name != "MANIFEST.sealed"}
    inode = (directory / "a.sealed").stat().st_ino
    new = Passphrase("new")
    strongroom.rewrap(directory, key=key, new_key=new)
    assert {
        p.name: p.read_bytes() for p in directory.iterdir() if p.name != "MANIFEST.sealed"
    } == before
    assert (directory / "a.sealed").stat().st_ino == inode
    with strongroom.open(directory, key=new) as model:
        assert model.read("a") == PLAIN


def test_mode_and_link_are_kept(single, key, tmp_path):
    single.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("m.sealed")
    strongroom.rewrap(link, key=key, new_key=key)
    assert link.is_symlink()
    assert stat.S_IMODE(single.stat().st_mode) == 0o640


def test_owner_is_kept(single, key):
    try:
        os.chown(single, 1234, 5678)
    except PermissionError:
        pytest.skip("this user cannot give files away")
    strongroom.rewrap(single, key=key, new_key=key)
    assert (single.stat().st_uid, single.stat().st_gid) == (1234, 5678)


class TestRefused:
    @pytest.fixture(autouse=True)
    def _nothing_changes(self, single):
        before, inode = single.read_bytes(), single.stat().st_ino
        yield
        assert single.read_bytes() == before
        assert single.stat().st_ino == inode
        assert [name for name in os.listdir(single.parent) if name.endswith(".partial")] == []

    def test_wrong_key(self, single, other_key):
        with pytest.raises(NoMatchingRecipient):
            strongroom.rewrap(single, key=other_key, new_key=other_key)

    def test_nobody(self, single, key):
        with pytest.raises(UsageError, match="for somebody"):
            strongroom.rewrap(single, key=key)
        with pytest.raises(UsageError, match="for somebody"):
            module.rewrap_model(single, lambda: [key], [])

    def test_too_many_recipients(self, single, key):
        class Fat:
            def wrap(self, dek, header):
                return {"alg": "fat", "uri": "x" * (1 << 20)}

        with pytest.raises(LimitExceeded):
            strongroom.rewrap(single, key=key, new_key=[key, Fat()])

    def test_too_many_passphrases(self, single, key, monkeypatch):
        monkeypatch.setattr("strongroom.keys.passphrase._MEMORY", 32)
        with pytest.raises(LimitExceeded):
            strongroom.rewrap(single, key=key, new_key=[Passphrase(str(n)) for n in range(9)])

    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
    def test_failing_copy(self, single, key, monkeypatch, error):
        def failing(*args):
            raise OSError(error, "failed")

        monkeypatch.setattr(module.os, "copy_file_range", failing)
        with pytest.raises(StorageError):
            strongroom.rewrap(single, key=key, new_key=key)

    def test_interrupted(self, single, key, monkeypatch):
        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(module.os, "copy_file_range", interrupt)
        with pytest.raises(KeyboardInterrupt):
            strongroom.rewrap(single, key=key, new_key=key)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL])
def test_systems_that_cannot_copy_in_the_kernel(single, key, monkeypatch, error):
    def unsupported(*args):
        raise OSError(error, "unsupported")

    monkeypatch.setattr(module.os, "copy_file_range", unsupported)
    monkeypatch.setattr(module, "_CHUNK", 70_000)
    strongroom.rewrap(single, key=key, new_key=key)
    assert opens(single, key) == PLAIN


def test_replaced_meanwhile(single, key, other_key, tmp_path, monkeypatch):
    """The newer file wins: a rewrap must not put the old model back."""
    (tmp_path / "m").write_bytes(b"newer")
    real = module._copy_range

    def replace_then_copy(*args):
        strongroom.seal(tmp_path / "m", single, key=other_key, overwrite=True)
        real(*args)

    monkeypatch.setattr(module, "_copy_range", replace_then_copy)
    with pytest.raises(SourceChanged):
        strongroom.rewrap(single, key=key, new_key=key)
    assert opens(single, other_key) == b"newer"


def test_cut_meanwhile(single, key, monkeypatch):
    real = module._copy_range

    def cut_then_copy(*args):
        os.truncate(single, 100_000)
        real(*args)

    monkeypatch.setattr(module, "_copy_range", cut_then_copy)
    with pytest.raises((StorageError, SourceChanged)):
        strongroom.rewrap(single, key=key, new_key=key)
    assert [name for name in os.listdir(single.parent) if name.endswith(".partial")] == []


def test_forged_header_gets_no_mac(tmp_path, key):
    """A rewrap of a changed header would make it authentic."""
    path = tmp_path / "m.sealed"
    original = bytearray(sealed(PLAIN))
    at = original.index(b'"test"')
    original[at + 1 : at + 5] = b"evil"
    path.write_bytes(original)
    with pytest.raises(HeaderTampered):
        strongroom.rewrap(path, key=strongroom.testing.raw.KEY, new_key=key)
    assert path.read_bytes() == original


def test_other_refusals(tmp_path, directory, key):
    with pytest.raises(NotFound):
        strongroom.rewrap(tmp_path / "no", key=key, new_key=key)
    (tmp_path / "plain").write_bytes(b"plain text of some length")
    with pytest.raises(NotSealed):
        strongroom.rewrap(tmp_path / "plain", key=key, new_key=key)
    with pytest.raises(NotSealed):
        strongroom.rewrap(tmp_path / "d", key=key, new_key=key)
    with pytest.raises(ManifestMismatch):
        strongroom.rewrap(directory / "a.sealed", key=key, new_key=key)
    path = tmp_path / "p.sealed"
    path.write_bytes(sealed(b"x", recipients=[strongroom.testing.raw.passphrase_entry()]))
    with pytest.raises(WrongPassphrase):
        strongroom.rewrap(path, key=Passphrase("no"), new_key=key)


def test_a_damaged_payload_stays_refused(single, key):
    data = bytearray(single.read_bytes())
    data[-1] ^= 1
    single.write_bytes(data)
    strongroom.rewrap(single, key=key, new_key=key)
    with pytest.raises(IntegrityError):
        strongroom.verify(single, key=key)
