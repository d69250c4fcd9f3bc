"""What can be checked of the TensorRT loaders without a GPU; tests/gpu has the rest."""

import inspect
import os
import re
import shutil
import subprocess
import sys
import types

import pytest
import torch

import strongroom
from strongroom.errors import MissingExtra, NotFound, PayloadTampered, Unavailable, UsageError
from strongroom.loaders import cuda, torch2trt
from strongroom.loaders import tensorrt as loader

trt = pytest.importorskip("tensorrt_lean")

PLAN = b"ftrt" + bytes(range(256)) * (70 << 10)  # 17.5 MiB: more than one piece
DRIVER = """
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}
int cuInit(unsigned flags) { return number("CUDA_INIT", 0); }
int cuDeviceGetCount(int *count) { *count = number("CUDA_DEVICES", 1); return 0; }
int cuDriverGetVersion(int *version) { *version = number("CUDA_VERSION", 13000); return 0; }
/* What the bindings of TensorRT call: every pointer is one to host memory. */
int cuPointerGetAttribute(void *data, int attribute, unsigned long long pointer) { return 1; }
int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t size) { return 1; }
"""


def has_driver():
    try:
        cuda.require_driver("This test")
    except (UsageError, Unavailable):
        return False
    return True


without_driver = pytest.mark.skipif(has_driver(), reason="this machine has a CUDA driver")


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """A folder with a stand-in for the CUDA driver, which does what variables tell it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (cc)")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", "-o", "libcuda.so.1", "driver.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


def in_process(script, *arguments, libraries=None, **variables):
    environment = os.environ | {"STRONGROOM_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment | variables,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def plan(tmp_path, seal):
    (tmp_path / "m.plan").write_bytes(PLAN)
    return seal(tmp_path / "m.plan")


@pytest.fixture
def with_driver(monkeypatch):
    """As if there were a driver; the list is what it was asked for."""
    asked = []
    for module in (loader, torch2trt):
        monkeypatch.setattr(module, "require_driver", lambda *arguments: asked.append(arguments))
    return asked


# The driver

REQUIRE = """
import sys
from strongroom.loaders.cuda import require_driver
try:
    require_driver("Loading", int(sys.argv[1]))
    print("works")
except Exception as error:
    print(type(error).__name__, error, error.hint)
"""


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "works"),
        ({"CUDA_VERSION": "12040"}, "works"),
        ({"CUDA_VERSION": "11080"}, r"UsageError .* for CUDA 12; the one here is for CUDA 11\.8"),
        ({"CUDA_DEVICES": "0"}, "UsageError .* sees none.*--gpus"),
        ({"CUDA_INIT": "100"}, "UsageError .* sees none.*--gpus"),
        ({"CUDA_INIT": "34"}, "UsageError .* is the stub"),
        ({"CUDA_INIT": "802"}, "Unavailable .* does not start .*802.*nvidia-smi"),
    ],
    ids=str,
)
def test_require_driver(driver, variables, said):
    done = in_process(REQUIRE, 12, libraries=driver, **variables)
    assert re.match(said, done.stdout), done.stdout + done.stderr


@without_driver
def test_no_driver():
    with pytest.raises(UsageError, match=r"^Loading needs a CUDA driver.* has none") as error:
        cuda.require_driver("Loading")
    assert "NVIDIA GPU" in error.value.hint


# TensorRT, the real bindings

ENTER = """
import sys
import tensorrt_lean
from strongroom.loaders import tensorrt
if sys.argv[2] != "load":
    runtime = tensorrt_lean.Runtime(tensorrt_lean.Logger(tensorrt_lean.Logger.ERROR))
if sys.argv[2] == "unasked":
    tensorrt.require_driver = lambda *arguments: None
try:
    if sys.argv[2] == "load":
        tensorrt.load(sys.argv[1])
    else:
        tensorrt.deserialize_cuda_engine(runtime, sys.argv[1])
except Exception as error:
    print("raised", type(error).__name__, error.exit_code, error)
"""


@without_driver
@pytest.mark.parametrize("function", ["deserialize_cuda_engine", "load"])
def test_without_a_driver_tensorrt_is_not_entered(plan, function):
    done = in_process(ENTER, plan, function)
    assert done.returncode == 0, done.stderr
    said = "raised UsageError 2 Loading TensorRT engines needs a CUDA driver"
    assert said in done.stdout


@without_driver
def test_what_happens_otherwise(plan):
    """So that the test above can fail, and this one tells when there is nothing to guard any more."""
    done = in_process(ENTER, plan, "unasked")
    assert done.returncode < 0  # ended by a signal
    assert "raised" not in done.stdout


def test_signatures():
    """What the loader calls is there in the bindings as it calls it."""
    text = trt.Runtime.deserialize_cuda_engine.__doc__
    assert re.search(r"serialized_engine: (typing_extensions\.)?Buffer\) -> \S+\.ICudaEngine", text)
    assert re.search(r"stream_reader_v2: \S+\.IStreamReaderV2\) -> \S+\.ICudaEngine", text)
    assert "read(self, num_bytes: int, stream: int)" in trt.IStreamReaderV2.__doc__
    assert "seek(self, offset: int, where: SeekPosition) -> bool" in trt.IStreamReaderV2.__doc__
    assert set(trt.SeekPosition.__members__) == {"SET", "CUR", "END"}
    assert isinstance(trt.Runtime.tempfile_control_flags, property)
    assert "ALLOW_IN_MEMORY_FILES" in trt.TempfileControlFlag.__members__
    assert sys.modules[trt.Runtime.__module__].IStreamReaderV2 is trt.IStreamReaderV2


def test_cuda_of_the_bindings():
    assert cuda.cuda_of("tensorrt_lean") in (12, 13)
    assert cuda.cuda_of("no_such_package") == 0


STREAM = """
import ctypes, sys
import tensorrt_lean as trt
from strongroom.loaders import tensorrt

size = int(sys.argv[2])
capsule = ctypes.pythonapi.PyCapsule_New
capsule.restype = ctypes.py_object
capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class Runtime:
    '''Reads as TensorRT does: by the C++ methods, which call those of the reader.'''

    tempfile_control_flags = flags = 3

    def deserialize_cuda_engine(self, reader):
        assert isinstance(reader, trt.IStreamReaderV2)
        assert self.tempfile_control_flags == 1 << trt.TempfileControlFlag.ALLOW_IN_MEMORY_FILES.value
        memory = ctypes.create_string_buffer(size)

        def read(at, count):
            place = capsule(ctypes.addressof(memory) + at, None, None)
            return trt.IStreamReaderV2.read(reader, place, count, 0)

        whence = trt.SeekPosition
        assert read(0, 32) == 32
        if read(32, size - 32) != size - 32:
            return None
        ctypes.memset(memory, 0, 100)
        assert trt.IStreamReaderV2.seek(reader, 0, whence.SET)
        assert read(0, 50) == 50
        assert trt.IStreamReaderV2.seek(reader, -10, whence.CUR)
        assert read(40, 60) == 60
        assert trt.IStreamReaderV2.seek(reader, -7, whence.END)
        assert read(size - 7, 100) == 7
        assert not trt.IStreamReaderV2.seek(reader, -1, whence.SET)
        assert not trt.IStreamReaderV2.seek(reader, 1, whence.END)
        assert len(reader._piece) == 16 << 20 < size
        return memory.raw


Runtime.__module__ = trt.Runtime.__module__
runtime = Runtime()
try:
    plan = tensorrt.deserialize_cuda_engine(runtime, sys.argv[1])
    open(sys.argv[3], "wb").write(plan)
except Exception as error:
    print("raised", type(error).__name__, error)
assert runtime.tempfile_control_flags == 3
"""


def test_stream_through_the_real_bindings(plan, driver, tmp_path):
    done = in_process(STREAM, plan, len(PLAN), tmp_path / "out", libraries=driver)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (tmp_path / "out").read_bytes() == PLAN


@pytest.mark.parametrize("where", [0.3, 0.99])
def test_tampered_stream(plan, driver, tmp_path, where):
    content = bytearray(plan.read_bytes())
    content[int(len(content) * where)] ^= 1
    plan.write_bytes(content)
    done = in_process(STREAM, plan, len(PLAN), tmp_path / "out", libraries=driver)
    assert done.returncode == 0, done.stderr
    assert "raised PayloadTampered m.plan: segment" in done.stdout
    assert not (tmp_path / "out").exists()


# TensorRT before 10.7, and what comes of its answers: a stand-in with the real signature


@pytest.fixture
def runtime(monkeypatch, with_driver):
    """A runtime of bindings that know no streams; what it was given is in ``given``."""

    class Runtime:
        answer: object = "engine"

        def __init__(self):
            self.given = []

        def deserialize_cuda_engine(self, serialized_engine):
            view = memoryview(serialized_engine)  # a Buffer, as in the real signature
            assert view.c_contiguous
            self.given.append(bytes(view))
            return self.answer

    module = types.ModuleType("older_bindings")
    Runtime.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Runtime()


def test_buffer(plan, key, runtime, with_driver):
    assert loader.deserialize_cuda_engine(runtime, plan, key=key) == "engine"
    assert runtime.given == [PLAN]
    assert with_driver


def test_the_real_parameter_has_the_name_of_the_stand_in(runtime):
    (name,) = inspect.signature(runtime.deserialize_cuda_engine).parameters
    assert name in trt.Runtime.deserialize_cuda_engine.__doc__


def test_load(plan, key, runtime):
    assert loader.load(plan, key=key, runtime=runtime) == "engine"
    with strongroom.open(plan, key=key) as model:
        assert loader.load(model, runtime=runtime) == "engine"


def test_which_file(tmp_path, seal, key, runtime):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.engine").write_bytes(b"a")
    (folder / "labels.txt").write_text("x")
    with strongroom.open(seal(folder), key=key) as model:
        loader.deserialize_cuda_engine(runtime, model)
        loader.deserialize_cuda_engine(runtime, model, path="labels.txt")
        with pytest.raises(NotFound):
            loader.deserialize_cuda_engine(runtime, model, path="b.engine")
    assert runtime.given == [b"a", b"x"]


def test_a_plan_that_tensorrt_cannot_use(plan, key, runtime):
    type(runtime).answer = None
    with pytest.raises(UsageError, match=r"cannot use m\.plan") as error:
        loader.deserialize_cuda_engine(runtime, plan, key=key)
    assert "version" in error.value.hint


def test_tampered_plan(plan, key, runtime):
    content = bytearray(plan.read_bytes())
    content[-100] ^= 1
    plan.write_bytes(content)
    with pytest.raises(PayloadTampered):
        loader.deserialize_cuda_engine(runtime, plan, key=key)
    assert not runtime.given


def test_no_runtime(plan, key, with_driver):
    with pytest.raises(UsageError, match="not PosixPath"):
        loader.deserialize_cuda_engine(plan, plan, key=key)


def test_bindings(monkeypatch):
    assert loader._bindings() is trt
    lean = types.ModuleType("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", lean)
    assert loader._bindings() is lean
    for name in loader._BINDINGS:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra) as error:
        loader._bindings()
    assert "strongroom[tensorrt]" in error.value.hint


# torch2trt


@pytest.fixture
def state(tmp_path, seal):
    """A sealed state dict as TRTModule has it."""
    content = {
        "engine": bytearray(PLAN[: 1 << 20]),
        "input_names": ["input_0"],
        "output_names": ["output_0", "output_1"],
        "input_flattener": {"schema": [0], "size": 1},
    }
    torch.save(content, tmp_path / "m.pth")
    return seal(tmp_path / "m.pth"), content


@pytest.fixture
def trt_module(monkeypatch):
    """A stand-in for torch2trt, which is not on PyPI: its class takes a state dict as the real one."""

    class TRTModule(torch.nn.Module):
        def __init__(
            self,
            engine=None,
            input_names=None,
            output_names=None,
            input_flattener=None,
            output_flattener=None,
        ):
            super().__init__()
            assert engine is None
            self.loaded: dict[str, object] = {}

        def _load_from_state_dict(self, state_dict, prefix, *others):
            assert prefix == ""
            self.loaded = dict(state_dict)

    module = types.ModuleType("torch2trt")
    module.TRTModule = TRTModule
    monkeypatch.setitem(sys.modules, "torch2trt", module)
    return TRTModule


def test_torch2trt(state, key, with_driver, trt_module):
    sealed, content = state
    module = torch2trt.load(sealed, key=key)
    assert type(module) is trt_module
    assert module.loaded == content
    assert type(module.loaded["engine"]) is bytearray
    assert with_driver
    with strongroom.open(sealed, key=key) as model:
        assert torch2trt.load(model, "cpu", path="m.pth").loaded == content


@without_driver
def test_torch2trt_without_a_driver(state, key, trt_module):
    with pytest.raises(UsageError, match="torch2trt modules needs a CUDA driver"):
        torch2trt.load(state[0], key=key)


def test_torch2trt_is_not_installed(state, key, with_driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch2trt", None)
    with pytest.raises(MissingExtra, match="torch2trt") as error:
        torch2trt.load(state[0], key=key)
    assert "github.com/NVIDIA-AI-IOT/torch2trt" in error.value.hint


def test_torch2trt_state_with_other_objects(tmp_path, seal, key, with_driver, trt_module):
    import pickle

    torch.save({"engine": os.getpid}, tmp_path / "m.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch2trt.load(seal(tmp_path / "m.pth"), key=key)
