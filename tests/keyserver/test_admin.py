"""``keyserver init`` and the verbs that look after a server, as the command line runs them."""

import json
import os
import stat
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtensionOID
from servers import BUNDLE, Machine, Server, new_pki

from strongroom.cli.process import run
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import AlreadyExists, NotFound, StorageError, UsageError, WrongPassphrase
from strongroom.keyserver.config import load_config
from strongroom.keyserver.init import Wanted, initialise
from strongroom.keyserver.opening import open_store
from strongroom.keyserver.store import Actor, Store
from strongroom.providers.keyserver.profile import read_profile
from strongroom.release.answer import Released

OWNER = Actor("test", "owner", "local")
URL = "https://keys.example:9443"


def keyserver(*arguments):
    return run(["keyserver", *map(str, arguments)])


@pytest.fixture
def passphrase():
    """A function that gives a descriptor with a passphrase on it."""
    opened = []

    def give(text):
        read, write = os.pipe()
        os.write(write, text.encode() + b"\n")
        os.close(write)
        opened.append(read)
        return read

    yield give
    for one in opened:
        os.close(one)


@pytest.fixture
def made(tmp_path):
    place = tmp_path / "keys"
    code = keyserver("init", place, "--url", URL, "--kek-key-file", tmp_path / "root.kek", "-q")
    assert code == 0
    return place


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_all_of_it_and_only_its_owner_reads_it(made, tmp_path, capsys):
    assert mode(made) == 0o700
    secret = [
        "owner.token",
        "owner.json",
        "keyserver.toml",
        "keyserver.db",
        "audit.anchor",
        "tls/ca.key",
        "tls/server.key",
    ]
    for name in secret:
        assert mode(made / name) == 0o600, name
    assert mode(tmp_path / "root.kek") == 0o600
    assert mode(made / "profile.json") == 0o644
    config = load_config(made / "keyserver.toml")
    assert (config.listen.host, config.listen.port) == ("0.0.0.0", 9443)
    assert not config.test
    with closing(open_store(config)) as store:
        token = (made / "owner.token").read_text().strip()
        assert store.token(token).role == "owner"
        assert [one["event"] for one in store.audit()] == ["store.created", "token.added"]
    assert token not in capsys.readouterr().out


def test_the_profile_is_one_that_clients_take(made):
    profile = read_profile(made / "profile.json")
    assert profile.url == URL
    assert profile.server_id == load_config(made / "keyserver.toml").server_id
    assert profile.server_id.startswith("keys.example-")


def test_the_profile_of_the_owner_names_the_token_beside_it(made, tmp_path):
    clients = json.loads((made / "profile.json").read_text())
    owner = json.loads((made / "owner.json").read_text())
    assert owner == {**clients, "token_file": "owner.token"}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("owner.json", "owner.token"):
        (made / name).rename(moved / name)
    assert read_profile(moved / "owner.json").token_file == str(moved / "owner.token")


def test_what_is_said_in_the_end_is_what_to_do_next(tmp_path, capsys):
    place = tmp_path / "the keys"
    assert keyserver("init", place, "--kek-key-file", tmp_path / "r") == 0
    said = capsys.readouterr()
    assert f"owner    {place / 'owner.json'}" in said.out
    assert f"STRONGROOM_KEYSERVER='{place / 'owner.json'}' strongroom keys list" in said.err


def test_json_says_where_things_are_and_not_the_token(tmp_path, capsys):
    assert keyserver("init", tmp_path / "k", "--kek-key-file", tmp_path / "r", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["config"]).is_file()
    assert Path(said["owner"]).is_file()
    assert Path(said["token_file"]).read_text().strip() not in str(said)


def test_certificates_are_for_their_purposes(made):
    ca, server = (
        x509.load_pem_x509_certificate((made / "tls" / name).read_bytes())
        for name in ("ca.pem", "server.pem")
    )
    server.verify_directly_issued_by(ca)
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["keys.example", "localhost"]
    life = server.not_valid_after_utc - server.not_valid_before_utc
    assert life < timedelta(days=398)
    assert ca.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3600)
    usage = server.extensions.get_extension_for_oid(ExtensionOID.EXTENDED_KEY_USAGE).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]


def test_init_never_replaces_anything(made, tmp_path, capsys):
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert keyserver("init", made, "--kek-key-file", tmp_path / "other") == 2
    assert "not empty" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "other").exists()


def test_init_into_a_database_that_has_a_store_leaves_nothing_behind(tmp_path, database_url):
    initialise(tmp_path / "one", Wanted(URL, kek_key_file=tmp_path / "one.kek", database=database_url))
    with pytest.raises(AlreadyExists):
        initialise(
            tmp_path / "two", Wanted(URL, kek_key_file=tmp_path / "two.kek", database=database_url)
        )
    assert not (tmp_path / "two").exists()
    assert not (tmp_path / "two.kek").exists()


def test_a_failed_init_leaves_a_directory_and_a_root_key_that_were_there(tmp_path, monkeypatch):
    (tmp_path / "keys").mkdir()
    with closing(Store.create(f"sqlite:///{tmp_path}/x.db", _kek(tmp_path / "root.kek"))):
        pass

    def fail(*arguments, **options):
        raise StorageError("The disk is full.")

    monkeypatch.setattr(Store, "create", fail)
    with pytest.raises(StorageError):
        initialise(tmp_path / "keys", Wanted(URL, kek_key_file=tmp_path / "root.kek"))
    assert list((tmp_path / "keys").iterdir()) == []
    assert (tmp_path / "root.kek").exists()


def _kek(path):
    from strongroom.keyserver.kek import create_kek

    return create_kek(f"file:{path}")


@pytest.mark.parametrize(
    "url",
    [
        "http://keys",
        "https://",
        "keys:1",
        "https://u@k",
        "https://k/x",
        "https://k:99999",
        "https://k?x",
    ],
)
def test_urls_that_are_none(tmp_path, url):
    with pytest.raises(UsageError):
        initialise(tmp_path / "keys", Wanted(url, kek_key_file=tmp_path / "root.kek"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"passphrase": SecretBytes(b"x"), "kek_key_file": Path("y")},
        {"kek": "file:x", "kek_key_file": Path("y")},
    ],
)
def test_one_root_key_and_one_only(tmp_path, wanted):
    with pytest.raises(UsageError, match="root key"):
        initialise(tmp_path / "keys", Wanted(URL, **wanted))
    assert not (tmp_path / "keys").exists()


def test_test_roots_must_be_named_so(tmp_path):
    (tmp_path / "root.pem").write_text("x")
    with pytest.raises(UsageError, match="no roots for tests"):
        initialise(
            tmp_path / "keys",
            Wanted(URL, kek_key_file=tmp_path / "k", insecure_test_roots=tmp_path / "root.pem"),
        )
    with pytest.raises(NotFound):
        initialise(
            tmp_path / "keys",
            Wanted(URL, kek_key_file=tmp_path / "k", insecure_test_roots=tmp_path / "nothing"),
        )


def test_test_roots_are_told_of_loudly(tmp_path, capsys):
    new_pki().save(tmp_path / "pki")
    arguments = ("--kek-key-file", tmp_path / "r", "--insecure-test-roots", tmp_path / "pki")
    assert keyserver("init", tmp_path / "keys", *arguments) == 0
    assert "warning" in capsys.readouterr().err
    assert load_config(tmp_path / "keys/keyserver.toml").server_id.startswith("TEST-")


def test_the_passphrase_protects_the_root_key(tmp_path, passphrase):
    place = tmp_path / "keys"
    assert keyserver("init", place, "--passphrase-fd", passphrase("one"), "-q") == 0
    config = ("-c", place / "keyserver.toml")
    assert keyserver("migrate", *config, "--passphrase-fd", passphrase("two")) == 4
    assert keyserver("migrate", *config, "--passphrase-fd", passphrase("one")) == 0
    changed = ("--passphrase-fd", passphrase("one"), "--new-passphrase-fd", passphrase("two"))
    assert keyserver("change-passphrase", *config, *changed) == 0
    assert keyserver("migrate", *config, "--passphrase-fd", passphrase("one")) == 4
    assert keyserver("verify", *config, "--passphrase-fd", passphrase("two")) == 0
    with pytest.raises(WrongPassphrase):
        open_store(load_config(place / "keyserver.toml"), SecretBytes(b"one"))


def test_another_root_key(made, tmp_path, capsys):
    config = made / "keyserver.toml"
    with closing(open_store(load_config(config))) as store:
        store.add_key("resnet50", None, BUNDLE, SecretBytes(b"k" * 32), OWNER, {})
    assert keyserver("rotate-kek", "-c", config, "--to", f"file:{tmp_path}/new.kek") == 0
    assert "Keys under the new root key: 1" in capsys.readouterr().err
    assert keyserver("verify", "-c", config) == 4
    config.write_text(config.read_text().replace(str(tmp_path / "root.kek"), str(tmp_path / "new.kek")))
    (tmp_path / "root.kek").unlink()
    assert keyserver("verify", "-c", config) == 0
    with closing(open_store(load_config(config))) as store:
        assert store.dek(store.key("resnet50", None)) == SecretBytes(b"k" * 32)


def test_a_running_server_is_not_ready_when_its_keys_have_moved(tmp_path, capsys):
    pki = new_pki()
    server = Server.make(tmp_path / "made", pki=pki).start()
    try:
        server.add_key()
        server.put_policy()
        assert server.ask("GET", "/readyz").status == 200
        new = f"file:{tmp_path}/new.kek"
        assert keyserver("rotate-kek", "-c", server.config, "--to", new) == 0
        assert server.ask("GET", "/readyz").status == 503
        server.stop()
        server.configure("kek", source=new)
        server.start()
        (released,) = Machine(pki).ask(server)
        assert isinstance(released, Released)
    finally:
        server.stop()


def test_a_token_where_the_last_one_is_lost(made, tmp_path, capsys):
    config = made / "keyserver.toml"
    with closing(open_store(load_config(config))) as store:
        for one in store.tokens():
            store.drop_token(one.id, OWNER)
    assert keyserver("token", "-c", config, "-o", tmp_path / "new.token") == 0
    assert mode(tmp_path / "new.token") == 0o600
    token = (tmp_path / "new.token").read_text().strip()
    with closing(open_store(load_config(config))) as store:
        assert store.token(token).role == "owner"
        assert store.audit()[-1]["actor"] == {"name": "console", "role": "owner", "kind": "local"}
    captured = capsys.readouterr()
    assert token not in captured.out + captured.err
    # A token that could not be written must not be left behind as good.
    assert keyserver("token", "-c", config, "-o", tmp_path / "new.token") == 2
    with closing(open_store(load_config(config))) as store:
        assert len(store.tokens()) == 1


def test_the_clock_and_the_head_are_accepted_with_a_reason(made):
    config = made / "keyserver.toml"
    assert keyserver("accept-clock", "-c", config) == 2
    assert keyserver("accept-clock", "-c", config, "--reason", "was ahead") == 0
    with closing(open_store(load_config(config))) as store:
        assert "was ahead" in str(store.audit()[-1])


def test_backup_while_it_runs_and_restore(tmp_path, capsys):
    pki = new_pki()
    server = Server.make(tmp_path / "made", pki=pki).start()
    try:
        key = server.add_key()
        server.put_policy()
        copy = tmp_path / "copy.db"
        assert keyserver("backup", "-c", server.config, copy) == 0
        assert mode(copy) == 0o600
        assert keyserver("backup", "-c", server.config, copy) == 2
        (released,) = Machine(pki).ask(server)
        assert isinstance(released, Released)
    finally:
        server.stop()
    place = server.directory / "keyserver.db"
    for path in server.directory.glob("keyserver.db*"):
        path.unlink()
    copy.rename(place)
    # It is older than what the anchor knows: nobody puts it there unnoticed.
    assert keyserver("migrate", "-c", server.config) == 5
    assert "accept-head" in capsys.readouterr().err
    assert keyserver("accept-head", "-c", server.config, "--reason", "disk lost") == 0
    server.start()
    try:
        (released,) = Machine(pki).ask(server)
        assert released.dek == key
        assert "disk lost" in str(server.admin("GET", "/v1/audit")["records"])
    finally:
        server.stop()


def test_backup_is_for_sqlite(tmp_path, postgres, capsys):
    initialise(
        tmp_path / "keys", Wanted(URL, kek_key_file=tmp_path / "k", database=postgres.database())
    )
    assert keyserver("backup", "-c", tmp_path / "keys/keyserver.toml", tmp_path / "x") == 2
    assert "pg_dump" in capsys.readouterr().err


def test_a_renewed_certificate_has_the_names_of_the_old_one(made, capsys):
    def names():
        certificate = x509.load_pem_x509_certificate((made / "tls/server.pem").read_bytes())
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return certificate.serial_number, found.get_values_for_type(x509.DNSName)

    serial, before = names()
    config = ("-c", made / "keyserver.toml")
    assert keyserver("renew-certificate", *config) == 0
    assert names()[1] == before
    assert names()[0] != serial
    assert mode(made / "tls/server.key") == 0o600
    assert keyserver("renew-certificate", *config, "--host", "new.example", "--host", "192.0.2.7") == 0
    assert names()[1] == ["new.example", "localhost"]
    assert "good until" in capsys.readouterr().err


def test_a_configuration_that_is_not_there(tmp_path, capsys):
    for verb in ("run", "migrate", "verify", "renew-certificate"):
        assert keyserver(verb, "-c", tmp_path / "none.toml") == 2
    assert "none.toml" in capsys.readouterr().err


def test_a_passphrase_in_a_file_is_found_at_each_start(tmp_path, capsys):
    words = tmp_path / "passphrase"
    words.write_text("correct horse\nnot this\n")
    assert keyserver("init", tmp_path / "keys", "--passphrase-file", words) == 0
    config = tmp_path / "keys" / "keyserver.toml"
    assert load_config(config).kek.passphrase_file == words
    assert "correct" not in config.read_text()
    assert keyserver("verify", "-c", config) == 0
    words.write_text("wrong\n")
    assert keyserver("verify", "-c", config) == 4
    for other in (("--kek-key-file", tmp_path / "k"), ("--passphrase-fd", 0)):
        assert keyserver("init", tmp_path / "other", "--passphrase-file", words, *other) == 2
    words.write_text("")
    assert keyserver("init", tmp_path / "other", "--passphrase-file", words) == 4
    assert not (tmp_path / "other").exists()


def test_an_anchor_is_made_for_a_new_replica_and_left_to_an_old_one(made, capsys):
    config, anchor = made / "keyserver.toml", made / "audit.anchor"
    before = anchor.read_bytes()
    started = ("accept-head", "-c", config, "--reason", "first start", "--if-missing")
    assert keyserver(*started) == 0
    assert anchor.read_bytes() == before
    anchor.unlink()
    assert keyserver("verify", "-c", config) == 2
    assert keyserver(*started) == 0
    assert keyserver("verify", "-c", config) == 0
