"""The repository agent's library, called as Triton calls it: every action, on threads, with errors of each side."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import agent_host
import pytest
from agent_host import FAILED, LOADED, UNLOAD, UNLOADED, hosting, load

import strongroom
from strongroom.triton import install

KEY = "A" * 43
NATIVE = agent_host.HEADERS


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return agent_host.build(tmp_path_factory.mktemp("host") / "host")


@pytest.fixture(scope="module")
def library(agents):
    return agents / "strongroom" / install.LIBRARY


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    plain = tmp_path_factory.mktemp("plain") / "m"
    (plain / "1").mkdir(parents=True)
    (plain / "config.pbtxt").write_text('name: "m"\n')
    (plain / "1" / "größe").write_bytes(bytes(100_000))
    (plain.parent / "key.txt").write_text(KEY)
    strongroom.seal(plain, f"{plain}.sealed", key=bytes(32), clear=["*.pbtxt"])
    return Path(f"{plain}.sealed")


@pytest.fixture
def said(sealed, memory):
    return {"key": sealed.parent / "key.txt", "directory": memory}


def test_a_model_from_its_load_to_its_end(program, library, sealed, said, memory):
    """In a server whose locale knows no letter but those of ASCII, and whose PYTHONPATH is for others."""
    spoiled = sealed.parent / "of-a-stub" / "strongroom"
    spoiled.mkdir(parents=True)
    (spoiled / "__init__.py").write_text("raise RuntimeError")
    others = {"PYTHONPATH": str(spoiled.parent), "PYTHONHOME": "/nowhere", "LC_ALL": "C"}
    with hosting(program, library, **others) as host:
        place = Path(host.load(1, sealed, **said))
        assert place.parent == memory
        assert (place / "1" / "größe").read_bytes() == bytes(100_000)
        (line,) = host.log
        assert line.startswith(f"0 strongroom: {sealed}: 2 files, 100010 bytes, in {place}")
        assert host.action(1, LOADED) == "ok"
        assert list(memory.iterdir()) == []
        assert [host.action(1, one) for one in (UNLOAD, UNLOADED, 17)] == ["ok"] * 3
        assert host.final(1) == "ok"


def test_each_end_wipes(program, library, sealed, said, memory):
    with hosting(program, library) as host:
        for end in (f"action 1 {FAILED}", f"action 1 {UNLOADED}", "final 1"):
            host.load(1, sealed, wipe="unload", **said)
            assert [host.action(1, one) for one in (LOADED, UNLOAD)] == ["ok", "ok"]
            assert len(list(memory.iterdir())) == 1
            assert host.ask(end) == "ok"
            assert list(memory.iterdir()) == []


def test_a_server_that_fails(program, library, sealed, said, memory):
    """Each of its functions; what was placed goes with the load that failed."""
    names = [
        "ModelRepositoryLocation",
        "ModelRepositoryUpdate",
        "ModelParameterCount",
        "ModelParameter",
    ]
    with hosting(program, library) as host:
        for name in names:
            host.tell(f"spoil {name}")
            assert host.load(1, sealed, **said) == f"error 1 {name}"
            assert host.action(1, FAILED) == "ok"
            assert list(memory.iterdir()) == []
            assert host.final(1) == "ok"
        host.tell("spoil -")
        assert host.load(1, sealed, **said).startswith(str(memory))
        host.final(1)


def test_an_end_that_fails_is_told_and_tried_again(program, library, sealed, said, memory):
    """Without a free descriptor no directory can be listed."""
    with hosting(program, library) as host:
        place = host.load(1, sealed, **said)
        process, files = host.process.pid, resource.RLIMIT_NOFILE
        limits = resource.prlimit(process, files)
        resource.prlimit(process, files, (3, limits[1]))
        assert host.action(1, LOADED).startswith(f"error 4 strongroom: {place} could not be removed.")
        resource.prlimit(process, files, limits)
        assert host.final(1) == "ok"
        assert list(memory.iterdir()) == []


def test_another_interface(program, library):
    with hosting(program) as host:
        for version in ("1 1", "0 0"):
            host.tell(f"version {version}")
            assert host.ask(f"open {library}").startswith("error 5 strongroom: this Triton has another")
        host.tell("version 0 1", "spoil ApiVersion")
        assert host.ask(f"open {library}") == "error 1 ApiVersion"


def test_errors_say_which(program, library, sealed, said, memory):
    with hosting(program, library) as host:
        assert host.load(1, "/nowhere", **said).startswith("error 2 strongroom: /nowhere")
        assert host.load(1, sealed, keys="x").startswith(
            "error 3 strongroom: The repository agent knows"
        )
        assert host.load(1, "s3://models/m", **said).startswith(
            "error 3 strongroom: The repository agent"
        )
        assert host.load(1, b"/no\xffwhere".decode(errors="surrogateescape"), **said) == (
            "error 2 strongroom: /no\\udcffwhere: no such file or directory."
        )
        assert host.final(1) == "ok"
        assert list(memory.iterdir()) == []


def test_a_name_cannot_forge_the_log(program, library, sealed, said):
    place = shutil.copytree(sealed, sealed.parent / "m\x1b[1m")
    with hosting(program, library) as host:
        host.load(1, place, **said)
        assert host.final(1) == "ok"
    assert r"/m\x1b[1m: 2 files" in host.log[0]


def test_opened_and_closed_again(program, library, sealed, said, memory):
    """Triton closes it with the last of its models; Python stays."""
    with hosting(program, library) as host:
        for _ in range(3):
            assert host.load(1, sealed, **said).startswith(str(memory))
            assert host.final(1) == "ok"
            assert host.ask("close") == "closed"
            assert str(library) in Path(f"/proc/{host.process.pid}/maps").read_text()
            assert host.ask(f"open {library}") == "ok"


def test_many_at_once(program, library, sealed, said, memory):
    """From the very first on: Python is started by one of them."""
    with hosting(program) as host:
        assert host.together(*[f"open {library}"] * 8) == ["ok"] * 8
        for _ in range(3):
            places = host.together(*(load(one, sealed, wipe="unload", **said) for one in range(12)))
            assert {place.removeprefix("ok ") for place in places} == {
                str(one) for one in memory.iterdir()
            }
            assert len(set(places)) == 12
            ends = [f"action {one} {LOADED}" for one in range(12)]
            ends += [f"action {one} {UNLOADED}" for one in range(12)] + [
                f"final {one}" for one in range(12)
            ]
            assert host.together(*ends) == ["ok"] * 36
            assert list(memory.iterdir()) == []


def built(folder, monkeypatch, **shared):
    """An agent for another libpython."""
    for name, value in shared.items():
        monkeypatch.setattr(install, name, lambda value=value: value)
    return install.install(str(folder))


def compiled(folder, text):
    (folder / "python.c").write_text(text)
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "python.so", folder / "python.c"]
    subprocess.run(command, check=True)
    return str(folder / "python.so")


def test_a_python_that_cannot_be_isolated(program, tmp_path, monkeypatch):
    """One without the function for it is not started, where the environment of the server would act."""
    python = compiled(tmp_path, "int Py_IsInitialized(void) { return 0; }")
    library = built(tmp_path / "agents", monkeypatch, shared_python=python)
    with hosting(program) as host:
        for _ in range(2):
            assert host.ask(f"open {library}") == (
                "error 1 strongroom: this Python cannot be embedded; it lacks "
                "PyPreConfig_InitIsolatedConfig"
            )


def test_a_python_that_does_not_start(program, tmp_path, monkeypatch):
    """An error of the load, where Python's older functions would end the server."""
    names = (NATIVE / "agent.c").read_text().partition("#define PYTHON(X)")[2].partition("#define")[0]
    functions = [line.split("(")[1].split(",")[0] for line in names.splitlines() if " X(" in line]
    text = "typedef struct { int kind; const char *function, *text; int code; } PyStatus;\n"
    text += "PyStatus Py_PreInitialize(void *p) { return (PyStatus){0}; }\n"
    text += "PyStatus Py_InitializeFromConfig(void *p) {\n"
    text += (
        '  static int times; return (PyStatus){1, "f", times++ ? "tried again" : "no codecs", 0}; }\n'
    )
    text += "int *Py_DecodeLocale(void) { static int name; return &name; }\n"
    for name in functions:
        if f" {name}(" not in text and f"*{name}(" not in text:
            text += f"int {name}(void) {{ return 0; }}\n"
    library = built(tmp_path / "agents", monkeypatch, shared_python=compiled(tmp_path, text))
    with hosting(program) as host:
        for _ in range(2):
            said = host.ask(f"open {library}")
            assert said == f"error 1 strongroom: Python does not start at {sys.executable}: no codecs"


def test_an_environment_without_the_package(program, library, tmp_path, monkeypatch):
    empty = tmp_path / "bin" / "python"
    empty.parent.mkdir()
    os.symlink(os.path.realpath(sys.executable), empty)
    home = os.path.dirname(os.path.realpath(sys.executable))
    (tmp_path / "pyvenv.cfg").write_text(f"home = {home}\n")
    monkeypatch.setattr(sys, "executable", str(empty))
    other = install.install(str(tmp_path / "agents"))
    with hosting(program) as host:
        assert host.ask(f"open {other}") == (
            f"error 1 strongroom: cannot be used in {empty}: No module named 'strongroom'"
        )


def test_a_server_inside_of_python(library, sealed, said, memory, tmp_path):
    """There is one already, which is used as it is."""
    host = tmp_path / "host.so"
    command = ["gcc", *agent_host.STRICT, "-shared", "-fPIC", "-o", host, agent_host.SOURCE]
    subprocess.run([*command, "-Dmain=host", "-ldl", "-pthread"], check=True)
    lines = [f"open {library}", load(1, sealed, **said), "final 1", ""]
    script = f"import ctypes; ctypes.CDLL({str(host)!r}, ctypes.RTLD_GLOBAL).host()"
    python = [sys.executable, "-c", script]
    done = subprocess.run(python, input="\n".join(lines), capture_output=True, text=True, check=True)
    answers = [line for line in done.stdout.splitlines() if not line.startswith("log ")]
    assert answers[0] == "ok"
    assert answers[1].startswith(f"ok {memory}")
    assert answers[2:] == ["ok", "errors 0"]
    assert list(memory.iterdir()) == []


def test_the_compiler_has_nothing_to_say(tmp_path):
    command = [
        "gcc",
        *agent_host.STRICT,
        "-O2",
        "-fanalyzer",
        "-fPIC",
        "-shared",
        "-o",
        tmp_path / "a.so",
    ]
    paths = ['-DAGENT_LIBPYTHON="a"', '-DAGENT_PYTHON="b"']
    assert shutil.which("gcc")
    subprocess.run([*command, *paths, NATIVE / "agent.c"], check=True)
