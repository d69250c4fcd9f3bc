"""What the plumbing shows is true: Google Tink reads our payloads with it, and we read Tink's."""

import base64
import io
import json
import stat

import pytest
from tink import json_proto_keyset_format, secret_key_access, streaming_aead

import strongroom


@pytest.fixture(scope="module", autouse=True)
def tink():
    streaming_aead.register()


def primitive(document):
    keyset = json_proto_keyset_format.parse(json.dumps(document["keyset"]), secret_key_access.TOKEN)
    return keyset.primitive(streaming_aead.StreamingAead)


def test_header(cli, sealed):
    content = sealed.read_bytes()
    said = json.loads(cli("plumbing", "header", sealed, "--json").out)
    assert said["raw"].encode() == content[16 : 16 + said["header_size"]]
    assert said["header"] == json.loads(said["raw"])
    assert bytes.fromhex(said["mac"]) == content[16 + said["header_size"] :][:32]
    start = said["payload_offset"]
    assert content[start + 1 : start + 33].hex() == said["salt"]
    assert content[start + 33 : start + 40].hex() == said["nonce_prefix"]
    assert (said["segments"], said["plaintext_size"]) == (4, 200_000)
    assert start + said["payload_size"] == len(content)
    shown = cli("plumbing", "header", sealed)
    assert said["mac"] in shown.out and said["header"]["bundle"] in shown.out


def test_header_of_a_directory_is_that_of_its_manifest(cli, key, folder):
    cli("seal", folder, "-o", "m.sealed", "-k", key)
    said = json.loads(cli("plumbing", "header", "m.sealed", "--json").out)
    assert said["header"]["path"] == "MANIFEST"
    member = cli("plumbing", "header", "m.sealed/config.json.sealed", "--json")
    assert json.loads(member.out)["header"]["recipients"] == []


@pytest.mark.parametrize("size", [0, 1, 65480, 65481, 200_000])
def test_tink_reads_a_payload_of_ours(cli, key, here, size):
    plaintext = bytes(range(256)) * (size // 256 + 1)
    (here / "w.bin").write_bytes(plaintext[:size])
    cli("seal", "w.bin", "-o", "w.sealed", "-k", key, "--segment-size", 65536)
    result = cli("plumbing", "tink-keyset", "w.sealed", "-k", key, "-o", "keyset.json")
    assert (result.code, result.out) == (0, "")
    assert "key material" in result.err
    assert stat.S_IMODE((here / "keyset.json").stat().st_mode) == 0o600
    document = json.loads((here / "keyset.json").read_text())
    (file,) = document["files"]
    associated = base64.b64decode(file["associated_data"])
    assert associated.hex() == file["associated_data_hex"]
    payload = (here / "w.sealed").read_bytes()[file["payload_offset"] :]
    with primitive(document).new_decrypting_stream(io.BytesIO(payload), associated) as stream:
        assert stream.read() == plaintext[:size]


def test_tink_reads_the_files_of_a_directory(cli, key, folder, here):
    cli("seal", folder, "-o", "m.sealed", "-k", key, "--clear", "*.json")
    document = json.loads(cli("plumbing", "tink-keyset", "m.sealed", "-k", key).out)
    assert {file["path"] for file in document["files"]} == {"1/weights.bin", "empty"}
    for file in document["files"]:
        payload = (here / "m.sealed" / file["stored_as"]).read_bytes()[file["payload_offset"] :]
        associated = base64.b64decode(file["associated_data"])
        with primitive(document).new_decrypting_stream(io.BytesIO(payload), associated) as stream:
            assert stream.read() == (folder / file["path"]).read_bytes()


def test_a_payload_made_by_tink_is_read_by_us(cli, key, sealed, here):
    document = json.loads(cli("plumbing", "tink-keyset", sealed, "-k", key).out)
    (file,) = document["files"]
    plaintext = b"from the other side " * 20_000
    payload = io.BytesIO()
    payload.close = lambda: None  # Tink closes what it writes to
    associated = base64.b64decode(file["associated_data"])
    with primitive(document).new_encrypting_stream(payload, associated) as stream:
        stream.write(plaintext)
    sealed.write_bytes(sealed.read_bytes()[: file["payload_offset"]] + payload.getvalue())
    with strongroom.open(sealed, key=key) as model:
        assert model.read() == plaintext
    assert cli("verify", sealed, "-k", key).code == 0
    assert cli("unseal", sealed, "-o", "out", "-k", key).code == 0
    assert (here / "out").read_bytes() == plaintext


def test_a_keyset_is_refused_to_strangers_and_terminals(cli, terminal, key, sealed, here):
    cli("keygen", "-o", "other")
    assert cli("plumbing", "tink-keyset", sealed, "-k", "other").code == 4
    (here / "there").write_text("precious")
    assert cli("plumbing", "tink-keyset", sealed, "-k", key, "-o", "there").code == 2
    assert (here / "there").read_text() == "precious"
    shown = terminal("plumbing", "tink-keyset", sealed, "-k", key)
    assert shown.wait() == 2
    assert "keyData" not in shown.screen


def test_vectors(cli, here):
    result = cli("plumbing", "vectors", "a/b")
    assert result.code == 0
    names = result.out.splitlines()
    listed = json.loads((here / "a" / "b" / "vectors.json").read_text())
    assert {entry["name"] for entry in listed["vectors"]} <= {*names}
    assert cli("plumbing", "vectors", "again", "-q").out == ""
    for path in (here / "a" / "b").rglob("*"):
        if path.is_file():
            again = here / "again" / path.relative_to(here / "a" / "b")
            assert again.read_bytes() == path.read_bytes()
