"""Structures of a TPM, parsed strictly: one recorded with swtpm, and every fault in made-up ones."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import read
from software_ak import AK, DECRYPT, KEYS, attest, pcr_values, public, selection, signature, sized, u

from strongroom.attest.tpm_keys import fingerprint, parse_public, parse_signature, parse_spki
from strongroom.attest.tpm_structures import PcrSelection, parse_attest, pcr_digest
from strongroom.errors import MalformedEvidence, NotAuthentic

INDICES = (0, 1, 2, 3, 4, 5, 6, 7, 9, 16)


def recorded_pcrs() -> dict[int, bytes]:
    raw = read("tpm/pcr.bin")
    return {index: raw[32 * at : 32 * at + 32] for at, index in enumerate(INDICES)}


def test_a_recorded_quote_is_read():
    quote = parse_attest(read("tpm/q.msg"))
    assert quote.selections == (PcrSelection("sha256", INDICES),)
    assert quote.extra_data.hex() == read("tpm/nonce").decode().strip()
    assert quote.values() == {
        "firmware_version": "2019102300163636",
        "clock": {"milliseconds": 1375, "resets": 3, "restarts": 0, "safe": False},
    }
    quote.check_pcrs({"sha256": recorded_pcrs()}, "sha256")


def test_a_recorded_key_has_the_name_that_the_tpm_gave_it():
    key = parse_public(read("tpm/ak.pub"))
    assert key.name == read("tpm/ak.name")
    key.check_attestation_key()


def test_the_recorded_key_has_signed_the_recorded_quote():
    parse_signature(read("tpm/q.sig")).verify(parse_public(read("tpm/ak.pub")).key, read("tpm/q.msg"))


@pytest.mark.parametrize("index", INDICES)
def test_another_value_of_any_pcr_is_refused(index):
    values = recorded_pcrs() | {index: b"\xa5" * 32}
    with pytest.raises(NotAuthentic, match="not those"):
        parse_attest(read("tpm/q.msg")).check_pcrs({"sha256": values}, "sha256")


def test_pcrs_that_are_exchanged_are_refused():
    values = recorded_pcrs()
    values[9], values[16] = values[16], values[9]
    assert values[9] != values[16] or pytest.fail("the sample says nothing here")
    with pytest.raises(NotAuthentic):
        parse_attest(read("tpm/q.msg")).check_pcrs({"sha256": values}, "sha256")


@pytest.mark.parametrize("value", [None, b"", bytes(31), bytes(33)])
def test_a_pcr_that_is_missing_or_cut_is_refused(value):
    values = recorded_pcrs()
    if value is None:
        del values[9]
    else:
        values[9] = value
    with pytest.raises(MalformedEvidence, match="PCR 9"):
        parse_attest(read("tpm/q.msg")).check_pcrs({"sha256": values}, "sha256")


def test_the_digest_is_of_the_hash_of_the_signature_and_in_the_order_of_the_selections():
    values = {"sha256": pcr_values([0, 7]), "sha384": pcr_values([1], "sha384")}
    both = [PcrSelection("sha384", (1,)), PcrSelection("sha256", (0, 7))]
    message = values["sha384"][1] + values["sha256"][0] + values["sha256"][7]
    assert pcr_digest(both, values, "sha512") == hashlib.sha512(message).digest()


@pytest.mark.parametrize("name", ["q.msg", "q.sig", "ak.pub"])
def test_every_cut_and_every_addition_is_refused(name):
    data = read(f"tpm/{name}")
    parse = {"q.msg": parse_attest, "q.sig": parse_signature, "ak.pub": parse_public}[name]
    for size in range(len(data)):
        with pytest.raises(MalformedEvidence):
            parse(data[:size])
    for more in (b"\x00", b"\xff" * 7, data):
        with pytest.raises(MalformedEvidence):
            parse(data + more)


def test_every_changed_bit_of_a_signed_quote_is_refused():
    """The key is verified first, as the verifier does it, so that a flip need not be malformed."""
    message, key = read("tpm/q.msg"), parse_public(read("tpm/ak.pub")).key
    signed = parse_signature(read("tpm/q.sig"))
    for at in range(len(message)):
        for bit in range(8):
            changed = bytearray(message)
            changed[at] ^= 1 << bit
            with pytest.raises(NotAuthentic):
                signed.verify(key, bytes(changed))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"magic": 0xFF544346}, "not made by a TPM"),
        ({"type": 0x8017}, "another statement"),
        ({"type": 0x801A}, "another statement"),
        ({"extra": bytes(65)}, "64 bytes of qualifying"),
        ({"safe": 2}, "truth value"),
        ({"clock": 1 << 53}, "clock"),
        ({"count": 0, "selections": b""}, "of 0 banks"),
        ({"count": 4}, "of 4 banks"),
        ({"count": 0xFFFFFFFF}, "banks"),
        ({"count": 2}, "hash 0x0020"),
        ({"selections": selection("sha1", [0])}, "hash 0x0004"),
        ({"selections": selection("sha3_256", [0])}, "hash 0x0027"),
        ({"selections": selection("sha256", [])}, "no PCR"),
        ({"selections": selection("sha256", [24], size=4)}, "above 23"),
        ({"selections": selection("sha256", [], size=0)}, "bitmap"),
        ({"selections": selection("sha256", [0], size=9)}, "bitmap"),
        ({"selections": selection("sha256", [0]) * 2, "count": 2}, "twice"),
        ({"digest": b""}, None),
        ({"signer": bytes(3000)}, "2048 bytes"),
    ],
)
def test_a_fault_of_a_quote_is_refused(changes, problem):
    if problem is None:
        # An empty digest is read, and equals that of no PCRs.
        with pytest.raises(NotAuthentic):
            parse_attest(attest(**changes)).check_pcrs({"sha256": pcr_values([0, 7])}, "sha256")
        return
    with pytest.raises(MalformedEvidence, match=problem):
        parse_attest(attest(**changes))


def test_a_longer_bitmap_is_read_where_no_pcr_above_is_selected():
    quote = parse_attest(attest(selections=selection("sha384", [0, 23], size=8)))
    assert quote.selections == (PcrSelection("sha384", (0, 23)),)


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa", "rsapss"])
@pytest.mark.parametrize("hash_name", ["sha256", "sha384", "sha512"])
def test_schemes_and_hashes(scheme, hash_name):
    key = KEYS[scheme]
    parsed = parse_public(public(key, scheme=scheme, scheme_hash=hash_name, name_hash=hash_name))
    assert (parsed.scheme, parsed.scheme_hash) == (scheme, hash_name)
    assert parsed.key.public_numbers() == key.public_key().public_numbers()
    found = parse_signature(signature(key, b"message", scheme=scheme, hash_name=hash_name))
    found.verify(parsed.key, b"message")
    with pytest.raises(NotAuthentic, match="has not signed"):
        found.verify(parsed.key, b"massage")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_larger_curves(curve):
    key = ec.generate_private_key(curve)
    parsed = parse_public(public(key))
    parse_signature(signature(key, b"m")).verify(parsed.key, b"m")


def test_a_signature_for_the_other_kind_of_key_is_refused():
    by_rsa = parse_signature(signature(KEYS["rsassa"], b"m", scheme="rsassa"))
    by_ecc = parse_signature(signature(KEYS["ecdsa"], b"m"))
    with pytest.raises(NotAuthentic, match="another kind"):
        by_rsa.verify(KEYS["ecdsa"].public_key(), b"m")
    with pytest.raises(NotAuthentic, match="another kind"):
        by_ecc.verify(KEYS["rsassa"].public_key(), b"m")


@pytest.mark.parametrize(
    "data",
    [
        u(2, 0x1A) + u(2, 0x0B) + sized(b"1") * 2,  # ECDAA
        u(2, 0x1B) + u(2, 0x12) + sized(b"1") * 2,  # SM2
        u(2, 0x05) + u(2, 0x0B) + bytes(32),  # HMAC
        u(2, 0x18) + u(2, 0x04) + sized(b"1") * 2,  # ECDSA with SHA-1
        u(2, 0x10),
    ],
)
def test_other_signatures_are_refused(data):
    with pytest.raises(MalformedEvidence):
        parse_signature(data)


@pytest.mark.parametrize(
    ("scheme", "changes", "problem"),
    [
        ("ecdsa", {"kind": 8}, "neither RSA nor ECC"),
        ("ecdsa", {"name_hash": "sha1"}, "name by a hash"),
        ("ecdsa", {"scheme_hash": "sha1"}, "hash 0x0004"),
        ("ecdsa", {"scheme": "ecdaa"}, "another scheme"),
        ("ecdsa", {"curve": 0x20}, "curve"),
        ("ecdsa", {"kdf": 0x20}, "key agreement"),
        ("ecdsa", {"y": bytes(32)}, "not on its curve"),
        ("ecdsa", {"y": b"\xff" * 32}, "not on its curve"),
        ("rsassa", {"bits": 1024}, "another size"),
        ("rsassa", {"modulus": bytes(256)}, "RSA key"),
        ("rsassa", {"exponent": 3}, "65537"),
        ("rsassa", {"exponent": 2}, "none"),
    ],
)
def test_a_fault_of_a_key_is_refused(scheme, changes, problem):
    with pytest.raises(MalformedEvidence, match=problem):
        parse_public(public(KEYS[scheme], **{"scheme": scheme, **changes}))


def test_a_short_rsa_key_is_refused():
    short = rsa.generate_private_key(65537, 1024)
    with pytest.raises(MalformedEvidence, match="2048 to 4096"):
        parse_public(public(short, scheme="rsassa"))
    with pytest.raises(MalformedEvidence, match="2048 to 4096"):
        parse_spki(spki(short))


def test_a_key_for_signatures_without_a_scheme_is_no_attestation_key():
    parsed = parse_public(public(KEYS["ecdsa"], scheme=None))
    with pytest.raises(NotAuthentic, match="any scheme"):
        parsed.check_attestation_key()


@pytest.mark.parametrize("bit", [1, 4, 5, 16, 18])
def test_each_attribute_of_an_attestation_key_is_needed(bit):
    parse_public(public(KEYS["ecdsa"])).check_attestation_key()
    with pytest.raises(NotAuthentic, match="lacks"):
        parse_public(public(KEYS["ecdsa"], attributes=AK & ~(1 << bit))).check_attestation_key()


def test_a_key_that_decrypts_is_no_attestation_key():
    with pytest.raises(NotAuthentic, match="decryption"):
        parse_public(public(KEYS["ecdsa"], attributes=AK | DECRYPT)).check_attestation_key()


def spki(key) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_bare_key_has_the_same_fingerprint():
    der = spki(KEYS["ecdsa"])
    assert fingerprint(parse_spki(der)) == hashlib.sha256(der).hexdigest()
    assert fingerprint(parse_public(public(KEYS["ecdsa"])).key) == hashlib.sha256(der).hexdigest()


def test_bare_keys_that_are_none_are_refused():
    der = spki(KEYS["ecdsa"])
    compressed = KEYS["ecdsa"].public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    # The same key in another spelling would have another fingerprint.
    head = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    ed = ed25519.Ed25519PrivateKey.generate()
    other_curve = ec.generate_private_key(ec.SECP256K1())
    for data in (der[:-1], der + b"\x00", b"", head + compressed, spki(ed), spki(other_curve)):
        with pytest.raises(MalformedEvidence):
            parse_spki(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_parse_or_are_malformed(data):
    for parse in (parse_attest, parse_public, parse_signature, parse_spki):
        try:
            parse(data)
        except MalformedEvidence as error:
            assert len(str(error)) < 200


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_real_structures_parses_or_is_malformed(data):
    name = data.draw(st.sampled_from(["q.msg", "q.sig", "ak.pub"]))
    changed = bytearray(read(f"tpm/{name}"))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        {"q.msg": parse_attest, "q.sig": parse_signature, "ak.pub": parse_public}[name](bytes(changed))
    except MalformedEvidence as error:
        assert len(str(error)) < 200
