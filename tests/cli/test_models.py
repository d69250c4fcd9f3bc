"""inspect, verify, unseal and rewrap on models that are whole, and on those that are not."""

import json
import os
from pathlib import Path

import pytest

import strongroom
from strongroom.format.header import HeaderArea
from strongroom.model.reader import read_area
from strongroom.model.storage import LocalSource


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset, os.SEEK_SET if offset >= 0 else os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def test_inspect_shows_what_there_is_without_a_key(cli, key, folder):
    cli("keygen", "-o", "id", "--type", "hpke-x25519")
    cli(
        "seal",
        folder,
        "-o",
        "m.sealed",
        "-k",
        key,
        "-R",
        "id.pub",
        "--name",
        "net",
        "--clear",
        "*.json",
    )
    result = cli("inspect", "m.sealed")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["m.sealed:", "sealed", "directory,", "3", "files,", "300.0", "kB"]
    assert ["name", "net"] in lines
    assert ["1/weights.bin", "300.0", "kB", "sealed"] in lines
    assert ["config.json", "13", "B", "clear"] in lines
    assert ["empty", "0", "B", "sealed"] in lines
    assert "A256KW" in result.out and "HPKE-X25519" in result.out
    assert "Not authenticated" in result.out
    assert not any(line != line.rstrip() for line in result.out.splitlines())
    said = json.loads(cli("inspect", "m.sealed", "--json").out)
    assert said == strongroom.inspect("m.sealed").to_json()
    assert said["authenticated"] is False
    assert "encrypted_key" not in json.dumps(said)


def test_what_a_file_says_cannot_repaint_the_screen(program, cli, key, folder, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    (folder / "e\x1b[31mvil\n\u202etxt").write_text("x")
    evil = "\x1b]0;title\x07[bold red]x[/]\u202e\x9b"
    cli("seal", folder, "-o", "m.sealed", "-k", key, "--name", evil, "--meta", f"{evil}=1\r2")
    for arguments in (("inspect", "m.sealed"), ("inspect", "m.sealed", "--json")):
        shown = program(*arguments).out
        assert not set("\x1b\x07\u202e\x9b\r") & set(shown)
        assert "[bold red]x[/]" in shown
    flip("m.sealed/e\x1b[31mvil\n\u202etxt.sealed", -1)
    result = program("verify", "m.sealed", "-k", key)
    assert result.code == 5
    assert not set("\x1b\u202e") & set(result.err)
    assert "e\\x1b[31mvil\\n\\u202etxt" in result.error()


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (lambda path: flip(path, 0), 3, "not a sealed file"),
        (lambda path: flip(path, 20), 3, "Malformed"),
        (lambda path: flip(path, -1), 5, "segment 3"),
        (lambda path: flip(path, 70_000), 5, "weights.bin: segment 1 does not authenticate"),
        (lambda path: os.truncate(path, 100_000), 5, ""),
        (lambda path: os.truncate(path, 100), 5, "ends inside its header"),
        (lambda path: os.truncate(path, 0), 3, "not a sealed file"),
        (lambda path: path.unlink(), 2, "no such file"),
    ],
)
def test_damage_has_its_sentence_and_its_code(cli, key, sealed, here, damage, code, words):
    damage(sealed)
    for arguments in (("verify", sealed), ("unseal", sealed, "-o", "out")):
        result = cli(*arguments, "-k", key)
        assert (result.code, result.out) == (code, "")
        assert words in result.error()
        assert not (here / "out").exists()


def test_a_changed_header_is_told_from_a_wrong_key(cli, key, weights):
    cli("seal", weights, "-o", "w.sealed", "-k", key, "--name", "aaaa")
    content = Path("w.sealed").read_bytes()
    Path("w.sealed").write_bytes(content.replace(b'"aaaa"', b'"aaab"'))
    result = cli("verify", "w.sealed", "-k", key)
    assert result.code == 5
    assert "header does not authenticate" in result.error()
    cli("keygen", "-o", "other")
    result = cli("verify", "w.sealed", "-k", "other")
    assert result.code == 4
    assert "A256KW" in result.error()


def test_a_format_of_the_future(cli, key, sealed):
    content = sealed.read_bytes()
    sealed.write_bytes(content.replace(b'{"v":1,', b'{"v":2,'))
    result = cli("inspect", sealed)
    assert result.code == 3
    assert "version 2" in result.error()


def test_places_that_are_no_model(cli, key, here):
    (here / "folder").mkdir()
    (here / "text").write_text("hello")
    assert cli("inspect", "folder").code == 3
    assert cli("inspect", "text").code == 3
    assert cli("inspect", "missing").code == 2
    assert cli("inspect", "-").code == 2
    assert cli("verify", "/dev/null", "-k", key).code == 2
    assert cli("inspect", "nonsense://x").code == 2


def test_verify_says_how_much(cli, key, sealed):
    result = cli("verify", sealed, "-k", key)
    assert (result.code, result.err) == (0, "")
    assert "is authentic and complete: 1 file, 200.0 kB" in result.out
    said = json.loads(cli("verify", sealed, "-k", key, "--json").out)
    assert said["authenticated"] is True
    assert (said["files"], said["size"]) == (1, 200_000)


def test_unseal_does_not_overwrite(cli, key, sealed, weights):
    before = weights.read_bytes()
    result = cli("unseal", sealed, "-o", weights, "-k", key)
    assert result.code == 2
    assert weights.read_bytes() == before
    assert cli("unseal", sealed, "-o", weights, "-k", key, "--force").code == 0
    assert weights.read_bytes() == before


def payload(path):
    source = LocalSource(path)
    area = read_area(source)
    source.close()
    assert isinstance(area, HeaderArea)
    return path.read_bytes()[area.size :]


def test_rewrap_for_another_key(cli, key, sealed):
    before = payload(sealed)
    cli("keygen", "-o", "new")
    result = cli("rewrap", sealed, "-k", key, "-k", "new")
    assert result.code == 0
    assert "seal the model anew" in result.err
    assert payload(sealed) == before
    assert cli("verify", sealed, "-k", key).code == 4
    assert cli("verify", sealed, "-k", "new").code == 0


def test_rewrap_keeps_and_adds(cli, key, folder):
    cli("seal", folder, "-o", "m.sealed", "-k", key)
    cli("keygen", "-o", "id", "--type", "hpke")
    result = cli("rewrap", "m.sealed", "-k", key, "-R", "id.pub", "--keep")
    assert result.code == 0
    assert "HPKE-MLKEM768X25519" in result.err
    assert "anew" not in result.err
    for name in (key, "id"):
        assert cli("verify", "m.sealed", "-k", name).code == 0


def test_rewrap_by_the_environment(program, cli, key, sealed):
    cli("keygen", "-o", "id", "--type", "hpke-x25519")
    recipient = Path("id.pub").read_text().strip()
    assert program("rewrap", sealed, "-r", recipient, STRONGROOM_KEY_FILE=str(key)).code == 0
    assert cli("verify", sealed, "-k", "id").code == 0


def test_rewrap_from_passphrase_to_passphrase_on_one_descriptor(program, cli, weights):
    assert program("seal", weights, "-o", "w", "--passphrase-fd", 0, stdin=b"old\n").code == 0
    arguments = ("rewrap", "w", "--passphrase-fd", 0, "--new-passphrase-fd", 0)
    assert program(*arguments, stdin=b"old\nnew\n").code == 0
    assert program("verify", "w", "--passphrase-fd", 0, stdin=b"old\n").code == 4
    assert program("verify", "w", "--passphrase-fd", 0, stdin=b"new\n").code == 0


def test_rewrap_by_prompts(terminal, program, weights, key):
    assert program("seal", weights, "-o", "w", "--passphrase-fd", 0, stdin=b"old\n").code == 0
    shown = terminal("rewrap", "w", "--passphrase", "--new-passphrase", "-k", key)
    for prompt, answer in (
        ("Passphrase: ", "old\n"),
        ("New passphrase: ", "new\n"),
        ("New passphrase again: ", "new\n"),
    ):
        shown.expect(prompt)
        shown.type(answer)
    assert shown.wait() == 0
    assert program("verify", "w", "--passphrase-fd", 0, stdin=b"new\n").code == 0
    assert program("verify", "w", "-k", key).code == 0


@pytest.mark.parametrize("arguments", [("-k", "key.txt"), (), ("--passphrase",)])
def test_rewrap_for_nobody(cli, sealed, arguments):
    before = sealed.read_bytes()
    result = cli("rewrap", sealed, *arguments)
    assert result.code == 2
    assert "who shall be able to open" in result.error()
    assert sealed.read_bytes() == before


def test_rewrap_with_the_wrong_key(cli, key, sealed):
    before = sealed.read_bytes()
    cli("keygen", "-o", "other")
    assert cli("rewrap", sealed, "-k", "other", "-k", key).code == 4
    assert sealed.read_bytes() == before
