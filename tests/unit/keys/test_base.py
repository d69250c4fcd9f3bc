import pytest

from strongroom import HpkeIdentity, Identity, Passphrase, Recipient, SecretBytes, SymmetricKey
from strongroom.crypto.hpke import X25519
from strongroom.errors import HeaderTampered, ManifestMismatch, NoMatchingRecipient, WrongPassphrase
from strongroom.format.header import Header
from strongroom.keys import HpkeRecipient, describe, unwrap
from strongroom.testing.raw import DEK, passphrase_entry

SECRET = SecretBytes(DEK)


def header(*recipients):
    return Header(bytes(16), "model.bin", recipients=recipients)


def test_who_can_do_what():
    identity = HpkeIdentity.generate(X25519)
    for both in (SymmetricKey.generate(), Passphrase("x"), identity):
        assert isinstance(both, Identity)
        assert isinstance(both, Recipient)
    assert isinstance(identity.recipient, Recipient)
    assert not isinstance(identity.recipient, Identity)


def test_first_identity_that_fits():
    keys = [SymmetricKey.generate(), Passphrase("x"), SymmetricKey.generate()]
    entry = keys[2].wrap(SECRET, header())
    assert unwrap(header(entry), keys) == SECRET


def test_wrong_passphrase_only_if_nothing_else_fits():
    key, other = SymmetricKey.generate(), SymmetricKey.generate()
    entries = (passphrase_entry("right"), key.wrap(SECRET, header()))
    assert unwrap(header(*entries), [Passphrase("wrong"), key]) == SECRET
    with pytest.raises(WrongPassphrase):
        unwrap(header(*entries), [Passphrase("wrong"), other])


def test_the_message_names_the_recipients():
    key, other = SymmetricKey.generate(), SymmetricKey.generate()
    entries = (key.wrap(SECRET, header()), {"alg": "kms", "uri": "aws:x", "encrypted_key": "AAAA"})
    with pytest.raises(NoMatchingRecipient) as caught:
        unwrap(header(*entries), [other])
    assert caught.value.recipients == (f"A256KW kid={key.kid}", "kms uri=aws:x")
    for name in caught.value.recipients:
        assert name in str(caught.value)


def test_the_message_stays_short_and_printable():
    entries = [{"alg": f"x\x1b[2J\n{n}"} for n in range(5000)]
    with pytest.raises(NoMatchingRecipient) as caught:
        unwrap(header(*entries), [SymmetricKey.generate()])
    assert str(caught.value).endswith("and 4992 more.")
    assert str(caught.value).isprintable()
    assert len(caught.value.recipients) == 5000


def test_file_of_a_directory():
    with pytest.raises(ManifestMismatch) as caught:
        unwrap(header(), [SymmetricKey.generate()])
    assert caught.value.path == "model.bin"


@pytest.mark.parametrize("size", [1, 16, 31, 33, 64])
def test_a_recipient_that_wraps_something_else(size):
    identity = HpkeIdentity.generate(X25519)
    entry = identity.wrap(SecretBytes(bytes(size)), header())
    with pytest.raises(HeaderTampered, match=f"{size} bytes"):
        unwrap(header(entry), [identity])


def test_describe_without_key_material():
    entry = HpkeRecipient(X25519, X25519.public_of(SECRET)).wrap(SECRET, header())
    assert describe(entry) == f"HPKE-X25519 kid={entry['kid']}"
