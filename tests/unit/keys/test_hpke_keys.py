import hashlib

import pytest

from strongroom import HpkeIdentity, HpkeRecipient, SecretBytes
from strongroom.crypto.hpke import KEMS, MLKEM768X25519, X25519
from strongroom.errors import HeaderTampered, InvalidKey, NoMatchingRecipient
from strongroom.format.encoding import b64url, unb64url
from strongroom.format.header import Header

DEK = SecretBytes(bytes(range(100, 132)))
BUNDLE = bytes(range(16))
EVERY = pytest.mark.parametrize("kem", KEMS.values(), ids=lambda kem: kem.alg)


def header(*recipients, bundle=BUNDLE):
    return Header(bundle, "a", recipients=recipients)


def test_post_quantum_is_the_default():
    assert HpkeIdentity.generate().recipient.wrap(DEK, header())["alg"] == "HPKE-MLKEM768X25519"


@EVERY
class TestEach:
    def test_wrap_and_unwrap(self, kem):
        identity = HpkeIdentity.generate(kem)
        recipient = HpkeRecipient.parse(str(identity.recipient))
        entry = recipient.wrap(DEK, header())
        assert entry["alg"] == kem.alg
        assert entry["kid"] == identity.recipient.kid == recipient.kid
        assert identity.unwrap(header({"alg": "x"}, entry)) == DEK
        assert identity.unwrap(header(identity.wrap(DEK, header()))) == DEK

    def test_bound_to_the_bundle(self, kem):
        identity = HpkeIdentity.generate(kem)
        entry = identity.wrap(DEK, header())
        with pytest.raises(HeaderTampered):
            identity.unwrap(header(entry, bundle=bytes(16)))

    def test_another_identity(self, kem):
        entry = HpkeIdentity.generate(kem).wrap(DEK, header())
        with pytest.raises(NoMatchingRecipient):
            HpkeIdentity.generate(kem).unwrap(header(entry))
        del entry["kid"]
        with pytest.raises(NoMatchingRecipient):
            HpkeIdentity.generate(kem).unwrap(header(entry))

    def test_kid(self, kem):
        identity = HpkeIdentity.generate(kem)
        public = kem.public_of(identity._secret)
        digest = hashlib.sha256(kem.alg.encode() + b"\x00" + public).digest()
        assert identity.recipient.kid == b64url(digest[:16])

    def test_file(self, kem):
        identity = HpkeIdentity.generate(kem)
        content = identity.encode().decode()
        comment, secret = content.splitlines()
        assert comment == f"# recipient: {identity.recipient}"
        assert secret.startswith(f"{kem.alg.lower()}-secret:")
        for text in (content, secret, f"\n{content}\n", content.replace("\n", "\r\n"), f" {secret} "):
            assert str(HpkeIdentity.parse(text).recipient) == str(identity.recipient)

    def test_every_mistyped_character_is_refused(self, kem):
        identity = HpkeIdentity.generate(kem)
        for parse, text in (
            (HpkeRecipient.parse, str(identity.recipient)),
            (HpkeIdentity.parse, identity.encode().decode().splitlines()[1]),
        ):
            start = text.index(":")
            for at in range(start, len(text), max(1, (len(text) - start) // 60)):
                other = "A" if text[at] != "A" else "B"
                with pytest.raises(InvalidKey) as caught:
                    parse(text[:at] + other + text[at + 1 :])
                assert text[start + 1 : start + 20] not in str(caught.value)
            for cut in (text[:-1], text[:-6], text[: start + 1], text[:start], text + "A", text + "="):
                with pytest.raises(InvalidKey):
                    parse(cut)

    def test_identity_is_no_recipient_and_the_reverse(self, kem):
        identity = HpkeIdentity.generate(kem)
        with pytest.raises(InvalidKey, match="not an HPKE recipient"):
            HpkeRecipient.parse(identity.encode().decode().splitlines()[1])
        with pytest.raises(InvalidKey, match="not an HPKE identity"):
            HpkeIdentity.parse(str(identity.recipient))

    def test_repr_holds_no_secret(self, kem):
        identity = HpkeIdentity.generate(kem)
        secret = b64url(bytes(identity._secret.buffer))
        assert secret[:12] not in f"{identity!r}{identity!s}{vars(identity)}"
        assert identity.recipient.kid in repr(identity)


def test_entry_of_the_other_kem_is_not_tried():
    entry = HpkeIdentity.generate(X25519).wrap(DEK, header())
    with pytest.raises(NoMatchingRecipient, match="MLKEM768X25519"):
        HpkeIdentity.generate(MLKEM768X25519).unwrap(header(entry))


def test_zero_point_is_no_recipient():
    recipient = HpkeRecipient(X25519, bytes(32))
    with pytest.raises(InvalidKey):
        recipient.wrap(DEK, header())


def test_public_key_that_is_none():
    with pytest.raises(InvalidKey, match="not a public key"):
        HpkeRecipient(X25519, bytes(31))
    # Coefficients of ML-KEM are below 3329; 0xfff is not.
    with pytest.raises(InvalidKey, match="not a public key"):
        HpkeRecipient(MLKEM768X25519, b"\xff" * 1216)


def test_file_with_two_keys():
    secret = HpkeIdentity.generate(X25519).encode().decode()
    with pytest.raises(InvalidKey, match="holds one key, this one 2"):
        HpkeIdentity.parse(secret + secret)


def test_changed_entry_without_kid_is_another_recipient():
    identity = HpkeIdentity.generate(X25519)
    entry = identity.wrap(DEK, header())
    raw = bytearray(unb64url(entry["encrypted_key"], "x"))
    raw[-1] ^= 1
    entry["encrypted_key"] = b64url(raw)
    with pytest.raises(HeaderTampered):
        identity.unwrap(header(entry))
    del entry["kid"]
    with pytest.raises(NoMatchingRecipient):
        identity.unwrap(header(entry))
