import unicodedata

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

from strongroom import Passphrase, SecretBytes
from strongroom.errors import InvalidKey, LimitExceeded, Malformed, NoMatchingRecipient, WrongPassphrase
from strongroom.format.encoding import unb64url
from strongroom.format.header import Header
from strongroom.testing.raw import DEK, passphrase_entry

SECRET = SecretBytes(DEK)


def header(*recipients):
    return Header(bytes(16), "a", recipients=recipients)


def test_wrap_is_argon2id_and_rfc_3394():
    entry = Passphrase("käse").wrap(SECRET, header())
    assert (entry["alg"], entry["t"], entry["m"], entry["p"]) == ("Argon2id+A256KW", 3, 65536, 4)
    salt = unb64url(entry["salt"], "x", 16)
    kdf = Argon2id(salt=salt, length=32, iterations=3, lanes=4, memory_cost=65536)
    kek = kdf.derive("käse".encode())
    assert aes_key_unwrap(kek, unb64url(entry["encrypted_key"], "x")) == DEK
    assert Passphrase("käse").unwrap(header(entry)) == SECRET
    with pytest.raises(WrongPassphrase):
        Passphrase("kase").unwrap(header(entry))


def test_salt_is_new_every_time():
    one, other = (Passphrase("x").wrap(SECRET, header()) for _ in range(2))
    assert one["salt"] != other["salt"]


def test_unicode_forms_are_one():
    entry = passphrase_entry("käse")
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "käse")
        assert Passphrase(text).unwrap(header(entry)) == SECRET
        assert Passphrase(text.encode()).unwrap(header(entry)) == SECRET


@pytest.mark.parametrize("bad", ["", b"", b"\xff", "\ud800"])
def test_not_a_passphrase(bad):
    with pytest.raises(InvalidKey):
        Passphrase(bad)


def test_white_space_counts():
    entry = passphrase_entry("x ")
    assert Passphrase("x ").unwrap(header(entry)) == SECRET
    with pytest.raises(WrongPassphrase):
        Passphrase("x").unwrap(header(entry))


def test_none_of_the_recipients():
    with pytest.raises(NoMatchingRecipient):
        Passphrase("x").unwrap(header({"alg": "A256KW"}))


def test_each_of_several_is_tried_up_to_eight():
    others = [passphrase_entry(str(n), str(n)) for n in range(7)]
    mine = passphrase_entry("mine")
    assert Passphrase("mine").unwrap(header(*others, mine)) == SECRET
    with pytest.raises(LimitExceeded, match="9 passphrase"):
        Passphrase("mine").unwrap(header(mine, mine, *others))


class Forbidden:
    def __init__(self, **parameters):
        raise AssertionError(f"Argon2id was started with {parameters}")


@pytest.mark.parametrize(
    ("member", "value", "error"),
    [
        ("t", 0, Malformed),
        ("t", 17, LimitExceeded),
        ("t", 1 << 40, LimitExceeded),
        ("t", True, Malformed),
        ("t", 1.0, Malformed),
        ("t", "1", Malformed),
        ("t", ..., Malformed),
        ("p", 0, Malformed),
        ("p", 17, LimitExceeded),
        ("p", ..., Malformed),
        ("m", 7, Malformed),
        ("m", (1 << 20) + 1, LimitExceeded),
        ("m", 1 << 64, LimitExceeded),
        ("m", ..., Malformed),
        ("salt", ..., Malformed),
        ("salt", "AAAA", Malformed),
        ("encrypted_key", ..., Malformed),
        ("encrypted_key", "AAAA", Malformed),
    ],
)
def test_parameters_are_bounded_before_they_are_used(monkeypatch, member, value, error):
    entry = {name: v for name, v in passphrase_entry().items() if name != member or value is not ...}
    if value is not ...:
        entry[member] = value
    monkeypatch.setattr("strongroom.keys.passphrase.Argon2id", Forbidden)
    with pytest.raises(error):
        Passphrase("x").unwrap(header(entry))


def test_most_memory_and_passes_a_header_can_ask_for_are_those_of_the_limits():
    with pytest.raises(Malformed, match="at least 32"):
        Passphrase("x").unwrap(header({**passphrase_entry(), "p": 4, "m": 31}))


def test_repr():
    secret = Passphrase("hunter2")
    assert repr(secret) == "<Passphrase>"
    assert "hunter2" not in f"{vars(secret)}"
