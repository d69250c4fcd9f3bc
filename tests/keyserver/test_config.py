import math
from pathlib import Path

import pytest

from strongroom.errors import NoKey, NotFound, UsageError
from strongroom.keyserver.config import database_url, load_config, parse_config, passphrase_of

BASE = Path("/etc/strongroom")


def document(**changes):
    return {
        "server_id": "keys.example-1",
        "tls": {"certificate": "tls/server.pem", "key": "tls/server.key"},
        "database": {"url": "sqlite:///keyserver.db"},
        "kek": {"source": "file:root.kek"},
    } | changes


def test_paths_are_relative_to_the_file():
    config = parse_config(document(audit={"anchor": "/var/anchor"}), BASE)
    assert config.tls.certificate == BASE / "tls/server.pem"
    assert config.audit.anchor == Path("/var/anchor")
    assert database_url(config, {}) == "sqlite:////etc/strongroom/keyserver.db"
    assert config.kek.source == "file:/etc/strongroom/root.kek"


@pytest.mark.parametrize("source", ["file:/srv/root.kek", "vault:transit/root", "aws-kms:alias/x"])
def test_other_root_keys_stay_where_they_are(source):
    assert parse_config(document(kek={"source": source}), BASE).kek.source == source


def test_the_passphrase_is_read_from_where_the_file_says(tmp_path):
    (tmp_path / "secret").write_text("correct horse\r\nnot this\n")
    config = parse_config(document(kek={"source": "file:k", "passphrase_file": "secret"}), tmp_path)
    assert bytes(passphrase_of(config, {}).buffer) == b"correct horse"
    config = parse_config(document(kek={"source": "file:k", "passphrase_env": "P"}), tmp_path)
    assert bytes(passphrase_of(config, {"P": "staple"}).buffer) == b"staple"
    with pytest.raises(NoKey):
        passphrase_of(config, {"P": ""})
    (tmp_path / "secret").write_text("\nnot this\n")
    config = parse_config(document(kek={"source": "file:k", "passphrase_file": "secret"}), tmp_path)
    with pytest.raises(NoKey):
        passphrase_of(config, {})
    assert passphrase_of(parse_config(document(), tmp_path), {}) is None


def test_an_absolute_database_stays_where_it_is():
    config = parse_config(document(database={"url": "sqlite:////srv/keys.db"}), BASE)
    assert database_url(config, {}) == "sqlite:////srv/keys.db"


def test_the_environment_has_the_last_word_on_the_database():
    config = parse_config(document(), BASE)
    variables = {"STRONGROOM_KEYSERVER_DATABASE": "postgresql+psycopg://u:p@h/d"}
    assert database_url(config, variables) == "postgresql+psycopg://u:p@h/d"


def test_a_database_url_from_a_file(tmp_path):
    (tmp_path / "url").write_text("postgresql+psycopg://u:secret@h/d\n")
    config = parse_config(document(database={"url_file": "url"}), tmp_path)
    assert database_url(config, {}) == "postgresql+psycopg://u:secret@h/d"


def test_no_database_is_refused():
    config = parse_config(document(database={}), BASE)
    with pytest.raises(UsageError, match="No database"):
        database_url(config, {})


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"listen": {"prot": 1}}, "listen.prot is not known"),
        ({"limit": {}}, "limit is not known"),
        ({"listen": {"port": "8443"}}, "listen.port is not a number"),
        ({"listen": {"port": True}}, "listen.port is not a number"),
        ({"listen": {"port": 70000}}, "listen.port is not within 0 to 65535"),
        ({"listen": {"workers": 0}}, "listen.workers is not within"),
        ({"listen": 3}, "listen is not a table"),
        ({"limits": {"requests_per_second": math.nan}}, "limits.requests_per_second is not within"),
        ({"limits": {"requests_per_second": 0}}, "limits.requests_per_second is not within"),
        ({"limits": {"body_bytes": 1.5}}, "limits.body_bytes is not a number"),
        ({"verification": {"timeout_seconds": math.inf}}, "verification.timeout_seconds is not within"),
        ({"tls": {"certificate": "a"}}, "tls.key is missing"),
        ({"tls": {"certificate": "", "key": "b"}}, "tls.certificate is not a path"),
        ({"kek": {}}, "kek.source is missing"),
        ({"kek": {"source": "x", "passphrase": "hunter2"}}, "kek.passphrase is not known"),
        (
            {"kek": {"source": "x", "passphrase_file": "f", "passphrase_env": "E"}},
            "kek has both",
        ),
        ({"database": {"url": "a", "url_file": "b"}}, "database has both"),
        ({"server_id": ""}, "server_id"),
        ({"server_id": "x" * 201}, "server_id"),
        ({"server_id": "kéys"}, "server_id"),
        ({"attestation": {"endorsements": "dir:/x"}}, "attestation.endorsements is not a list"),
        (
            {"attestation": {"issuers": [{"issuer": "i"}]}},
            r"attestation.issuers\[0\].audience is missing",
        ),
        (
            {"auth": {"mtls": [{"name": "a", "role": "god", "subject": "CN=a"}]}},
            r"mtls\[0\].role is none",
        ),
        ({"auth": {"mtls": [{"name": "a", "role": "owner"}]}}, r"mtls\[0\] has not exactly one"),
        (
            {"auth": {"mtls": [{"name": "a", "role": "owner", "subject": "CN=a", "sha256": "0" * 64}]}},
            r"mtls\[0\] has not exactly one",
        ),
        (
            {"auth": {"mtls": [{"name": "a", "role": "owner", "subject": ""}]}},
            r"mtls\[0\] has an empty",
        ),
        ({"auth": {"mtls": [{"name": "a", "role": "owner", "sha256": "AB"}]}}, "64 hexadecimal"),
        (
            {"auth": {"mtls": [{"name": "a", "role": "owner", "subject": "CN=a"}]}},
            "tls.client_ca is missing",
        ),
        (
            {"tls": {"certificate": "c", "key": "k", "client_crl": "l"}},
            "tls.client_ca is missing",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(changes, path):
    with pytest.raises(UsageError, match=path):
        parse_config(document(**changes), BASE)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"listen": {"prot": 1}}, "Did you mean listen.port?"),
        ({"limit": {}}, "Did you mean limits?"),
        ({"audit": {"x": 1}}, "Known: anchor."),
    ],
)
def test_what_may_have_been_meant_is_said(changes, hint):
    with pytest.raises(UsageError) as caught:
        parse_config(document(**changes), BASE)
    assert caught.value.hint == hint


@pytest.mark.parametrize(("server_id", "roots"), [("keys.example-1", "roots"), ("TEST-keys", None)])
def test_test_roots_and_a_test_id_go_together_only(server_id, roots):
    attestation = {} if roots is None else {"insecure_test_roots": roots}
    with pytest.raises(UsageError, match="TEST-"):
        parse_config(document(server_id=server_id, attestation=attestation), BASE)


def test_test_roots_with_a_test_id():
    config = parse_config(
        document(server_id="TEST-keys", attestation={"insecure_test_roots": "roots"}), BASE
    )
    assert config.test
    assert not parse_config(document(), BASE).test


def test_no_value_of_the_file_is_repeated_in_a_message():
    with pytest.raises(UsageError) as caught:
        parse_config(document(kek={"source": ["hunter2"]}), BASE)
    assert "hunter2" not in str(caught.value)


def test_load(tmp_path):
    path = tmp_path / "keyserver.toml"
    with pytest.raises(NotFound):
        load_config(path)
    path.write_text("server_id = ")
    with pytest.raises(UsageError, match="not TOML"):
        load_config(path)
    path.write_text('server_id = "k"\npassword = hunter2')
    with pytest.raises(UsageError, match=r"not TOML, at line 2, column 12\.$"):
        load_config(path)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not TOML"):
        load_config(path)
    path.write_text(
        'server_id = "k"\n[tls]\ncertificate = "c"\nkey = "k"\n[database]\n[kek]\nsource = "file:k"\n'
    )
    assert load_config(path).tls.key == tmp_path / "k"
