import base64
import json
import os
import stat

import pytest
from cryptography.fernet import Fernet

import strongroom


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_symmetric_key_is_a_fernet_key_that_only_its_owner_reads(cli, here):
    result = cli("keygen", "-o", "key.txt")
    assert (result.code, result.out) == (0, "")
    content = (here / "key.txt").read_bytes()
    Fernet(content.strip())
    assert len(base64.urlsafe_b64decode(content)) == 32
    assert mode("key.txt") == 0o600
    assert content.decode().strip() not in result.err


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_no_umask_loosens_the_mode(cli, umask):
    before = os.umask(umask)
    try:
        assert cli("keygen", "-o", "id.txt", "--type", "hpke-x25519").code == 0
    finally:
        os.umask(before)
    assert mode("id.txt") & ~0o600 == 0
    assert mode("id.txt.pub") & 0o111 == 0


@pytest.mark.parametrize(("kind", "scheme"), [("hpke", "hpke-mlkem768x25519"), ("hpke-x25519",) * 2])
def test_a_key_pair_has_its_recipient_on_stdout_and_beside_it(cli, here, kind, scheme):
    result = cli("keygen", "-o", "id.txt", "--type", kind)
    assert result.code == 0
    recipient = result.out.strip()
    assert recipient.startswith(scheme + ":")
    assert (here / "id.txt.pub").read_text() == recipient + "\n"
    identity = (here / "id.txt").read_text()
    assert str(strongroom.HpkeIdentity.parse(identity).recipient) == recipient
    assert "-secret:" in identity
    assert "-secret:" not in result.out + result.err


@pytest.mark.parametrize("present", ["id.txt", "id.txt.pub"])
def test_nothing_is_overwritten_and_nothing_half_written(cli, here, present):
    (here / present).write_text("precious")
    result = cli("keygen", "-o", "id.txt", "--type", "hpke")
    assert result.code == 2
    assert f"{present} exists already" in result.error()
    assert "lost for ever" in result.hint()
    assert [path.name for path in here.iterdir()] == [present]
    assert (here / present).read_text() == "precious"


def test_force_replaces_a_readable_file_by_a_private_one(cli, here):
    (here / "key.txt").write_text("old")
    (here / "key.txt").chmod(0o644)
    assert cli("keygen", "-o", "key.txt", "--force").code == 0
    assert mode("key.txt") == 0o600
    assert (here / "key.txt").stat().st_size == 45


def test_a_dangling_link_is_a_file_that_exists(cli, here):
    (here / "key.txt").symlink_to(here / "elsewhere")
    assert cli("keygen", "-o", "key.txt").code == 2
    assert not (here / "elsewhere").exists()


def test_json(cli, here):
    result = cli("keygen", "-o", "id.txt", "--type", "hpke-x25519", "--json")
    said = json.loads(result.out)
    assert said["type"] == "hpke-x25519"
    assert said["recipient"] == (here / said["recipient_file"]).read_text().strip()
    assert said["kid"] == strongroom.HpkeIdentity.parse((here / "id.txt").read_text()).recipient.kid
    assert "-secret" not in result.out


def test_a_key_goes_through_a_pipe_and_not_to_a_terminal(program, terminal, here):
    piped = program("keygen", "-o", "-")
    assert piped.code == 0
    strongroom.SymmetricKey.parse(piped.out.encode())
    pair = program("keygen", "-o", "-", "--type", "hpke-x25519")
    assert "recipient: hpke-x25519:" in pair.err
    assert strongroom.HpkeIdentity.parse(pair.out)
    shown = terminal("keygen", "-o", "-")
    assert shown.wait() == 2
    assert "Standard output is a terminal" in shown.screen
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("destination", ["missing/key.txt", ".", "key.txt/"])
def test_a_place_where_no_file_can_be(cli, here, destination):
    result = cli("keygen", "-o", destination)
    assert result.code == 2
    result.error()
    assert list(here.iterdir()) == []
