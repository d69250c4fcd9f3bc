import filecmp
import json
import os
import stat

import pytest

import strongroom


def same_tree(one, other):
    compared = filecmp.dircmp(one, other)
    if compared.left_only or compared.right_only:
        return False
    _, mismatch, errors = filecmp.cmpfiles(one, other, compared.common_files, shallow=False)
    return not (mismatch or errors) and all(
        same_tree(os.path.join(one, name), os.path.join(other, name)) for name in compared.common_dirs
    )


def test_a_directory_goes_round_with_the_installed_program(program, folder, here):
    assert program("keygen", "-o", "key.txt").code == 0
    result = program("seal", "model/", "-o", "model.sealed", "-k", "key.txt", "--name", "net")
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith("Sealed model/ to model.sealed: 300.0 kB in ")
    assert not any(b"layers" in path.read_bytes() for path in (here / "model.sealed").glob("*.sealed"))
    assert program("verify", "model.sealed", "-k", "key.txt").out.startswith(
        "model.sealed is authentic"
    )
    result = program("unseal", "model.sealed", "-o", "copy", "-k", "key.txt")
    assert (result.code, result.out) == (0, "")
    assert same_tree("model", "copy")
    assert stat.S_IMODE(os.stat("copy").st_mode) == 0o700
    assert stat.S_IMODE(os.stat("copy/config.json").st_mode) == 0o600


def test_everyone_named_can_open_it(cli, key, weights, here):
    for name in ("a", "b", "c"):
        assert cli("keygen", "-o", name, "--type", "hpke-x25519").code == 0
    (here / "team.pub").write_text("# the team\n\n" + (here / "b.pub").read_text())
    recipient = (here / "a.pub").read_text().strip()
    result = cli(
        *("seal", weights, "-o", "w.sealed", "-k", key, "-r", recipient),
        *("-R", "team.pub", "-R", "c.pub", "--json"),
    )
    assert json.loads(result.out)["recipients"] == 4
    for name in ("key.txt", "a", "b", "c"):
        assert cli("verify", "w.sealed", "-k", name).code == 0


def test_what_the_header_says(cli, key, folder):
    result = cli(
        *("seal", folder, "-o", "m.sealed", "-k", key, "--name", "net", "--version", "3"),
        *("--meta", "licence=MIT", "--meta", "url=https://a?b=c", "--clear", "*.json", "--json"),
    )
    assert result.code == 0
    said = json.loads(result.out)
    assert said["size"] == 300_013
    with strongroom.open("m.sealed", key=key) as model:
        assert dict(model.meta) | {"created": ""} == {
            "name": "net",
            "version": "3",
            "licence": "MIT",
            "url": "https://a?b=c",
            "created": "",
        }
        assert not model.files["config.json"].sealed
        assert strongroom.inspect("m.sealed").to_json()["bundle"] == said["bundle"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--meta", "novalue"), "--meta novalue: not of the form NAME=VALUE."),
        (("--meta", "=x"), "not of the form NAME=VALUE."),
        (("--meta", "a=1", "--meta", "a=2"), "--meta a is given twice."),
        (("--name", "x", "--meta", "name=y"), "meta.name is given twice."),
        (("--name", "caf\udce9"), "The value of --name is not UTF-8."),
        (("--segment-size", "1000"), "The segment size is not a power of two."),
        (("--segment-size", "-65536"), "The segment size is not"),
        (("--segment-size", "many"), "Invalid value for '--segment-size'"),
        (("--clear", "*"), "Files can stay in clear only in a sealed directory."),
        (("--path", "x"), "--path is for standard input"),
        (("-r", "hpke-x25519:AAAA"), "cut or mistyped"),
        (("-r", "somebody"), "What was given with -r is not a recipient."),
        (("-R", "missing.pub"), "missing.pub: no such file"),
        (("--passphrase-fd", "99"), "File descriptor 99 cannot be read."),
        (("--passphrase-fd", "-1"), "File descriptor -1 cannot be read."),
        (("--passphrase-fd", str(1 << 40)), "cannot be read."),
    ],
)
def test_what_is_refused_leaves_nothing(cli, key, weights, here, arguments, sentence):
    before = sorted(here.iterdir())
    result = cli("seal", weights, "-o", "w.sealed", "-k", key, *arguments)
    assert result.code in (2, 4)
    assert sentence in result.error()
    assert sorted(here.iterdir()) == before


def test_a_recipient_file_given_as_a_recipient(cli, weights):
    cli("keygen", "-o", "id", "--type", "hpke-x25519")
    result = cli("seal", weights, "-o", "w.sealed", "-r", "id.pub")
    assert result.code == 2
    assert result.hint() == "Give the file: -R id.pub"


def test_a_destination_is_not_overwritten_without_force(cli, key, weights, sealed):
    before = sealed.read_bytes()
    result = cli("seal", weights, "-o", sealed, "-k", key)
    assert result.code == 2
    assert "--force" in result.hint()
    assert sealed.read_bytes() == before
    assert cli("seal", weights, "-o", sealed, "-k", key, "--force").code == 0
    assert cli("verify", sealed, "-k", key).code == 0


def test_a_pipe_or_device_is_never_replaced(cli, key, weights, folder, here):
    os.mkfifo("pipe")
    (here / "link").symlink_to("/dev/null")
    for source in (weights, folder):
        for destination in ("pipe", "link"):
            for force in ((), ("--force",)):
                result = cli("seal", source, "-o", destination, "-k", key, *force)
                assert result.code == 2
                assert "is a device, a pipe or a socket" in result.error()
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    assert (here / "link").is_symlink()


def test_sealing_twice_is_refused(cli, key, sealed):
    result = cli("seal", sealed, "-o", "again.sealed", "-k", key)
    assert result.code == 2
    assert "sealed already" in result.error()


def test_a_pipe_is_sealed_and_unsealed(program, key, weights, here):
    plaintext = weights.read_bytes()
    sealed = program("seal", "-", "-o", "-", "--path", "w.bin", "-k", key, stdin=plaintext, text=False)
    assert sealed.code == 0
    opened = program("unseal", "-", "-o", "-", "-k", key, stdin=sealed.out, text=False)
    assert opened.code == 0
    assert opened.out == plaintext
    assert program("seal", "-", "-o", "net.pt.sealed", "-k", key, stdin=plaintext).code == 0
    with strongroom.open("net.pt.sealed", key=key) as model:
        assert list(model.files) == ["net.pt"]
    assert program("unseal", "-", "-o", "net.pt", "-k", key, stdin=sealed.out).code == 0
    assert (here / "net.pt").read_bytes() == plaintext
    assert stat.S_IMODE((here / "net.pt").stat().st_mode) == 0o600
    assert program("verify", "-", "-k", key, stdin=sealed.out).code == 0


def test_a_pipe_without_a_name(program, key):
    result = program("seal", "-", "-o", "-", "-k", key, stdin=b"x")
    assert result.code == 2
    assert "--path" in result.hint()
    assert result.out == ""


def test_a_cut_pipe_leaves_no_file(program, key, sealed, here):
    content = sealed.read_bytes()
    for size in (0, 10, 4096, 5000, len(content) - 1):
        result = program("unseal", "-", "-o", "out", "-k", key, stdin=content[:size])
        assert result.code in (3, 5)
        result.error()
        assert not (here / "out").exists()


def test_models_do_not_go_to_a_terminal(terminal, key, sealed, weights):
    for arguments in (
        ("seal", weights, "-o", "-", "-k", key),
        ("unseal", sealed, "-o", "-", "-k", key),
    ):
        shown = terminal(*arguments)
        assert shown.wait() == 2
        assert "Standard output is a terminal" in shown.screen
    waiting = terminal("unseal", "-", "-o", "out", "-k", key)
    assert waiting.wait() == 2
    assert "Standard input is a terminal" in waiting.screen


def test_json_and_a_model_do_not_share_standard_output(cli, key, weights):
    assert cli("seal", weights, "-o", "-", "-k", key, "--json").code == 2


def test_quiet_is_quiet(cli, key, weights):
    result = cli("seal", weights, "-o", "w.sealed", "-k", key, "-q")
    assert (result.code, result.out, result.err) == (0, "", "")
    for verb in (("verify",), ("unseal", "-o", "out")):
        result = cli(*verb, "w.sealed", "-k", key, "-q")
        assert (result.code, result.out, result.err) == (0, "", "")


def test_a_terminal_gets_a_bar_with_throughput(terminal, key, here):
    with open("big", "wb") as file:
        file.truncate(256 << 20)
    shown = terminal("seal", "big", "-o", "big.sealed", "-k", key)
    assert shown.wait() == 0
    assert "Sealing big" in shown.screen
    assert "/268.4 MB" in shown.screen
    assert "Sealed big to big.sealed" in shown.screen
    for option in ("--no-progress", "--quiet"):
        silent = terminal("verify", "big.sealed", "-k", key, option)
        assert silent.wait() == 0
        assert "Verifying" not in silent.screen
