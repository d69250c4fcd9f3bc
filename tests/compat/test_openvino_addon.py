"""Controlled-access models of the OpenVINO Security Add-on: vectors, the signature, text that is none."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import controlled_access
import pytest
from big_files import PATTERN
from controlled_access import (
    KEY,
    blob,
    certificate,
    document,
    licence,
    print_json,
    private_pem,
    signed,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from foreign import PIECE, Collected, decrypted, memory_source, peak_memory, says_nothing, secret
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.compat import json_scan, openvino_addon
from strongroom.compat.base import HEAD_SIZE
from strongroom.compat.openvino_addon import OpenvinoAddonCodec
from strongroom.compat.transfer import plan_import
from strongroom.errors import (
    ForeignTampered,
    FormatError,
    InvalidKey,
    LimitExceeded,
    NotFound,
    StrongroomError,
    UsageError,
)

DATA = Path(__file__).with_name("data")
XML = b'<?xml version="1.0"?>\n<net name="vector" version="11"></net>\n'
FILES = {"model.xml": XML, "model.bin": bytes(range(256)) * 5}


def addon(key: bytes = KEY, **options: object) -> OpenvinoAddonCodec:
    return OpenvinoAddonCodec(secret(key), {name: str(value) for name, value in options.items()})


@pytest.fixture(scope="module")
def signer():
    return controlled_access.signer()


@pytest.fixture
def pem(signer, tmp_path):
    (tmp_path / "isv.pem").write_bytes(certificate(signer))
    return tmp_path / "isv.pem"


@pytest.fixture(scope="module")
def model(signer):
    return signed(document(FILES), signer)


def test_vector_of_the_blob():
    text = print_json(document({}, files=[{"file_name_0": "m", "file_body_0": BLOB}], signature=""))
    assert decrypted(addon(), text.encode()) == {"m": b"hello openvino"}
    assert blob(b"hello openvino") == BLOB


BLOB = "U2FsdGVkX18AAQIDBAUGB/YexHvNFA56yLU4SJHO"


@pytest.mark.parametrize("checked", [False, True])
def test_vector_of_a_file(checked):
    options = {"certificate": DATA / "openvino_addon.pem"} if checked else {}
    found = decrypted(addon(**options), (DATA / "openvino_addon.dat").read_bytes(), "a/b.dat")
    assert found == {"a/face_detection.xml": XML, "a/face_detection.bin": bytes(range(256)) * 3}


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        KEY + b"\n",
        KEY.hex().encode(),
        KEY.hex().encode() + b"\n",
        KEY.hex().upper().encode(),
    ],
)
def test_forms_of_the_key(model, key):
    assert decrypted(addon(key), model) == FILES


@pytest.mark.parametrize(
    "key", [b"x", bytes(31), bytes(34), b"0" * 63, b"0" * 63 + b"g", b"0" * 64 + b"\n\n", b"g" * 65]
)
def test_keys_that_are_none(key):
    with pytest.raises(InvalidKey, match="no model key") as caught:
        addon(key)
    assert len(key) < 30 or says_nothing(caught.value, key)


def test_another_key_gives_noise_that_nobody_can_tell(model):
    found = decrypted(addon(bytes(32)), model)
    assert found.keys() == FILES.keys()
    assert found != FILES
    assert "no other integrity" in OpenvinoAddonCodec.unprotected


@given(
    size=st.one_of(
        st.integers(0, 100),
        st.builds(
            lambda n, more: n * (3 * PIECE // 2) - 16 + more, st.integers(1, 3), st.integers(-9, 9)
        ),
    ),
    request=st.sampled_from([1 << 16, PIECE, 3 * PIECE]),
)
@settings(max_examples=40, deadline=None)  # large pieces take long on a busy machine
def test_sizes(size, request):
    plaintext = (PATTERN * (size // len(PATTERN) + 1))[:size]
    text = print_json(document({"a.xml": b"", "b.bin": plaintext}, signature="")).encode()
    assert decrypted(addon(), text, request=request) == {"a.xml": b"", "b.bin": plaintext}


def test_many_files_number_modulo_a_hundred(signer, pem):
    files = {f"{number}.bin": b"%d" % number for number in range(205)}
    text = signed(document(files), signer)
    assert b"file_name_99" in text
    assert b"file_name_100" not in text
    assert decrypted(addon(certificate=pem), text) == files


def test_too_many_files(monkeypatch):
    monkeypatch.setattr(openvino_addon, "_MAX_FILES", 3)
    for count in (3, 4):
        text = print_json(document({f"{n}.bin": b"x" for n in range(count)}, signature="")).encode()
        if count == 3:
            assert len(decrypted(addon(), text)) == count
        else:
            with pytest.raises(LimitExceeded, match="more than 3 files"):
                decrypted(addon(), text)


@pytest.mark.parametrize("names", [("m\\b", "b"), ("MANIFEST", "b"), ("\u00e9.bin", "e\u0301.bin")])
def test_names_that_no_file_of_a_model_can_have(tmp_path, names):
    """The last two are one in Unicode."""
    text = print_json(document(dict.fromkeys(names, b"x"), signature=""))
    (tmp_path / "m.dat").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"m\.dat: the name|Two files would be called \u00e9\.bin"):
        plan_import(tmp_path / "m.dat", "openvino-addon", KEY)


def test_nothing_around_the_text_matters_but_white_space(model, pem):
    assert decrypted(addon(), b"\n " + model + b"\r\n\t") == FILES
    assert decrypted(addon(certificate=pem), model + b"\n") == FILES
    compact = json.dumps(json.loads(model), separators=(",", ":")).encode()
    assert decrypted(addon(), compact) == FILES
    for text in (compact, b"\n" + model):
        with pytest.raises(ForeignTampered, match="not signed"):
            decrypted(addon(certificate=pem), text)


def test_every_change_of_a_signed_text_is_found(model, pem):
    start, end = model.index(b'"file_body_0"'), model.index(b'"signature"')
    places = [*range(40), *range(start, start + 60), *range(end - 60, len(model))]
    for place in places:
        for bit in (0, 3, 6):
            changed = bytearray(model)
            changed[place] ^= 1 << bit
            try:
                found = decrypted(addon(certificate=pem), changed)
            except (ForeignTampered, FormatError) as error:
                assert says_nothing(error, KEY, KEY.hex().encode(), XML[:16])
            else:  # white space behind the signed text became other white space
                assert found == FILES
                assert place > end - 5
                assert model[place : place + 1].isspace()


def test_whatever_is_signed_by_others_is_refused(model, pem):
    theirs = signed(document(FILES, version="0003"), controlled_access.signer())
    assert decrypted(addon(), theirs) == FILES
    with pytest.raises(ForeignTampered, match="not signed with the key of the given certificate"):
        decrypted(addon(certificate=pem), theirs)
    mine, other = json.loads(model), json.loads(theirs)
    exchanged = print_json({**other, "signature": mine["signature"]}).encode()
    with pytest.raises(ForeignTampered):
        decrypted(addon(certificate=pem), exchanged)


@pytest.mark.parametrize(
    "signature", ["", "AAAA", "not base64", "\x00", base64.b64encode(bytes(96)).decode()]
)
def test_signatures_that_are_none(signature, pem):
    text = print_json(document(FILES, signature=signature)).encode()
    with pytest.raises(ForeignTampered):
        decrypted(addon(certificate=pem), text)


def test_signature_in_another_base64(signer, pem):
    """Bits behind its end, which a lenient decoder passes over."""
    while True:  # until its length leaves some
        text = signed(document(FILES), signer)
        signature = json.loads(text)["signature"]
        if signature.endswith("=\n"):
            break
    last = signature.rstrip("=\n")[-1].encode()
    head, end, tail = text.rpartition(last + b"=")
    assert end
    changed = head + bytes([last[0] + 1]) + b"=" + tail
    assert decrypted(addon(certificate=pem), text) == FILES
    with pytest.raises(ForeignTampered):
        decrypted(addon(certificate=pem), changed)


def test_no_files_at_all(signer):
    members = document({})
    with pytest.raises(FormatError):
        decrypted(addon(), signed(members, signer))  # an empty list, which the add-on does not write
    del members["files"]
    with pytest.raises(FormatError, match="has no files"):
        decrypted(addon(), signed(members, signer))


def test_text_after_the_signature_is_refused(model, pem):
    for more in (b"{}", b"x", b"\x00", model):
        with pytest.raises(FormatError):
            decrypted(addon(certificate=pem), model + more)
    members = json.loads(model)
    later = print_json({**members, "more": "text"}).encode()
    with pytest.raises(FormatError):
        decrypted(addon(), later)


def test_signature_of_the_model_alone_stands_for_its_files(model, pem):
    """A source that is exchanged after it has been looked at."""
    codec = addon(certificate=pem)
    files = codec.decrypt(memory_source(model), "m.dat")
    start = model.index(b'"file_body_1":\t"') + 50
    changed = bytearray(model)
    changed[start] ^= 1
    again = codec.decrypt(memory_source(changed), "m.dat")
    good, bad = Collected(), Collected()
    files[1].copy_to(good.write)
    again[0].copy_to(bad.write)
    assert (good.data, bad.data) == (FILES["model.bin"], FILES["model.xml"])
    with pytest.raises(ForeignTampered, match="changed while it was read"):
        again[1].copy_to(bad.write)


def test_certificates(tmp_path, model):
    place = tmp_path / "c.pem"
    with pytest.raises(NotFound):
        addon(certificate=place)
    for text in (b"", b"no certificate", model):
        place.write_bytes(text)
        with pytest.raises(UsageError, match="no certificate in PEM"):
            addon(certificate=place)
    place.write_bytes(certificate(rsa.generate_private_key(65537, 2048)))
    with pytest.raises(UsageError, match="elliptic-curve"):
        addon(certificate=place)
    with pytest.raises(UsageError, match="no option licence"):
        addon(licence="x")


@pytest.fixture
def customer(signer, tmp_path):
    """The customer's private key in PEM, and the place of a licence for it."""
    key = controlled_access.signer()
    place = tmp_path / "customer.lic"
    place.write_bytes(licence(signer, key.public_key(), certificate(signer)))
    return private_pem(key), place


def test_customer_licence(model, customer, pem):
    private, place = customer
    assert decrypted(addon(private, license=place), model) == FILES
    assert decrypted(addon(private, license=place, certificate=pem), model) == FILES


def test_master_licence(model, signer, tmp_path):
    """The maker's first and second key; the certificate is of the first."""
    second = controlled_access.signer()
    place = tmp_path / "master.lic"
    place.write_bytes(licence(signer, second.public_key(), certificate(signer)))
    assert decrypted(addon(private_pem(second), license=place), model) == FILES


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
def test_licence_by_openssl(model, signer, tmp_path):
    """Wrapped as the add-on does it, by the openssl program."""

    def openssl(*command: object, data: bytes = b"") -> bytes:
        command = ("openssl", *map(str, command))
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    mine, theirs = tmp_path / "customer.key", tmp_path / "maker.pem"
    openssl("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", mine)
    (tmp_path / "isv.pem").write_bytes(certificate(signer))
    theirs.write_bytes(openssl("x509", "-in", tmp_path / "isv.pem", "-noout", "-pubkey"))
    shared = openssl("pkeyutl", "-derive", "-inkey", mine, "-peerkey", theirs)
    wrapping = openssl("base64", data=shared)
    salt = b"saltsalt"
    derived = openssl(
        *("kdf", "-binary", "-keylen", 80, "-kdfopt", "digest:SHA384", "-kdfopt", "info:label"),
        *("-kdfopt", f"hexkey:{wrapping.hex()}", "-kdfopt", f"hexsalt:{salt.hex()}", "HKDF"),
    )
    cipher = ("enc", "-aes-256-ctr", "-K", derived[:32].hex(), "-iv", derived[32:48].hex())
    wrapped = b"Salted__" + salt + openssl(*cipher, data=KEY.hex().encode() + b"\n")
    place = tmp_path / "customer.lic"
    place.write_bytes(
        licence(
            *(signer, signer.public_key(), certificate(signer)),
            encryption_key=base64.b64encode(wrapped).decode(),
        )
    )
    assert decrypted(addon(mine.read_bytes(), license=place), model) == FILES


def test_licence_for_others(model, customer, signer, tmp_path):
    place = customer[1]
    with pytest.raises(InvalidKey, match="does not open with this private key") as caught:
        addon(private_pem(controlled_access.signer()), license=place)
    assert says_nothing(caught.value, KEY, KEY.hex().encode())
    other = tmp_path / "other.lic"
    key = controlled_access.signer()
    text = licence(signer, key.public_key(), certificate(signer), model_guid="another")
    other.write_bytes(text)
    with pytest.raises(InvalidKey, match="another model"):
        decrypted(addon(private_pem(key), license=other), model)
    rsa_key = rsa.generate_private_key(65537, 2048)
    other.write_bytes(licence(signer, key.public_key(), certificate(rsa_key)))
    with pytest.raises(FormatError, match="another kind of key"):
        addon(private_pem(key), license=other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: KEY,
        lambda: b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        lambda: private_pem(ec.generate_private_key(ec.SECP256R1())),
        lambda: private_pem(rsa.generate_private_key(65537, 2048)),
        lambda: private_pem(controlled_access.signer(), b"passphrase"),
    ],
)
def test_private_keys_that_are_none(customer, make):
    with pytest.raises(InvalidKey, match="no private key for a licence") as caught:
        addon(make(), license=customer[1])
    assert says_nothing(caught.value, KEY)


def test_licences_that_are_none(customer, signer, tmp_path):
    private, place = customer
    good = json.loads(place.read_bytes())
    texts = [b"", b"{}", b"[]", b"[" * 100_000, b"\xff"]
    for name, value in [
        ("encryption_key", "!"),
        ("encryption_key", "é"),
        ("encryption_key", 1),
        ("encryption_key", blob(b"x")),
        ("encryption_key", base64.b64encode(bytes(81)).decode()),
        ("isv_certificate", "none"),
        ("isv_certificate", None),
        ("model_guid", None),
    ]:
        texts.append(json.dumps({**good, name: value}).encode())
    for text in texts:
        (tmp_path / "bad.lic").write_bytes(text)
        with pytest.raises(FormatError, match="no licence"):
            addon(private, license=tmp_path / "bad.lic")
    with pytest.raises(NotFound):
        addon(private, license=tmp_path / "missing.lic")


def test_every_truncation_is_found(model):
    for size in range(len(model)):
        with pytest.raises(FormatError):
            decrypted(addon(), model[:size])


def member(text: bytes, old: bytes, new: bytes) -> bytes:
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"file_name_0"', b'"file_name_1"'),
        (b'"file_body_0"', b'"file_body"'),
        (b'"model.xml"', b'"../model.xml"'),
        (b'"model.xml"', b'"/etc/passwd"'),
        (b'"model.xml"', b'".."'),
        (b'"model.xml"', b'""'),
        (b'"model.xml"', b'"a\\u0000"'),
        (b'"model.xml"', b'"model.bin"'),
        (b'"model.xml"', b'"\\ud800"'),
        (b'"model.xml"', b'"\xff"'),
        (b'"model.xml"', b'"a\nb"'),
        (b'"model.xml"', b"1"),
        (b'"version"', b'"name"'),
        (b'"0002"', b"2"),
        (b'"0002"', b"null"),
        (b'"0002"', b'["0002"]'),
        (b'"files"', b'"more"'),
        (b'"signature"', b'"more"'),
        (b'"description"', b'"name"'),
        (
            b'"U2FsdGVkX18AAQIDBAUGB',
            b'"U2FsdGVkX19AAQIDBAUGB',
        ),
    ],
)
def test_text_that_is_no_model(model, old, new):
    text = model.replace(old, new, 1)
    assert text != model
    if new.startswith(b'"U2Fs'):
        assert decrypted(addon(), text) != FILES  # another salt
        return
    with pytest.raises(FormatError) as caught:
        decrypted(addon(), text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "AAAA",
        blob(b"")[:-4],
        blob(b"x")[:-1],
        "T" + blob(b"x" * 32)[1:],
        blob(b"x" * 32)[:30] + "\\/" + blob(b"x" * 32)[32:],
        blob(b"x" * 32)[:32] + "====" + blob(b"x" * 32)[36:],
        blob(b"x" * 33)[:28] + " " + blob(b"x" * 33)[29:],
        blob(b"x" * 33)[:28] + "\n" + blob(b"x" * 33)[29:],
    ],
)
def test_bodies_that_are_none(body):
    text = print_json(document({}, files=[{"file_name_0": "m", "file_body_0": "BODY"}], signature=""))
    with pytest.raises(FormatError):
        decrypted(addon(), text.replace("BODY", body).encode())


def test_padding_between_two_pieces():
    body = blob(bytes(6 * PIECE))
    body = body[: 2 * PIECE - 4] + "AA==" + body[2 * PIECE :]
    text = print_json(document({}, files=[{"file_name_0": "m", "file_body_0": body}], signature=""))
    with pytest.raises(FormatError, match="not base64"):
        decrypted(addon(), text.encode())


@pytest.mark.parametrize(
    "text", [b"", b" ", b"{", b"{}", b"[]", b"null", b"\0" * 100, b'{"name"', b"{" * 9999]
)
def test_other_files(text):
    with pytest.raises(FormatError):
        decrypted(addon(), text)
    assert not addon().recognises("config.json", text[:HEAD_SIZE]) or text == b'{"name"'


def test_what_is_too_long():
    with pytest.raises(LimitExceeded):
        decrypted(addon(), print_json({"name": "x" * json_scan.MAX_STRING}).encode())
    with pytest.raises(LimitExceeded):
        decrypted(addon(), b'{"' + b"x" * 3 * PIECE)
    many = document({str(number): b"" for number in range(4097)}, signature="")
    with pytest.raises(LimitExceeded, match="4096"):
        decrypted(addon(), print_json(many).encode())


def test_recognition(model):
    assert addon().recognises("m.dat", model[:HEAD_SIZE])
    assert not addon().recognises("m.lic", b'{\n\t"creation_date":\t"')
    assert not addon().recognises("weights.bin", bytes(64))
    assert not addon().writes


@settings(deadline=None)
@given(text=st.text(max_size=200), at=st.integers(0, 3000), window=st.sampled_from([70_000, 1 << 20]))
def test_scanner_reads_strings_as_json_does(text, at, window):
    for dumped in (json.dumps(text), json.dumps(text, ensure_ascii=False)):
        raw = b" " * at + dumped.encode("utf-8", "surrogatepass") + b" " * at
        scanner = json_scan.JsonScanner(memory_source(raw), window)
        seen = Collected()
        scanner.observers.append(seen.write)
        assert scanner.string() == text
        scanner.sync()
        assert seen.data == raw.rstrip(b" ")
        scanner.finish()


def test_scanner_shows_all_text_to_observers():
    """Long strings, over many windows, with an observer for a part."""
    raw = b'"short"' + b" " * 300_000 + b'"' + b"A" * 500_000 + b'" "end"'
    scanner = json_scan.JsonScanner(memory_source(raw), 70_000)
    everything, part = Collected(), Collected()
    scanner.observers.append(everything.write)
    assert scanner.string() == "short"
    assert scanner.peek() == b'"'
    scanner.sync()
    scanner.observers.append(part.write)
    assert scanner.skip_plain_string() == (300_008, 800_008)
    scanner.sync()
    scanner.observers.pop()
    assert scanner.string() == "end"
    scanner.finish()
    scanner.sync()
    assert everything.data == raw
    assert part.data == b'"' + b"A" * 500_000 + b'"'


def test_big_file_in_constant_memory(tmp_path, signer, pem):
    """The text as the writer makes it, but in pieces."""
    count = 96
    text = print_json(document({}, files=[{"file_name_0": "model.bin", "file_body_0": "BODY"}]))
    head, tail = text.encode().split(b"BODY")
    plaintext = base64.b64decode(blob(b""))
    hasher = hashes.Hash(hashes.SHA512())
    key = HKDF(hashes.SHA384(), 80, plaintext[8:], b"label").derive(KEY.hex().encode() + b"\n")
    cipher = Cipher(algorithms.AES(key[:32]), modes.CTR(key[32:48])).encryptor()
    with open(tmp_path / "f", "wb") as file:

        def write(data: bytes) -> None:
            hasher.update(data)
            file.write(data)

        write(head)
        rest = plaintext
        for _ in range(count):
            rest += cipher.update(PATTERN)
            whole = len(rest) // 3 * 3
            write(base64.b64encode(rest[:whole]))
            rest = rest[whole:]
        write(base64.b64encode(rest))
        hasher.update(tail)
        file.write(tail.removesuffix(b"\n}"))
        signature = signer.sign(hasher.finalize(), ec.ECDSA(Prehashed(hashes.SHA512())))
        file.write(b',\n\t"signature":\t"' + base64.b64encode(signature) + b'"\n}')
    peak = peak_memory(
        "big_files", "decrypt", "openvino-addon", KEY.hex(), tmp_path / "f", count, f"certificate={pem}"
    )
    assert peak < 32 << 20
    os.unlink(tmp_path / "f")


def test_cut_and_doubled_text(model, pem):
    """In every combination of a few places."""
    places = range(0, len(model), 97)
    for first in places:
        for second in places:
            if first != second:
                with pytest.raises(StrongroomError) as caught:
                    decrypted(addon(certificate=pem), model[:first] + model[second:])
                assert str(caught.value).isprintable()
