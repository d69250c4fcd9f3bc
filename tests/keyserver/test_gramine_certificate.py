"""Certificates of RA-TLS: what Gramine writes is read, and nothing else."""

import hashlib
import ssl

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.errors import InvalidPolicy, MalformedEvidence
from strongroom.keyserver.gramine.cbor import Tagged, decode
from strongroom.keyserver.gramine.certificate import MAX_CERTIFICATE, read_certificate
from strongroom.keyserver.gramine.hello import Hello, NotTls
from strongroom.release.policy import Policy
from strongroom.testing.gramine import (
    DICE,
    LEGACY,
    certificate,
    claims_about,
    dice_evidence,
    public_der,
)

KEY = ec.generate_private_key(ec.SECP384R1())
QUICK = ec.generate_private_key(ec.SECP256R1())
PUBLIC = public_der(KEY)
OTHER = public_der(ec.generate_private_key(ec.SECP384R1()))
CLAIMS = claims_about(PUBLIC)
QUOTE = bytes(range(256)) * 16
EVIDENCE = dice_evidence(QUOTE, CLAIMS)
HASH = hashlib.sha256(PUBLIC).digest()


def read(*extensions, key=KEY, **options):
    return read_certificate(certificate(key, extensions, **options))


def refused(*extensions, **options):
    with pytest.raises(MalformedEvidence) as caught:
        read(*extensions, **options)
    return caught.value.message


def test_bytes_of_the_protocol():
    """As Gramine's sources have them, byte for byte."""
    assert len(PUBLIC) == 120
    said = bytes.fromhex("a16b7075626b65792d68617368 5824 8201 5820")
    assert said + HASH == CLAIMS
    assert len(CLAIMS) == 51
    assert EVIDENCE[:5] == bytes.fromhex("d9ea60 82 59")
    assert EVIDENCE[-53:-51] == bytes.fromhex("5833")


def test_legacy():
    found = read((LEGACY, QUOTE))
    assert (found.evidence.kind, found.evidence.data) == ("sgx", QUOTE)
    assert found.bound == HASH + bytes(32)


@pytest.mark.parametrize("algorithm", [1, 7, 8])
@pytest.mark.parametrize("curve", [ec.SECP384R1, ec.SECP256R1])
def test_dice(algorithm, curve):
    key = ec.generate_private_key(curve())
    claims = claims_about(public_der(key), algorithm=algorithm, more=[("nonce", b"\x44abcd")])
    found = read((LEGACY, b"another quote"), (DICE, dice_evidence(QUOTE, claims)), key=key)
    assert found.evidence.data == QUOTE
    assert found.bound == hashlib.sha256(claims).digest() + bytes(32)


BAD_CLAIMS = {
    "no claims at all": b"\xa0",
    "no hash of the key": b"\xa1\x65nonce\x44abcd",
    "two hashes": b"\xa2" + CLAIMS[1:] + CLAIMS[1:],
    "two hashes, of which one is another's": b"\xa2" + claims_about(OTHER)[1:] + CLAIMS[1:],
    "another claim twice": b"\xa3" + CLAIMS[1:] + b"\x61a\x00" * 2,
    "the hash of another key": claims_about(OTHER),
    "an algorithm that nobody knows": CLAIMS.replace(b"\x82\x01", b"\x82\x02"),
    "another algorithm than that of the hash": CLAIMS.replace(b"\x82\x01", b"\x82\x07"),
    "something behind the claims": CLAIMS + b"\x00",
    "something behind the hash": b"\xa1\x6bpubkey-hash\x58\x25\x82\x01\x58\x20" + HASH + b"\x00",
    "a key that is bytes": CLAIMS.replace(b"\x6bpubkey", b"\x4bpubkey"),
    "a map without a definite length": b"\xbf" + CLAIMS[1:] + b"\xff",
    "a length that is longer than necessary": CLAIMS.replace(b"\x58\x24", b"\x59\x00\x24"),
    "a text that is not UTF-8": b"\xa2" + CLAIMS[1:] + b"\x61\xff\x00",
    "a list": b"\x81" + CLAIMS,
    "cut": CLAIMS[:-1],
    "the hash beside a list": b"\xa1\x6bpubkey-hash\x82\x01\x58\x20" + HASH,
    "nothing": b"",
}


@pytest.mark.parametrize("what", BAD_CLAIMS)
def test_claims_that_tie_no_key_to_the_quote(what):
    """Also beside a quote of the old form that is right: there is no falling back."""
    assert "DICE" in refused((DICE, dice_evidence(QUOTE, BAD_CLAIMS[what])), (LEGACY, QUOTE))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        EVIDENCE + b"\x00",
        EVIDENCE[:-1],
        EVIDENCE[3:],  # without its tag
        EVIDENCE.replace(b"\xea\x60", b"\xea\x61"),
        EVIDENCE[:3] + b"\x83" + EVIDENCE[4:] + b"\x00",
        EVIDENCE[:3] + b"\x81" + EVIDENCE[4 : 4 + 3 + len(QUOTE)],
        b"\xd9\xea\x60\x9f" + EVIDENCE[4:] + b"\xff",
        b"\xda\x00\x00\xea\x60" + EVIDENCE[3:],
        b"\xd9\xea\x60" * 200 + EVIDENCE[3:],
        QUOTE,
    ],
    ids=range(11),
)
def test_dice_evidence_that_is_none(value):
    refused((DICE, value), (LEGACY, QUOTE))


def test_extensions_are_parsed_and_not_searched_for():
    """Gramine's verifier finds an identifier anywhere in the certificate."""
    hidden = (
        b"\x06" + bytes([len(LEGACY)]) + LEGACY + b"\x04\x82" + len(QUOTE).to_bytes(2, "big") + QUOTE
    )
    assert refused((b"\x2a\x03", hidden)) == "The certificate has no quote."
    # As upstream's own constant would be read, without the tag and length that it has too many.
    assert refused((LEGACY[2:], QUOTE)) == "The certificate has no quote."
    assert refused((LEGACY, QUOTE), (LEGACY, QUOTE)).startswith("The certificate cannot be read")
    assert refused((DICE, EVIDENCE), (DICE, EVIDENCE)).startswith("The certificate cannot be read")


def test_keys_that_gramine_does_not_make():
    assert "none of P-384" in refused((LEGACY, QUOTE), key=ec.generate_private_key(ec.SECP521R1()))
    assert "none of P-384" in refused((LEGACY, QUOTE), key=rsa.generate_private_key(65537, 2048))


def test_sizes():
    assert "quote has more" in refused((LEGACY, bytes(8193)))
    assert "certificate has more" in refused((LEGACY, QUOTE), (b"\x2a\x03", bytes(MAX_CERTIFICATE)))
    assert len(read((LEGACY, bytes(8192))).evidence.data) == 8192


@pytest.mark.parametrize("der", [b"", b"\x30\x00", b"-----BEGIN CERTIFICATE-----", bytes(1000)])
def test_what_is_no_certificate(der):
    with pytest.raises(MalformedEvidence):
        read_certificate(der)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_changed_evidence_never_speaks_for_this_key_and_quote(data):
    """One to three bytes of the envelope changed, or a part cut out: nothing, or another quote or binding."""
    claims = claims_about(public_der(QUICK))
    right = dice_evidence(QUOTE, claims)
    value = bytearray(right)
    places = [*range(8), *range(8 + len(QUOTE), len(value))]
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.sampled_from(places))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value) - 1))
        del value[at : at + data.draw(st.integers(1, 50))]
    if value == right:
        return
    try:
        found = read((DICE, bytes(value)), (LEGACY, QUOTE), key=QUICK)
    except MalformedEvidence:
        return
    bound = hashlib.sha256(claims).digest() + bytes(32)
    assert (found.evidence.data, found.bound) != (QUOTE, bound)


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_cbor_is_read_in_one_way(data):
    try:
        value = decode(data)
    except ValueError:
        return
    assert encoded(value) == data


@pytest.mark.parametrize(
    "data",
    [
        "1817",  # 23, which has room beside its type
        "1900ff",
        "1a0000ffff",
        "1b00000000ffffffff",
        "1c" + "ff" * 16,  # lengths that are reserved
        "1d" + "ff" * 32,
        "1e" + "ff" * 64,
        "a10000",  # a map whose key is a number
        "a1416100",
        "a2616100616100",
        "20",  # -1
        "f4",  # false
        "f90000",
        "4261",
        "1801" * 2,
        "82d9ea604161",
        "81" * 5 + "00",  # deeper than any evidence
        "a16161" * 5 + "00",
        "c1" * 5 + "00",
        "81" * 10_000,
        "9b" + "ff" * 8,
        "5b" + "ff" * 8,
    ],
)
def test_cbor_that_is_none_or_has_another_spelling(data):
    with pytest.raises(ValueError):
        decode(bytes.fromhex(data))


@pytest.mark.parametrize("number", [0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**64 - 1])
def test_numbers_of_cbor_have_one_spelling_that_is_read(number):
    assert decode(encoded(number)) == number
    assert decode(bytes.fromhex("81" * 4) + encoded(number)) == [[[[number]]]]


def encoded(value):
    if isinstance(value, Tagged):
        return head(6, value.tag) + encoded(value.value)
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encoded, value))
    if isinstance(value, dict):
        return head(5, len(value)) + b"".join(encoded(a) + encoded(b) for a, b in value.items())
    raw = value.encode() if isinstance(value, str) else value
    return head(3 if isinstance(value, str) else 2, len(raw)) + raw


def head(kind, number):
    if number < 24:
        return bytes([kind << 5 | number])
    size = next(size for size in (1, 2, 4, 8) if number < 1 << (8 * size))
    return bytes([kind << 5 | {1: 24, 2: 25, 4: 26, 8: 27}[size]]) + number.to_bytes(size, "big")


@given(st.lists(st.binary(max_size=400), max_size=8))
@settings(max_examples=300, deadline=None)
def test_junk_before_the_handshake(parts):
    hello = Hello()
    try:
        for part in parts:
            hello.feed(part)
    except NotTls:
        pass


def record(body, kind=22):
    return bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body


def sized(size, content):
    return len(content).to_bytes(size, "big") + content


def shown(*certificates):
    """The message in which a client shows them."""
    return b"\x0b" + sized(3, sized(3, b"".join(sized(3, one) for one in certificates)))


def greeting(names):
    """The first message of a client, with what it says of the server's name."""
    extensions = sized(2, b"\0\0" + sized(2, names))
    return b"\x01" + sized(3, bytes(34) + b"\0" + sized(2, b"\xc0\x2b") + b"\x01\0" + extensions)


def test_a_certificate_in_pieces_is_seen_before_the_last_of_them_is_handed_on():
    message = shown(QUOTE)
    sent = b"".join(record(message[at : at + 100]) for at in range(0, len(message), 100))
    hello, handed = Hello(), b""
    for byte in sent:
        handed += hello.feed(bytes([byte]))
        assert hello.certificate is None or handed == sent
    assert hello.certificate == QUOTE
    assert hello.feed(record(b"\1", 20) + b"anything") == record(b"\1", 20) + b"anything"
    assert hello.feed(b"now") == b"now"


@pytest.mark.parametrize(
    "sent",
    [
        record(b"x", 23),
        record(b"")[:5] + b"x",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x2e\x01\x03\x03",
        record(b"\x0b" + (1 << 20).to_bytes(3, "big") + bytes(100)),
        record(b"\x0b\x00\x00\x04\x00\x00\x05x"),
        record(bytes(16384)) * 2,
        record(b"\x01\x00\x00\x02\x03\x03"),
        b"\x16\x03\x03\x40\x01",  # a record that is too long, before it has come
        record(shown(QUOTE)) * 2,
        record(shown(QUOTE, QUOTE)),
        record(shown(b"")),
        record(greeting(sized(2, b"\0" + sized(2, b"a") + b"\0" + sized(2, b"b")))),
        record(greeting(sized(2, b"\0" + sized(2, b"\xc3\xa4")))),
    ],
    ids=range(14),
)
def test_what_is_no_beginning_of_tls(sent):
    with pytest.raises(NotTls):
        Hello().feed(sent)


def test_what_is_almost_none():
    hello = Hello()
    for one in (greeting(sized(2, b"\0" + sized(2, b"A.b"))), shown(), shown(QUOTE)):
        hello.feed(record(one))
    assert (hello.name, hello.certificate) == ("a.b", QUOTE)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "LOCALHOST", None])
def test_the_name_that_a_client_asks_for(name):
    """mbedTLS sends addresses too, which OpenSSL does not."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name and "localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    sent = outgoing.read()
    hello = Hello()
    assert hello.feed(sent.replace(b"localhost", name.encode()) if name else sent)
    assert hello.name == (name and name.lower())


SGX = {"kind": "sgx", "mr_enclave": "11" * 32}


@pytest.mark.parametrize(
    ("gramine", "path"),
    [
        ([], "gramine"),
        ({}, "gramine"),
        ([{"key": "m/x"}], "gramine[0].form"),
        ([{"form": "key"}], "gramine[0].key"),
        ([{"key": "m/x", "form": "any"}], "gramine[0].form"),
        ([{"key": "m/", "form": "key"}], "gramine[0].key"),
        ([{"key": "m/x@0", "form": "key"}], "gramine[0].key"),
        ([{"key": "n/x", "form": "key"}], "gramine[0].key"),
        ([{"key": "m/x", "form": "key", "sni": "a"}], "gramine[0].sni"),
        ([{"key": "m/x", "form": "key", "names": []}], "gramine[0].names"),
        ([{"key": "m/x", "form": "key", "names": "*"}], "gramine[0].names"),
        ([{"key": "m/x", "form": "key", "names": "A.example"}], "gramine[0].names"),
        (
            [{"key": "m/x", "form": "key"}, {"key": "m/y", "form": "key", "names": "a"}],
            "gramine[1].names",
        ),
        (
            [
                {"key": "m/x", "form": "key", "names": ["a", "b"]},
                {"key": "m/y", "form": "key", "names": ["b", "c"]},
            ],
            "gramine[1].names",
        ),
    ],
)
def test_policies_that_do_not_say_what_is_given(gramine, path):
    document = {"id": "p", "version": 1, "keys": ["m/"], "any": [SGX], "gramine": gramine}
    with pytest.raises(InvalidPolicy) as caught:
        Policy.parse(document)
    assert caught.value.path == path


def test_a_policy_for_gramine_is_about_enclaves():
    other = {"kind": "tdx", "mr_td": "11" * 48, "rtmr": {"0": "22" * 48}}
    document = {"id": "p", "version": 1, "keys": ["m/"], "gramine": [{"key": "m/x", "form": "key"}]}
    with pytest.raises(InvalidPolicy, match="no alternative is about sgx"):
        Policy.parse(document | {"any": [other]})
    assert Policy.parse(document | {"any": [other, SGX]}).gramine[0].answers(None)
