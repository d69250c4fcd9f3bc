"""Where keys come from: files, the environment, prompts, descriptors; and that they are never shown."""

import os
import subprocess

import pytest

from strongroom import HpkeIdentity, SymmetricKey
from strongroom.crypto.hpke import X25519

from .conftest import PROGRAM, TIMEOUT


@pytest.fixture
def passphrase_fd():
    opened = []

    def give(content):
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        opened.append(reader)
        return reader

    yield give
    for descriptor in opened:
        os.close(descriptor)


def test_the_key_in_the_environment(program, key, weights):
    for name, value in (("STRONGROOM_KEY_FILE", str(key)), ("STRONGROOM_KEY", key.read_text())):
        environment = {name: value}
        assert program("seal", weights, "-o", f"{name}.sealed", **environment).code == 0
        assert program("verify", f"{name}.sealed", **environment).code == 0
        assert program("verify", f"{name}.sealed", "-k", key).code == 0
    both = program("verify", "STRONGROOM_KEY.sealed", STRONGROOM_KEY="x", STRONGROOM_KEY_FILE="y")
    assert both.code == 2
    assert "both set" in both.error()
    bad = program("verify", "STRONGROOM_KEY.sealed", STRONGROOM_KEY="not-a-key")
    assert bad.code == 4
    assert "not-a-key" not in bad.err


def test_no_key_at_all(cli, sealed):
    result = cli("verify", sealed)
    assert result.code == 4
    assert result.error() == "No key was given."
    assert "-k FILE" in result.hint() and "STRONGROOM_KEY_FILE" in result.hint()
    assert cli("seal", "weights.bin", "-o", "x.sealed").code == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty", b""),
        ("short", b"AAAA\n"),
        ("binary", bytes(range(256))),
        ("two-lines", b"A" * 43 + b"\n" + b"A" * 43 + b"\n"),
        ("large", b"A" * 100_000),
    ],
)
def test_a_file_that_is_no_key(cli, here, sealed, name, content):
    (here / name).write_bytes(content)
    result = cli("verify", sealed, "-k", name)
    assert result.code == 4
    assert result.error().startswith(name)


def test_a_directory_and_a_missing_file_as_key(cli, here, sealed):
    (here / "folder").mkdir()
    assert cli("verify", sealed, "-k", "folder").code == 2
    assert cli("verify", sealed, "-k", "missing").error() == "missing: no such file or directory."


def secrets():
    symmetric = SymmetricKey.generate().encode().decode().strip()
    identity = HpkeIdentity.generate(X25519).encode().decode().splitlines()[1]
    return {"symmetric": symmetric, "unpadded": symmetric.rstrip("="), "identity": identity}


@pytest.mark.parametrize("kind", ["symmetric", "unpadded", "identity"])
def test_a_key_on_the_command_line_is_refused_and_never_repeated(program, sealed, weights, kind):
    secret = secrets()[kind]
    for arguments in (
        ("verify", sealed, "-k", secret),
        ("unseal", sealed, "-o", "out", "-k", secret),
        ("seal", weights, "-o", "x", "-k", secret),
        ("seal", weights, "-o", "x", "-r", secret),
        ("seal", weights, "-o", "x", "-R", secret),
        ("rewrap", sealed, "-k", "key.txt", "-k", secret),
        ("plumbing", "tink-keyset", sealed, "-k", secret),
        ("verify", sealed, secret),
        (secret,),
        ("verify", sealed, f"--{secret}"),
        ("verify", sealed, "-k"),
        ("bench", sealed, "-k", "key.txt", "--runs", secret),
        ("keygen", "-o", "k", "--type", secret),
    ):
        result = program(*arguments)
        assert result.code in (2, 4), arguments
        result.error()
        assert secret[10:30] not in result.out + result.err, arguments


def test_a_passphrase_after_the_flag_is_not_repeated(program, weights):
    result = program("seal", weights, "-o", "x", "--passphrase", "hunter2")
    assert result.code == 2
    assert "hunter2" not in result.out + result.err
    result = program("seal", weights, "-o", "x", "--passphrase=hunter2")
    assert result.code == 2
    assert "hunter2" not in result.out + result.err


@pytest.mark.parametrize("line", ["correct horse\n", "correct horse", "correct horse\r\n"])
def test_a_passphrase_from_a_descriptor(cli, weights, passphrase_fd, line):
    fd = passphrase_fd(line.encode())
    assert cli("seal", weights, "-o", "w.sealed", "--passphrase-fd", fd).code == 0
    fd = passphrase_fd(b"correct horse\nnot this\n")
    assert cli("unseal", "w.sealed", "-o", "out", "--passphrase-fd", fd).code == 0
    fd = passphrase_fd(b"wrong horse\n")
    result = cli("verify", "w.sealed", "--passphrase-fd", fd)
    assert result.code == 4
    assert "horse" not in result.err
    assert cli("verify", "w.sealed", "--passphrase-fd", passphrase_fd(b"\n")).code == 4


def test_passphrase_and_model_on_one_pipe(program, weights):
    plaintext = weights.read_bytes()
    arguments = ("seal", "-", "-o", "-", "--path", "w", "--passphrase-fd", "0")
    sealed = program(*arguments, stdin=b"secret\n" + plaintext, text=False)
    assert sealed.code == 0
    opened = program(
        *("unseal", "-", "-o", "-", "--passphrase-fd", "0"), stdin=b"secret\n" + sealed.out, text=False
    )
    assert opened.out == plaintext


def test_the_prompt_asks_twice_to_seal_and_shows_nothing(terminal, weights, here):
    seal = terminal("seal", weights, "-o", "w.sealed", "--passphrase")
    seal.expect("Passphrase: ")
    seal.type("correct horse\n")
    seal.expect("Passphrase again: ")
    seal.type("correct horse\n")
    assert seal.wait() == 0
    opened = terminal("unseal", "w.sealed", "-o", "out", "--passphrase")
    opened.expect("Passphrase: ")
    opened.type("correct horse\n")
    assert opened.wait() == 0
    assert "horse" not in seal.screen + opened.screen
    assert (here / "out").read_bytes() == weights.read_bytes()


def test_the_prompt_does_not_need_standard_output_or_input(terminal, weights, here):
    seal = terminal("seal", weights, "-o", "-", "--passphrase", out_to_pipe=True)
    seal.expect("Passphrase: ")
    seal.type("pass\n")
    seal.expect("Passphrase again: ")
    seal.type("pass\n")
    content = seal.process.stdout.read()
    assert seal.wait() == 0
    assert content.startswith(b"\x89SRM")


@pytest.mark.parametrize(
    ("answers", "sentence", "code"),
    [
        (("one\n", "two\n"), "The two passphrases differ.", 2),
        (("\n",), "The passphrase is empty.", 4),
        (("\x04",), "No passphrase was given.", 4),
        (("\x03",), "", 130),
    ],
)
def test_answers_to_the_prompt_that_do_not_do(terminal, weights, here, answers, sentence, code):
    seal = terminal("seal", weights, "-o", "w.sealed", "--passphrase")
    for prompt, answer in zip(("Passphrase: ", "Passphrase again: "), answers, strict=False):
        seal.expect(prompt)
        seal.type(answer)
    assert seal.wait() == code
    assert sentence in seal.screen
    assert not (here / "w.sealed").exists()


def test_without_a_terminal_there_is_no_prompt(sealed, weights):
    done = subprocess.run(
        [PROGRAM, "seal", weights, "-o", "x.sealed", "--passphrase"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 2
    assert b"There is no terminal" in done.stderr
    assert b"--passphrase-fd" in done.stderr


def test_a_missing_model_is_said_before_anybody_is_asked(terminal):
    shown = terminal("unseal", "missing.sealed", "-o", "out", "--passphrase")
    assert shown.wait() == 2
    assert "Passphrase" not in shown.screen
