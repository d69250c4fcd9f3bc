"""Big Gramine files by several processes: the same files, the same errors, and nothing left behind."""

import io
import os
import signal
import subprocess
import sys
import threading

import gramine_reference as reference
import pytest
from foreign import BytesContent, Collected, secret

from strongroom.compat import gramine_parallel as parallel
from strongroom.compat.base import ForeignTampered
from strongroom.compat.gramine import GramineCodec
from strongroom.compat.gramine_cipher import GroupDecryptor, NodeKeys
from strongroom.compat.gramine_nodes import node_count
from strongroom.compat.gramine_reader import GramineFile
from strongroom.compat.gramine_worker import BATCH, DONE, FAILED, READS, SETUP, TASK, WRITES, serve
from strongroom.errors import SourceChanged, StorageError
from strongroom.model.output import open_file_output
from strongroom.model.storage import LocalSource

KEY = bytes(range(0x40, 0x50))
NODE, HEAD, GROUP = 4096, 3072, 96 * 4096
PATTERN = os.urandom(1 << 20)


def plain(size: int) -> bytes:
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


def gramine(processes: int) -> GramineCodec:
    return GramineCodec(secret(KEY), {"path": "p", "processes": str(processes)})


def write(place, data, processes: int, piece: int = 1 << 20) -> bytes:
    output = open_file_output(place, overwrite=True, private=False)
    try:
        gramine(processes).encrypt(BytesContent(data, piece), str(place), output)
        output.commit()
    finally:
        output.abort()
    return place.read_bytes()


def read(place, processes: int, take=None) -> bytes:
    source, pieces = LocalSource(place), Collected()
    try:
        gramine(processes).decrypt(source, "net")[0].copy_to(take or pieces.write)
    finally:
        source.close()
    return bytes(pieces.data)


@pytest.fixture
def started(monkeypatch):
    """The processes that were started; at the end none of them runs any more."""
    found = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **named):
            super().__init__(*arguments, **named)
            found.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    yield found
    assert all(process.returncode is not None for process in found)


SIZES = [0, 100, HEAD, HEAD + 1, HEAD + GROUP, HEAD + BATCH * GROUP + 1]
SIZES += [HEAD + 8 * BATCH * GROUP - 1, HEAD + 9 * BATCH * GROUP + 5000]
"""The last have more tasks than two processes have slots, and MHT nodes in three levels."""


@pytest.mark.parametrize("size", SIZES)
def test_processes_write_and_read_the_same(tmp_path, started, monkeypatch, size):
    answers = []
    answer = parallel._Worker.answer

    def recorded(self, size):
        answers.append(answer(self, size))
        return answers[-1]

    monkeypatch.setattr(parallel._Worker, "answer", recorded)
    data = plain(size)
    assert reference.unseal(KEY, write(tmp_path / "one", data, 2, 70_001)) == (b"p", data)
    (tmp_path / "other").write_bytes(reference.seal(KEY, b"p", data))
    assert read(tmp_path / "other", 3) == data
    tasks = -(-(size - HEAD) // (GROUP * BATCH)) if size > HEAD else 0
    assert len(started) == {0: 0, 1: 0, 2: 4}.get(tasks, 5)
    assert len(answers) == (2 * tasks if tasks > 1 else 0)
    assert None not in answers, "the processes did it"


def test_node_keys_of_all_processes_come_from_one_seed(tmp_path, monkeypatch):
    """A worker with another seed, or with zeros for one, would give a file that nobody can read."""
    seeds = []
    make = parallel._Pool
    monkeypatch.setattr(
        parallel, "_Pool", lambda *given: seeds.append(bytes(given[4].buffer)) or make(*given)
    )
    write(tmp_path / "f", plain(HEAD + 5 * GROUP), 2)
    (seed,) = seeds
    assert seed != bytes(32)
    file = (tmp_path / "f").read_bytes()
    opened = GramineFile(LocalSource(tmp_path / "f"), secret(KEY))
    assert opened.groups.root[:16] == NodeKeys(secret(seed)).of_group(0)[0]
    assert len(file) == node_count(opened.size) * NODE


DATA = plain(HEAD + 12 * BATCH * GROUP + 77)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    place = tmp_path_factory.mktemp("gramine") / "f"
    place.write_bytes(reference.seal(KEY, b"p", DATA))
    return place


@pytest.mark.parametrize("interpreter", ["/bin/false", "/nonexistent", "/bin/cat"])
def test_without_processes_it_is_done_here(tmp_path, file, monkeypatch, started, interpreter):
    monkeypatch.setattr(parallel.sys, "executable", interpreter)
    assert read(file, 2) == DATA
    assert reference.unseal(KEY, write(tmp_path / "f", DATA, 2))[1] == DATA


@pytest.mark.parametrize("task", [0, 3, 8])
def test_a_process_that_dies_is_done_without(tmp_path, file, monkeypatch, started, task):
    give = parallel._Pool.give

    def killing(self, number, count, size):
        if number == task:
            started[-1].send_signal(signal.SIGKILL)
            started[-1].wait()
        give(self, number, count, size)

    monkeypatch.setattr(parallel._Pool, "give", killing)
    assert read(file, 2) == DATA
    assert reference.unseal(KEY, write(tmp_path / "f", DATA, 2))[1] == DATA


@pytest.mark.parametrize("node", [1, 2, 98, 500, 97 * 40, -1])
def test_tampering_is_found_as_by_one_process(tmp_path, file, started, node):
    changed = bytearray(file.read_bytes())
    changed[node % (len(changed) // NODE) * NODE + 7] ^= 1
    (tmp_path / "f").write_bytes(changed)
    said = []
    for processes in (1, 2):
        with pytest.raises(ForeignTampered) as caught:
            read(tmp_path / "f", processes)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_file_that_is_exchanged_meanwhile_is_not_mixed(tmp_path, file, started):
    """All processes read the file of which the root was read, and no other one under the wrap key."""
    (tmp_path / "f").write_bytes(file.read_bytes())
    other = reference.seal(KEY, b"p", DATA[::-1])
    pieces = Collected()

    def take(piece) -> None:
        if not pieces.data:
            (tmp_path / "f").write_bytes(other)
        pieces.write(piece)

    with pytest.raises(ForeignTampered):
        read(tmp_path / "f", 2, take)
    assert bytes(pieces.data) == DATA[: len(pieces.data)]


def test_a_failing_consumer_stops_the_processes(file, started):
    def take(piece) -> None:
        raise StorageError("no space left")

    with pytest.raises(StorageError, match="no space left"):
        read(file, 2, take)
    assert len(started) == 0, "the head comes before there are any"

    def interrupt(piece) -> None:
        if started:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read(file, 2, interrupt)
    assert len(started) == 2


def test_content_that_ends_too_early(tmp_path, started):
    content = BytesContent(DATA[:-1])
    content.size = len(DATA)
    content.copy_to = lambda write, progress=None: write(memoryview(DATA[:-1]))
    output = open_file_output(tmp_path / "f", overwrite=False, private=False)
    with pytest.raises(SourceChanged):
        gramine(2).encrypt(content, "f", output)
    output.abort()


def test_output_that_cannot_be_written(tmp_path, started):
    class ReadOnly(Collected):
        descriptor = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    with pytest.raises(StorageError, match="bad file descriptor"):
        gramine(2).encrypt(BytesContent(DATA), "f", ReadOnly())
    os.close(ReadOnly.descriptor)


def test_no_key_in_arguments_or_environment(file, started, monkeypatch):
    monkeypatch.setenv("STRONGROOM_KEY", KEY.hex())
    seen = []

    def take(piece) -> None:
        for process in started:
            for what in ("cmdline", "environ"):
                try:
                    with open(f"/proc/{process.pid}/{what}", "rb") as status:
                        seen.append(status.read())
                except PermissionError:  # it is undumpable: nobody can look at all
                    seen.append(b"")

    read(file, 2, take)
    assert any(b"-I" in one for one in seen)
    for one in seen:
        for secret_one in (KEY, KEY.hex().encode(), b"STRONGROOM_KEY"):
            assert secret_one not in one


def test_the_wrap_key_is_not_given_to_the_processes(tmp_path, file, started, monkeypatch):
    sent = []
    send = parallel._Worker._send
    monkeypatch.setattr(
        parallel._Worker, "_send", lambda self, data: (sent.append(data), send(self, data))
    )
    read(file, 2)
    write(tmp_path / "f", DATA, 2)
    assert sent
    assert not any(KEY in data for data in sent)


def test_programs_with_threads_and_without_a_main_guard(tmp_path, file):
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, threading\n"
        "from strongroom.compat.gramine import GramineCodec\n"
        "from strongroom.crypto.secret import SecretBytes\n"
        "from strongroom.model.storage import LocalSource\n"
        f"codec = GramineCodec(SecretBytes({KEY!r}), {{'processes': '2'}})\n"
        "def run():\n"
        "    size = 0\n"
        "    def count(piece):\n"
        "        nonlocal size\n"
        "        size += len(piece)\n"
        f"    codec.decrypt(LocalSource({str(file)!r}), 'f')[0].copy_to(count)\n"
        "    print(size)\n"
        "threads = [threading.Thread(target=run) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(len(DATA))] * 3


def test_in_a_thread_while_others_run(file):
    stop = threading.Event()
    busy = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)])
    busy.start()
    try:
        assert read(file, 2) == DATA
    finally:
        stop.set()
        busy.join()


def test_how_many_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(3)))
    assert parallel.process_count(1 << 40) == 1
    assert parallel.process_count(1 << 40, 2) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    assert parallel.process_count(1 << 40) == 6
    assert parallel.process_count(1 << 20) == 1
    assert parallel.process_count(1 << 40, 20) == 20
    assert parallel.process_count(HEAD + 3 * BATCH * GROUP, 20) == 3
    assert parallel.process_count(0, 20) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(60)))
    assert parallel.process_count(1 << 40) == 8
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert parallel.process_count(1 << 40) == 1
    monkeypatch.delattr(sys, "frozen")
    monkeypatch.setattr(sys, "executable", "")
    assert parallel.process_count(1 << 40) == 1


# What a process does, in this one


@pytest.fixture
def shared():
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, 2 * BATCH * GROUP)
    yield descriptor
    os.close(descriptor)


def test_a_task_of_reading(file, shared):
    source = LocalSource(file)
    opened = GramineFile(source, secret(KEY))
    setup = SETUP.pack(READS, shared, source.fileno(), opened.size, opened.groups.root)
    tasks = TASK.pack(1, BATCH, 4, 0) + TASK.pack(0, 1, 1 << 30, 0)
    answers = io.BytesIO()
    serve(io.BytesIO(setup + tasks), answers)
    assert answers.getvalue() == DONE + FAILED
    start = HEAD + 4 * GROUP
    assert os.pread(shared, BATCH * GROUP, BATCH * GROUP) == DATA[start : start + BATCH * GROUP]


def test_a_task_of_writing(tmp_path, shared):
    seed = os.urandom(32)
    size = HEAD + 2 * GROUP + 5000
    os.pwrite(shared, DATA[HEAD:size], 0)
    with open(tmp_path / "f", "wb") as out:
        setup = SETUP.pack(WRITES, shared, out.fileno(), size, seed)
        answers = io.BytesIO()
        serve(io.BytesIO(setup + TASK.pack(0, 3, 0, size - HEAD)), answers)
    tags = answers.getvalue()
    assert len(tags) == 1 + 96 * 16 + 16 + 16
    decryptor = GroupDecryptor()
    file = (tmp_path / "f").read_bytes()
    decryptor.nodes[: 97 * NODE] = file[NODE : 98 * NODE]
    keys = NodeKeys(secret(seed)).of_group(0)[1:]
    node = b"".join(key + tags[1 + 16 * at : 17 + 16 * at] for at, key in enumerate(keys))
    assert decryptor.open(node, 0, 95)
    assert decryptor.plaintext == DATA[HEAD : HEAD + GROUP]
    assert not decryptor.open(node, 0, 95), "the ciphertext is used up"
    assert decryptor.plaintext == bytes(GROUP)
