"""Root keys: all kinds keep the same promises; and each what is its own."""

from __future__ import annotations

import functools
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from kek_places import PIN, tcti
from stores import OWNER, Clock, Store, add_key
from stores import kek as other_kek

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import (
    AlreadyExists,
    HeaderTampered,
    InvalidKey,
    MissingExtra,
    NoKey,
    NotFound,
    Unavailable,
    UsageError,
    WrongPassphrase,
)
from strongroom.keyserver.kek import (
    KINDS,
    RootKek,
    create_kek,
    in_file,
    needs_passphrase,
    open_kek,
)


def secret(text):
    return SecretBytes(text.encode())


SOURCES = ["file_source", "pkcs11_source", "aws_source", "vault_source", "tpm_source"]


@pytest.fixture(params=SOURCES)
def source(request):
    place, passphrase = request.getfixturevalue(request.param)
    return place, passphrase and secret(passphrase)


def test_every_kind_wraps_and_unwraps(source):
    made = create_kek(*source)
    assert isinstance(made, RootKek) and len(made.id) <= 300
    dek = SecretBytes.random(32)
    wrapped = made.wrap(dek, b'{"a":1}')
    assert bytes(dek.buffer) not in wrapped
    assert wrapped != made.wrap(dek, b'{"a":1}')
    assert made.unwrap(wrapped, b'{"a":1}') == dek
    again = open_kek(*source)
    assert again.id == made.id
    assert again.unwrap(wrapped, b'{"a":1}') == dek


def test_every_kind_refuses_what_was_changed_or_is_of_another_place(source):
    made = create_kek(*source)
    dek = SecretBytes(b"SECRETSECRETSECRETSECRETSECRET!!")
    wrapped = made.wrap(dek, b'{"a":1}')
    wrong = [(wrapped, b'{"a":2}'), (wrapped, b""), (b"", b'{"a":1}'), (wrapped + b"0", b'{"a":1}')]
    wrong += [(wrapped[:size], b'{"a":1}') for size in (1, 12, 28, len(wrapped) - 1)]
    for index in range(0, len(wrapped), 7):
        changed = bytearray(wrapped)
        changed[index] ^= 1
        wrong.append((bytes(changed), b'{"a":1}'))
    # Of a blob that names another key, KMS says that the access to that key is denied.
    expected = (HeaderTampered, Unavailable) if made.id.startswith("aws-kms:") else HeaderTampered
    for one, aad in wrong:
        with pytest.raises(expected) as caught:
            made.unwrap(one, aad)
        assert "SECRET" not in str(caught.value) + repr(caught.value.__context__)
    assert made.unwrap(wrapped, b'{"a":1}') == dek


def test_every_kind_makes_a_new_key_and_none_twice(source):
    create_kek(*source)
    with pytest.raises(AlreadyExists):
        create_kek(*source)


def test_every_kind_says_when_nothing_is_there(source):
    with pytest.raises(NotFound):
        open_kek(*source)


def test_every_kind_says_whether_a_secret_must_be_given(source):
    create_kek(*source)
    assert needs_passphrase(source[0]) is (source[1] is not None)
    if source[1] is not None:
        with pytest.raises(NoKey):
            open_kek(source[0])


def test_a_root_key_in_a_file_is_found_there():
    assert in_file("tpm:/a/b?tcti=swtpm:path=/c?d") == Path("/a/b")
    assert in_file("file:/a?b") == Path("/a?b")
    assert in_file("vault:transit/x") is None


def test_every_kind_is_safe_for_threads(source):
    made = create_kek(*source)
    problems = []

    def work(number):
        try:
            for index in range(5):
                dek = SecretBytes.random(32)
                aad = f"{number}-{index}".encode()
                assert made.unwrap(made.wrap(dek, aad), aad) == dek
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert problems == []


def test_every_kind_keeps_a_store(source, tmp_path):
    made = create_kek(*source)
    url = f"sqlite:///{tmp_path}/k.db"
    dek = SecretBytes.random(32)
    with Store.create(url, made, clock=Clock()) as store:
        add_key(store, dek=dek)
        store.set_state("m/x", 1, "deprecated", OWNER, "x")
    with Store(url, open_kek(*source), clock=Clock()) as store:
        assert store.dek(store.key("m/x")) == dek
        assert store.verify()
        store.rotate_kek(other_kek(), OWNER)
        assert store.dek(store.key("m/x")) == dek
    with pytest.raises(InvalidKey):
        Store(url, open_kek(*source), clock=Clock())


@pytest.mark.parametrize("text", ["", "file", "file:", "gpg:x", ":x", "x"])
def test_what_is_no_source_is_refused(text):
    with pytest.raises(UsageError, match="source of a root key"):
        open_kek(text)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"file"}))
def test_a_missing_package_is_named(kind, monkeypatch):
    module, extra = KINDS[kind]
    monkeypatch.delitem(sys.modules, module, raising=False)
    package = {"pkcs11": "pkcs11", "aws-kms": "boto3", "vault": "hvac", "tpm": "tpm2_pytss"}[kind]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra) as caught:
        open_kek(f"{kind}:x/y")
    assert caught.value.extra == extra


# Files


def test_a_file_is_for_its_owner_alone(file_source, tmp_path):
    create_kek(file_source[0], secret("p"))
    path = tmp_path / "root.json"
    assert path.stat().st_mode & 0o777 == 0o600
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(InvalidKey, match="read by others"):
            open_kek(file_source[0], secret("p"))


def test_a_secret_of_root_may_be_for_the_group_of_the_server(file_source, tmp_path, monkeypatch):
    create_kek(file_source[0], secret("p"))
    path, fstat = tmp_path / "root.json", os.fstat

    def owned_by(owner, descriptor):
        found = list(fstat(descriptor))
        found[stat.ST_UID] = owner
        return os.stat_result(found)

    for owner, user, mode, fits in (
        *((0, 65532, mode, True) for mode in (0o400, 0o440, 0o640)),
        *((0, 65532, mode, False) for mode in (0o444, 0o460, 0o450, 0o644)),
        # Whose own group may have others in it, or who is root and needs no group.
        (65532, 65532, 0o440, False),
        (0, 0, 0o440, False),
    ):
        monkeypatch.setattr(os, "fstat", functools.partial(owned_by, owner))
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        path.chmod(mode)
        if fits:
            open_kek(file_source[0], secret("p"))
        else:
            with pytest.raises(InvalidKey, match="read by others"):
                open_kek(file_source[0], secret("p"))


def test_a_passphrase_is_needed_and_the_right_one(file_source, tmp_path):
    place = file_source[0]
    made = create_kek(place, secret("Stra\u00dfe e\u0301"))
    assert open_kek(place, secret("Stra\u00dfe \u00e9")).id == made.id  # normal form C
    with pytest.raises(NoKey):
        open_kek(place)
    for wrong in ("strasse", "Stra\u00dfe e", " "):
        with pytest.raises(WrongPassphrase):
            open_kek(place, secret(wrong))
    with pytest.raises(InvalidKey):
        open_kek(place, SecretBytes(b"\xff"))
    assert "Stra" not in (tmp_path / "root.json").read_text()


def test_a_file_without_passphrase_holds_the_key_itself(file_source):
    made = create_kek(file_source[0])
    assert open_kek(file_source[0]).id == made.id


def test_every_member_of_a_file_counts(file_source, tmp_path):
    place, path = file_source[0], tmp_path / "root.json"
    create_kek(place, secret("p"))
    document = json.loads(path.read_text())
    changes = [
        ("v", 2),
        ("kind", "x"),
        ("key", document["key"][:-4]),
        ("key", None),
        ("protection", {"by": "mode"}),
        ("protection", {"by": "rot13"}),
        ("protection", {}),
        ("protection", None),
    ]
    for name, value in (("t", 2), ("m", 1 << 15), ("p", 1), ("salt", "A" * 22), ("more", 1)):
        changes.append(("protection", {**document["protection"], name: value}))
    for name, value in (("t", 0), ("t", 10**6), ("m", 1 << 40), ("p", 10**6), ("t", "3"), ("t", True)):
        changes.append(("protection", {**document["protection"], name: value}))
    for name, value in changes:
        path.write_text(json.dumps({**document, name: value}))
        with pytest.raises((InvalidKey, WrongPassphrase)) as caught:
            open_kek(place, secret("p"))
        assert document["key"] not in str(caught.value)
    for junk in (b"", b"{}", b"\xff", b"[]", b"{" * 10000):
        path.write_bytes(junk)
        with pytest.raises(InvalidKey):
            open_kek(place, secret("p"))
    path.write_text(json.dumps(document))
    open_kek(place, secret("p"))


def test_a_passphrase_can_be_changed_without_touching_a_database(file_source, tmp_path):
    from strongroom.keyserver.keks.file import change_passphrase

    place, path = file_source[0], tmp_path / "root.json"
    made = create_kek(place, secret("old"))
    with pytest.raises(WrongPassphrase):
        change_passphrase(str(path), secret("wrong"), secret("new"))
    change_passphrase(str(path), secret("old"), secret("new"))
    assert open_kek(place, secret("new")).id == made.id
    with pytest.raises(WrongPassphrase):
        open_kek(place, secret("old"))
    assert [one.name for one in tmp_path.iterdir()] == ["root.json"]
    assert path.stat().st_mode & 0o777 == 0o600


# HSMs


def test_the_key_never_leaves_the_hsm(pkcs11_source):
    import pkcs11

    made = create_kek(pkcs11_source[0], secret(PIN))
    with pytest.raises(pkcs11.AttributeSensitive):
        made._key[pkcs11.Attribute.VALUE]


def test_a_wrong_pin_token_and_uri_are_refused(pkcs11_source):
    place = pkcs11_source[0]
    other = place.replace("token=keys", "token=pins")
    create_kek(other, secret(PIN)).close()
    for wrong in ("9999", "1", "1" * 300):
        with pytest.raises(WrongPassphrase):
            open_kek(other, secret(wrong))
    with pytest.raises(NoKey):
        open_kek(other)
    open_kek(other, secret(PIN)).close()
    create_kek(place, secret(PIN))
    with pytest.raises(NotFound, match="token"):
        open_kek(place.replace("token=keys", "token=none"), secret(PIN))
    with pytest.raises(NotFound, match="no key"):
        open_kek(place.replace("token=keys", "token=others"), secret(PIN))
    with pytest.raises(NotFound):
        open_kek(place.replace("softhsm2", "softhsm9"), secret(PIN))
    for junk in (
        "pkcs11:x",
        "pkcs11:token=a;object=b",
        place + "&pin-value=1",
        place.replace("object", "id"),
    ):
        with pytest.raises(UsageError):
            open_kek(junk, secret(PIN))


def test_the_pin_can_be_in_a_file(pkcs11_source, tmp_path):
    place = f"{pkcs11_source[0]}&pin-source=file:{tmp_path}/pin"
    with pytest.raises(NotFound):
        open_kek(place)
    for junk in (b"", b"\n", b"\xff", b"12\x0034"):
        (tmp_path / "pin").write_bytes(junk)
        with pytest.raises(InvalidKey, match="PIN is no text"):
            open_kek(place)
    (tmp_path / "pin").write_text(PIN + "\r\nnot this")
    assert create_kek(place).id == open_kek(place).id
    assert not needs_passphrase(place)


def test_keys_of_an_hsm_that_could_leave_it_are_refused(pkcs11_source):
    import pkcs11

    from strongroom.keyserver.keks.pkcs11 import _session

    place = pkcs11_source[0]
    label = place.split("object=")[1].split("?")[0]
    session, _ = _session(place.partition(":")[2], secret(PIN), write=True)
    with session:
        for template in ({pkcs11.Attribute.EXTRACTABLE: True}, {pkcs11.Attribute.SENSITIVE: False}):
            key = session.generate_key(
                pkcs11.KeyType.AES, 256, id=b"1", label=label, store=True, template=template
            )
            with pytest.raises(InvalidKey, match="not extractable"):
                open_kek(place, secret(PIN))
            key.destroy()
        short = session.generate_key(pkcs11.KeyType.AES, 128, id=b"1", label=label, store=True)
        with pytest.raises(InvalidKey, match="256 bits"):
            open_kek(place, secret(PIN))
        short.destroy()
        for _ in range(2):
            session.generate_key(pkcs11.KeyType.AES, 256, id=b"1", label=label, store=True)
        with pytest.raises(UsageError, match="Several keys"):
            open_kek(place, secret(PIN))


def test_an_hsm_that_is_gone_is_unavailable_and_no_tampering(pkcs11_source):
    made = create_kek(pkcs11_source[0], secret(PIN))
    dek = SecretBytes.random(32)
    wrapped = made.wrap(dek, b"")
    made.close()
    for attempt in (lambda: made.wrap(dek, b""), lambda: made.unwrap(wrapped, b"")):
        with pytest.raises(Unavailable, match="HSM"):
            attempt()


def test_an_hsm_that_was_gone_is_used_again(pkcs11_source, softhsm, monkeypatch):
    monkeypatch.setattr("strongroom.keyserver.keks.pkcs11._AGAIN_SECONDS", 0.0)
    made = create_kek(pkcs11_source[0], secret(PIN))
    dek = SecretBytes.random(32)
    wrapped = made.wrap(dek, b"")
    for first in (lambda: made.unwrap(wrapped, b""), lambda: made.wrap(dek, b"")):
        (softhsm / "tokens").rename(softhsm / "away")
        try:
            for attempt in (lambda: made.wrap(dek, b""), lambda: made.unwrap(wrapped, b"")):
                with pytest.raises(Unavailable, match="HSM") as caught:
                    attempt()
                assert PIN not in str(caught.value) + repr(caught.value.__context__)
        finally:
            (softhsm / "away").rename(softhsm / "tokens")
        first()
        assert made.unwrap(wrapped, b"") == dek
    # A session that is new does not make a change look like an outage.
    with pytest.raises(HeaderTampered):
        made.unwrap(wrapped[:-1] + bytes([wrapped[-1] ^ 1]), b"")


def test_an_hsm_that_is_away_is_not_asked_at_every_request(pkcs11_source):
    from strongroom.keyserver.keks.pkcs11 import Pkcs11Kek, _open

    attempts = []

    def connect():
        attempts.append(1)
        if len(attempts) > 1:
            raise Unavailable("away")
        return _open(pkcs11_source[0].partition(":")[2], secret(PIN))

    create_kek(pkcs11_source[0], secret(PIN)).close()
    made = Pkcs11Kek(connect)
    made._session.close()
    for _ in range(20):
        with pytest.raises(Unavailable):
            made.wrap(SecretBytes(b"x"), b"")
    assert len(attempts) == 2


@pytest.mark.parametrize("how", ["pin", "key"])
def test_an_hsm_that_came_back_otherwise_is_asked_once(pkcs11_source, monkeypatch, how):
    from strongroom.keyserver.keks.pkcs11 import Pkcs11Kek, _open

    monkeypatch.setattr("strongroom.keyserver.keks.pkcs11._AGAIN_SECONDS", 0.0)
    places = [pkcs11_source[0], pkcs11_source[0].replace("object=", "object=other-")]
    for place in places:
        create_kek(place, secret(PIN)).close()
    attempts = []

    def connect():
        attempts.append(1)
        if len(attempts) > 1 and how == "pin":
            raise WrongPassphrase("The PIN does not open the token keys.")
        return _open(places[len(attempts) > 1].partition(":")[2], secret(PIN))

    made = Pkcs11Kek(connect)
    made._session.close()
    for _ in range(3):
        with pytest.raises(Unavailable, match="PIN" if how == "pin" else "another key"):
            made.wrap(SecretBytes(b"x"), b"")
    assert len(attempts) == 2


# KMS


def test_kms_sees_what_a_key_is_for(aws_source):

    made = create_kek(aws_source[0])
    wrapped = made.wrap(SecretBytes(b"k" * 32), b'{"name":"m/x"}')
    with pytest.raises(made._client.exceptions.InvalidCiphertextException):
        made._client.decrypt(CiphertextBlob=wrapped, EncryptionContext={"strongroom": "x"})
    assert made.id.startswith("aws-kms:arn:aws:kms:eu-central-1:")


def test_keys_of_kms_that_cannot_be_root_keys_are_refused(aws_source):
    made = create_kek(aws_source[0])
    options = aws_source[0].partition("?")[2]
    signs = made._client.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    with pytest.raises(InvalidKey):
        open_kek(f"aws-kms:{signs}?{options}")
    made._client.disable_key(KeyId=made._key.rpartition("/")[2])
    with pytest.raises(InvalidKey):
        open_kek(aws_source[0])
    with pytest.raises(UsageError):
        create_kek(f"aws-kms:{signs}?{options}")
    with pytest.raises(UsageError):
        open_kek("aws-kms:x?unknown=1")


def test_a_kms_that_does_not_answer_is_unavailable(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with pytest.raises(Unavailable, match="KMS"):
        open_kek("aws-kms:alias/x?region=eu-central-1&endpoint=http://127.0.0.1:9")


# Vault


def test_a_sealed_vault_and_a_wrong_token_are_unavailable(vault_source, transit):
    place, token = vault_source
    made = create_kek(place, secret(token))
    dek = SecretBytes.random(32)
    wrapped = made.wrap(dek, b"")
    with pytest.raises(Unavailable):
        open_kek(place, secret("wrong"))
    with pytest.raises(NoKey):
        open_kek(place)
    transit.sealed = True
    for attempt in (lambda: made.wrap(dek, b""), lambda: made.unwrap(wrapped, b"")):
        with pytest.raises(Unavailable, match="Vault"):
            attempt()
    transit.sealed = False
    assert made.unwrap(wrapped, b"") == dek
    for junk in ("vault:x", "vault:/x", "vault:x/"):
        with pytest.raises(UsageError):
            open_kek(junk, secret(token))


def test_keys_of_vault_that_could_leave_it_are_refused(vault_source, transit):
    place, token = vault_source
    name = place.rpartition("/")[2]
    transit.answer("POST", f"keys/{name}", {"exportable": True})
    with pytest.raises(InvalidKey, match="exportable"):
        open_kek(place, secret(token))


def test_a_vault_that_passes_associated_data_over_is_refused(vault_source, transit):
    transit.old = True
    with pytest.raises(InvalidKey, match="another place"):
        create_kek(vault_source[0], secret(vault_source[1]))


def test_vault_checks_the_associated_data_itself(vault_source, transit):
    made = create_kek(vault_source[0], secret(vault_source[1]))
    wrapped = made.wrap(SecretBytes.random(32), b"one").decode()
    name = vault_source[0].rpartition("/")[2]
    status, _ = transit.answer("POST", f"decrypt/{name}", {"ciphertext": wrapped})
    assert status == 400


# TPMs


def test_the_file_opens_in_its_tpm_alone(tpm, tpm_source):
    place = tpm_source[0]
    made = create_kek(place, secret("p"))
    assert open_kek(place, secret("p")).id == made.id
    other = f"tpm:{tpm}/root.json?tcti={tcti(tpm / 'two')}"
    with pytest.raises(InvalidKey, match="not made by this TPM"):
        open_kek(other, secret("p"))
    assert (tpm / "root.json").stat().st_mode & 0o777 == 0o600


def test_the_tpm_asks_for_the_passphrase(tpm_source):
    place = tpm_source[0]
    create_kek(place, secret("p"))
    with pytest.raises(WrongPassphrase):
        open_kek(place, secret("q"))
    open_kek(place, secret("p"))
    with pytest.raises(InvalidKey, match="at most 32"):
        open_kek(place, secret("x" * 33))


def test_the_tpm_is_not_asked_without_the_passphrase_that_its_file_wants(tpm, tpm_source):
    place, path = tpm_source[0], tpm / "root.json"
    create_kek(place, secret("p"))
    for _ in range(50):
        with pytest.raises(NoKey):
            open_kek(place)
    open_kek(place, secret("p"))
    # What a file says of it protects the TPM alone.
    path.write_text(json.dumps({**json.loads(path.read_text()), "passphrase": False}))
    with pytest.raises(WrongPassphrase):
        open_kek(place)


def test_the_tpm_locks_out_who_guesses(tpm_source):
    place = tpm_source[0]
    create_kek(place, secret("p"))
    problems = []
    for _ in range(50):
        with pytest.raises((WrongPassphrase, Unavailable)) as caught:
            open_kek(place, secret("q"))
        problems.append(caught.type)
    assert problems[-1] is Unavailable
    with pytest.raises(Unavailable, match="locked"):
        open_kek(place, secret("p"))


def test_a_changed_file_does_not_open(tpm, tpm_source):
    place, path = tpm_source[0], tpm / "root.json"
    create_kek(place, secret("p"))
    document = json.loads(path.read_text())
    for name in ("public", "private"):
        for index in (4, 20, 60):
            text = document[name]
            changed = text[:index] + ("A" if text[index] != "A" else "B") + text[index + 1 :]
            path.write_text(json.dumps({**document, name: changed}))
            with pytest.raises((InvalidKey, Unavailable)):
                open_kek(place, secret("p"))
    for junk in (b"", b"{}", b"[]", json.dumps({**document, "v": 2}).encode()):
        path.write_bytes(junk)
        with pytest.raises(InvalidKey):
            open_kek(place, secret("p"))


def test_no_tpm_is_said(tmp_path):
    pytest.importorskip("tpm2_pytss", reason="tpm2-pytss is not installed")
    with pytest.raises(Unavailable, match="No TPM answers"):
        create_kek(f"tpm:{tmp_path}/root.json?tcti=swtpm:path={tmp_path}/none")
    with pytest.raises(UsageError):
        open_kek("tpm:x?pcr=7")


@pytest.mark.parametrize("kind", ["pkcs11_source", "tpm_source"])
def test_beside_a_library_with_functions_of_the_same_names(kind, request):
    """TensorFlow exports an OpenSSL of its own to the whole process; SoftHSM and tpm2-tss crashed in it."""
    pytest.importorskip("tensorflow")
    source, secret = request.getfixturevalue(kind)
    code = (
        "import sys, tensorflow\n"
        "from strongroom.crypto.secret import SecretBytes\n"
        "from strongroom.keyserver.kek import create_kek\n"
        "secret = SecretBytes(sys.argv[2].encode()) if sys.argv[2] else None\n"
        "kek = create_kek(sys.argv[1], secret)\n"
        "key = SecretBytes(bytes(range(32)))\n"
        "assert kek.unwrap(kek.wrap(key, b'x'), b'x') == key\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, source, secret or ""],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
