import collections
import importlib.util
import io
import os
import pickle
import pickletools
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
from loading_cases_paddle import imported, make_legacy

import strongroom
from strongroom.errors import MissingExtra, NoMatchingRecipient, NotFound, PayloadTampered, UsageError

paddle = imported()

from paddle.vision import models  # noqa: E402 - after the import that is kept quiet

from strongroom.loaders import paddle as loader  # noqa: E402 - as above
from strongroom.loaders import paddle_pickle  # noqa: E402 - as above

DTYPES = [
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    paddle.base.core.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_left_in_memory(monkeypatch):
    """Every directory in memory is gone after the test."""
    real = loader.memory_directory
    used = []

    @contextmanager
    def memory_directory(size=0):
        with real(size) as path:
            used.append(path)
            yield path

    monkeypatch.setattr(loader, "memory_directory", memory_directory)
    yield used
    assert not any(map(os.path.exists, used))


def as_bytes(tensor):
    return tensor.numpy().tobytes()


def assert_same(one, two):
    assert type(one) is type(two)
    if isinstance(one, paddle.Tensor):
        assert (one.dtype, one.shape, one.name) == (two.dtype, two.shape, two.name)
        assert one.stop_gradient == two.stop_gradient
        assert as_bytes(one) == as_bytes(two)
    elif isinstance(one, numpy.ndarray):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert one.tobytes() == two.tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for name in one:
            assert_same(one[name], two[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            assert_same(*pair)
    else:
        assert one == two


def state_dict():
    paddle.seed(5)
    tensors = {f"t.{dtype}": (paddle.rand([64, 33]) * 2).astype(dtype) for dtype in DTYPES}
    return {
        **tensors,
        "scalar": paddle.to_tensor(3.5),
        "empty": paddle.empty([0, 4]),
        "transposed": paddle.rand([20, 30]).t(),
        "large": paddle.rand([1500, 1500]),
        "nested": {"step": 7, "names": ["a", "b"], "tensors": [paddle.rand([3]), paddle.ones([2])]},
        "ordered": collections.OrderedDict(z=paddle.rand([2]), a=1.5),
        "plain": ("x", 2, None, True, 1 + 2j, numpy.float32(0.5)),
    }


# State dicts


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("options", [{}, {"return_numpy": True}], ids=str)
def test_state_dict_is_what_paddle_load_gives(tmp_path, seal, key, options, protocol, allow_pickle):
    place = str(tmp_path / "m.pdparams")
    paddle.save(state_dict(), place, protocol=protocol)
    mine = loader.load(seal(Path(place)), key=key, allow_pickle=allow_pickle, **options)
    assert_same(mine, paddle.load(place, **options))


def test_layer_and_optimizer(tmp_path, seal, key):
    folder = tmp_path / "training"
    folder.mkdir()
    layer = models.resnet18(num_classes=10)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(0.1, T_max=10)
    optimizer = paddle.optimizer.Adam(schedule, parameters=layer.parameters(), multi_precision=True)
    layer.eval()  # batches of one have no variance, and Paddle warns of its statistics in training
    layer(paddle.rand([1, 3, 32, 32])).sum().backward()
    optimizer.step()
    schedule.step()
    paddle.save(layer.state_dict(), str(folder / "r.pdparams"))
    paddle.save(optimizer.state_dict(), str(folder / "r.pdopt"))
    with strongroom.open(seal(folder), key=key) as model:
        weights = loader.load(model, path="r.pdparams")
        state = loader.load(model, path="r.pdopt")
        with pytest.raises(UsageError, match="2 PaddlePaddle files"):
            loader.load(model)
    assert_same(weights, paddle.load(str(folder / "r.pdparams")))
    assert_same(state, paddle.load(str(folder / "r.pdopt")))
    assert "LR_Scheduler" in state
    other = models.resnet18(num_classes=10)
    assert not any(other.set_state_dict(weights))  # no key is missing, and none is left over
    other.eval()
    x = paddle.rand([1, 3, 32, 32])
    assert as_bytes(other(x)) == as_bytes(layer(x))


@pytest.mark.parametrize("saved", ["a tensor", "a list"])
def test_no_dict(tmp_path, seal, key, saved):
    place = str(tmp_path / "m.pdparams")
    tensor = paddle.rand([7, 5])
    paddle.save(tensor if saved == "a tensor" else [tensor, 3], place)
    assert_same(loader.load(seal(Path(place)), key=key), paddle.load(place))


def test_names_of_parameters(tmp_path, seal, key):
    place = str(tmp_path / "m.pdparams")
    paddle.save(paddle.nn.Linear(3, 4).state_dict(), place)
    options = {"keep_name_table": True}
    mine = loader.load(seal(Path(place)), key=key, **options)
    assert "StructuredToParameterName@@" in mine
    assert_same(mine, paddle.load(place, **options))


def test_binary_format_and_program(tmp_path, seal, key):
    paddle.enable_static()
    try:
        program, startup = paddle.static.Program(), paddle.static.Program()
        with paddle.static.program_guard(program, startup):
            x = paddle.static.data("x", [None, 8], "float32")
            paddle.static.nn.fc(x, 4)
            executor = paddle.static.Executor(paddle.CPUPlace())
            executor.run(startup)
            state = program.state_dict()
            tensor = next(iter(state.values()))
            paddle.save(tensor, str(tmp_path / "binary"), use_binary_format=True)
            paddle.save(state, str(tmp_path / "state.pdparams"))
            paddle.save(program, str(tmp_path / "program.pdmodel"))
        loaded = loader.load(seal(tmp_path / "program.pdmodel"), key=key)
        assert str(loaded) == str(paddle.load(str(tmp_path / "program.pdmodel")))
        assert "matmul" in str(loaded)
        mine = loader.load(seal(tmp_path / "state.pdparams"), key=key, return_numpy=True)
        assert_same(mine, paddle.load(str(tmp_path / "state.pdparams"), return_numpy=True))
    finally:
        paddle.disable_static()
    sealed = seal(tmp_path / "binary")
    assert_same(
        loader.load(sealed, key=key, return_numpy=True),
        paddle.load(str(tmp_path / "binary"), return_numpy=True),
    )


def test_safetensors(tmp_path, seal, key):
    from safetensors.numpy import save_file

    save_file({"w": numpy.ones((3, 4), "f4"), "b": numpy.arange(5)}, tmp_path / "m.safetensors")
    mine = loader.load(seal(tmp_path / "m.safetensors"), key=key, safetensors=True, return_numpy=True)
    assert_same(mine["w"], numpy.ones((3, 4), "f4"))
    assert_same(mine["b"], numpy.arange(5))


def test_paddle_may_try_to_unpickle_what_begins_so():
    for start in loader._NO_PICKLE:
        assert start.decode() not in pickletools.code2op
        with pytest.raises(pickle.UnpicklingError):
            pickle.loads(start + pickle.dumps(Trap()))
    assert not ran


ran: list[str] = []


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return ran.append, ("code",)


class Evaluated:
    def __init__(self, expression, names):
        self.arguments = expression, names

    def __reduce__(self):
        return eval, self.arguments


TRAPS = {
    "a callable": Trap(),
    "deep inside": {"a": [(numpy.ones(3), Trap())]},
    "eval": Evaluated("__import__('os').getpid()", {}),
    "eval of data and more": Evaluated("data.append(1)", {"data": []}),
    "a function": os.getpid,
    "a class of numpy": numpy.random.default_rng(1),
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_the_file_is_called(tmp_path, seal, key, trap, protocol):
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps(TRAPS[trap], protocol))
    with pytest.raises(UsageError) as error:
        loader.load(seal(tmp_path / "m.pdparams"), key=key)
    assert "m.pdparams" in str(error.value)
    assert not ran


class Stated:
    """Pickled as an array or a dtype, with any state; unpickled by NumPy, some of these end the process."""

    def __init__(self, state, dtype=None):
        self.state, self.dtype = state, dtype

    def __reduce__(self):
        if self.dtype is None:
            made = numpy.ones(3, "f4").__reduce__()
            return made[0], made[1], self.state
        return numpy.dtype, (self.dtype, False, True), self.state


F4 = numpy.dtype("f4")
STATES = {
    "too little data": Stated((1, (1000,), F4, False, bytes(4))),
    "negative": Stated((1, (-1, -1), F4, False, bytes(4))),
    "no bytes": Stated((1, (1,), F4, False, [1.0])),
    "no dtype": Stated((1, (1,), "f4", False, bytes(4))),
    "a shape of text": Stated((1, "f4", F4, False, bytes(4))),
    "nothing": Stated((1,)),
    "objects": Stated((1, (1,), Stated((3, "|", None, None, None, -1, -1, 63), "O8"), False, [1])),
    "a record": Stated((3, "<", None, -1, -1, 0), "f4,i4"),
    "an order": Stated((3, "x", None, None, None, -1, -1, 0), "f4"),
    "no order": Stated((3,), "f4"),
}


@pytest.mark.parametrize("case", STATES)
def test_states_that_no_array_has(tmp_path, seal, key, case):
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps({"w": STATES[case]}, 2))
    with pytest.raises(UsageError, match=r"not a file of paddle\.save"):
        loader.load(seal(tmp_path / "m.pdparams"), key=key)


def test_arrays_are_those_of_pickle():
    """In every container, of every byte order and layout; and of NumPy's own class."""
    arrays = [
        numpy.arange(6, dtype=">f8").reshape(2, 3),
        numpy.asfortranarray(numpy.arange(6, dtype="i2").reshape(2, 3)),
        numpy.array(["a", "bc"]),
        numpy.zeros((0, 3), "c8"),
        numpy.array(True),
        numpy.float16(3),
    ]
    content = pickle.dumps({"l": arrays, "t": (tuple(arrays), {})}, 2)
    theirs = pickle.loads(content)["l"]  # NumPy turns other byte orders into the machine's
    found = paddle_pickle.load_plain(io.BytesIO(content), "m")
    for mine in (found["l"], found["t"][0]):
        for one, other in zip(mine, theirs, strict=True):
            assert type(one) is type(other)
            assert one.dtype == other.dtype
            assert numpy.array_equal(one, other)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\ngetpid\n(tR.",
        b"(ios\ngetpid\n.",
        b"\x80\x04\x8c\x02os\x8c\x06getpid\x93)R.",
        b"\x80\x02]Q.",
    ],
)
def test_other_ways_to_call(tmp_path, seal, key, content):
    (tmp_path / "m.pdparams").write_bytes(content)
    with pytest.raises(UsageError):
        loader.load(seal(tmp_path / "m.pdparams"), key=key)


class Own:
    def __init__(self):
        self.value = 3


def test_allow_pickle(tmp_path, seal, key):
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps({"own": Own(), "w": numpy.ones(3)}))
    sealed = seal(tmp_path / "m.pdparams")
    with pytest.raises(UsageError, match="other than tensors") as error:
        loader.load(sealed, key=key)
    assert "allow_pickle=True" in error.value.hint
    assert loader.load(sealed, key=key, allow_pickle=True)["own"].value == 3


def test_static_graph_tensors_are_pickled_with_eval(tmp_path, seal, key):
    array = numpy.arange(6, dtype="f4")
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps({"w": Evaluated("data", {"data": array})}))
    assert_same(loader.load(seal(tmp_path / "m.pdparams"), key=key, return_numpy=True), {"w": array})


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x04", b"text", b"PK\3\4" + bytes(40)])
def test_no_file_of_paddle(tmp_path, seal, key, content):
    (tmp_path / "m.pdparams").write_bytes(content)
    with pytest.raises(UsageError, match="not a file of paddle"):
        loader.load(seal(tmp_path / "m.pdparams"), key=key)


def test_nothing_waits_after_a_load(tmp_path, seal, key):
    paddle.save({"w": paddle.ones([3])}, str(tmp_path / "m.pdparams"))
    loader.load(seal(tmp_path / "m.pdparams"), key=key)
    assert not paddle_pickle._waiting


def test_tampered_and_other_key(tmp_path, seal, key):
    paddle.save({"w": paddle.rand([1000, 1000])}, str(tmp_path / "m.pdparams"))
    sealed = seal(tmp_path / "m.pdparams")
    with pytest.raises(NoMatchingRecipient):
        loader.load(sealed, key=bytes(32))
    content = bytearray(sealed.read_bytes())
    content[len(content) // 2] ^= 1
    sealed.write_bytes(content)
    for allow_pickle in (False, True):
        with pytest.raises(PayloadTampered):
            loader.load(sealed, key=key, allow_pickle=allow_pickle)


# Saved layers, and predictors of them

SHAPE = [2, 3, 32, 32]
SAVE = """
import sys
import paddle
paddle.seed(3)
layer = paddle.vision.models.resnet18(num_classes=10)
layer.eval()
spec = paddle.static.InputSpec([None, 3, 32, 32], "float32")
paddle.jit.save(layer, sys.argv[1], input_spec=[spec])
"""
X = numpy.random.default_rng(4).random(SHAPE, dtype="f4")


@pytest.fixture(scope="module", params=["pir", "legacy"])
def saved(request, tmp_path_factory):
    """A folder with m.json or m.pdmodel, m.pdiparams …; each is written by a process of its own."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SAVE, folder / "m"],
        env=os.environ | {"FLAGS_enable_pir_api": "1" if request.param == "pir" else "0"},
        check=True,
        capture_output=True,
    )
    assert (folder / "m.pdmodel").exists() == (request.param == "legacy")
    return folder


def run(predictor):
    entry = predictor.get_input_handle(predictor.get_input_names()[0])
    entry.copy_from_cpu(X)
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def plain_predictor(folder, configure=lambda config: None):
    graph = next(path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel"))
    config = paddle.inference.Config(str(graph), str(folder / "m.pdiparams"))
    config.disable_glog_info()
    configure(config)
    return paddle.inference.create_predictor(config)


PLAIN_LAYER = """
import sys
import numpy, paddle
paddle.base.core.set_num_threads(1)
layer = paddle.jit.load(sys.argv[1])
layer.eval()
out = layer(paddle.to_tensor(numpy.load(sys.argv[2])))
numpy.save(sys.argv[3], out.numpy())
"""


def test_layer(saved, seal, key, tmp_path):
    layer = loader.jit_load(seal(saved), key=key)
    assert paddle.in_dynamic_mode()
    assert paddle.get_flags("FLAGS_enable_pir_api")["FLAGS_enable_pir_api"]
    layer.eval()
    numpy.save(tmp_path / "x.npy", X)
    # In a process of its own: the plain .pdmodel needs the older graphs from the import on.
    subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", PLAIN_LAYER, saved / "m"),
            *(tmp_path / "x.npy", tmp_path / "y.npy"),
        ],
        env=os.environ | {"FLAGS_enable_pir_api": "0" if (saved / "m.pdmodel").exists() else "1"},
        check=True,
        capture_output=True,
    )
    assert as_bytes(layer(paddle.to_tensor(X))) == numpy.load(tmp_path / "y.npy").tobytes()


@pytest.mark.filterwarnings(
    "ignore:Tensor do not have 'place':UserWarning"
)  # Paddle's own, in training
def test_pir_layer_is_what_paddle_gives(tmp_path, seal, key):
    folder = tmp_path / "model"
    layer = paddle.nn.Linear(4, 3)
    spec = paddle.static.InputSpec([None, 4], "float32")
    paddle.jit.save(layer, str(folder / "m"), input_spec=[spec])
    mine, theirs = loader.jit_load(seal(folder), key=key), paddle.jit.load(str(folder / "m"))
    assert type(mine) is type(theirs)
    assert mine.training == theirs.training
    for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert as_bytes(one) == as_bytes(two)
        assert one.stop_gradient == two.stop_gradient
    x = paddle.rand([2, 4])
    mine.train()
    mine(x).sum().backward()  # it can be trained further, as in Paddle
    assert mine.parameters()[0].grad is not None


def test_methods_of_a_layer(tmp_path, seal, key):
    class Coder(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.inner = paddle.nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x)

        def encode(self, x):
            return self.inner(x) * 2

    folder = tmp_path / "model" / "deep"
    spec = [paddle.static.InputSpec([None, 4], "float32")]
    layer = Coder()
    layer.forward = paddle.jit.to_static(layer.forward, input_spec=spec, full_graph=True)
    layer.encode = paddle.jit.to_static(layer.encode, input_spec=spec, full_graph=True)
    paddle.jit.save(layer, str(folder / "m"))
    assert (folder / "m.encode.json").exists()
    mine = loader.jit_load(seal(tmp_path / "model"), key=key)
    theirs = paddle.jit.load(str(folder / "m"))
    x = paddle.rand([2, 4])
    assert as_bytes(mine(x)) == as_bytes(theirs(x))
    assert as_bytes(mine.encode(x)) == as_bytes(theirs.encode(x))


def test_predictor(saved, seal, key, nothing_left_in_memory):
    predictor = loader.create_predictor(seal(saved), key=key)
    assert len(nothing_left_in_memory) == 1
    assert isinstance(predictor, paddle.inference.Predictor)
    assert run(predictor).tobytes() == run(plain_predictor(saved)).tobytes()


def test_configure(saved, seal, key):
    def configure(config):
        assert isinstance(config, paddle.inference.Config)
        config.set_cpu_math_library_num_threads(1)
        config.switch_ir_optim(False)
        seen.append(config.summary())

    seen: list[str] = []
    mine = run(loader.create_predictor(seal(saved), key=key, configure=configure))
    assert mine.tobytes() == run(plain_predictor(saved, configure)).tobytes()
    # The same settings, but for the paths of the files.
    settings = [
        [line.split() for line in summary.splitlines() if line.startswith("|") and "_file" not in line]
        for summary in seen
    ]
    assert settings[0] == settings[1]
    assert len(settings[0]) > 5


REFUSED = {
    "set_optim_cache_dir": lambda config: config.set_optim_cache_dir("/tmp/cache"),
    "enable_save_optim_model": lambda config: config.enable_save_optim_model(True),
    "switch_ir_debug": lambda config: config.switch_ir_debug(),
    "use_static": lambda config: config.enable_tensorrt_engine(use_static=True),
    "no TensorRT": lambda config: config.enable_tensorrt_engine(1 << 20, 1, 3),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_options(saved, seal, key, case):
    with pytest.raises(UsageError, match=case):
        loader.create_predictor(seal(saved), key=key, configure=REFUSED[case])


def test_switching_refused_options_off(saved, seal, key):
    def configure(config):
        config.enable_save_optim_model(False)
        config.switch_ir_debug(False)

    assert run(loader.create_predictor(seal(saved), key=key, configure=configure)).any()


def test_a_positional_use_static_is_noticed(saved, seal, key):
    precision = paddle.inference.PrecisionType.Float32
    with pytest.raises(UsageError, match="use_static"):
        loader.create_predictor(
            seal(saved),
            key=key,
            configure=lambda config: config.enable_tensorrt_engine(1 << 20, 1, 3, precision, True),
        )


@pytest.mark.parametrize(
    ("what", "configure"),
    [
        ("Paddle Inference on a GPU", lambda config: config.enable_use_gpu(256, 0)),
        ("Paddle-TRT", lambda config: config.enable_tensorrt_engine(1 << 20, 1, 3)),
    ],
    ids=["GPU", "TensorRT"],
)
def test_without_a_driver(saved, seal, key, monkeypatch, what, configure):
    """A Paddle built for GPUs, on a machine without: it is asked for nothing."""

    def no_driver(said):
        assert said == what
        raise UsageError(f"{said} needs a CUDA driver, and this machine has none.")

    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.inference, "get_trt_compile_version", lambda: (10, 0, 1))
    monkeypatch.setattr(loader, "require_driver", no_driver)
    with pytest.raises(UsageError, match=f"{what} needs a CUDA driver"):
        loader.create_predictor(seal(saved), key=key, configure=configure)


def test_several_predictors(saved, seal, key):
    with strongroom.open(seal(saved), key=key) as model:
        one, two = (loader.create_predictor(model) for _ in range(2))
    assert run(one).tobytes() == run(two).tobytes()
    if (saved / "m.pdmodel").exists():
        assert run(one.clone()).tobytes() == run(one).tobytes()
    else:
        with pytest.raises(UsageError, match="reading its files again"):
            one.clone()


def test_no_log_of_a_predictor(saved, seal, key, capfd):
    loader.create_predictor(seal(saved), key=key)
    out, error = capfd.readouterr()
    # Passes and executors at most; names of tensors and layers are the model's.
    assert "linear_0" not in out + error
    assert "conv2d_0" not in out + error


def test_which_graph(saved, seal, key, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved.iterdir():
        for name in ("a", "b"):
            (folder / path.name.replace("m.", f"{name}.")).symlink_to(path)
    suffix = ".pdmodel" if (saved / "m.pdmodel").exists() else ".json"
    (folder / "config.json").write_text("{}")
    (folder / "bad.json").write_text('{"magic": "pir"}')
    (folder / "bad.pdmodel").write_text("{}")
    (folder / "bad.pdiparams").write_text("")
    copy = folder.rename(tmp_path / "linked")
    folder.mkdir()
    for path in copy.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with strongroom.open(seal(folder), key=key) as model:
        with pytest.raises(UsageError, match="3 graphs") as error:
            loader.jit_load(model)
        assert f"'a{suffix}'" in error.value.hint
        for path in ("a", f"a{suffix}"):
            assert loader.jit_load(model, path=path).parameters()
            assert run(loader.create_predictor(model, path=path)).any()
        for path in ("bad.json", "bad.pdmodel", "bad", "config.json"):
            with pytest.raises(UsageError, match="no graph of PaddlePaddle"):
                loader.create_predictor(model, path=path)
        with pytest.raises(NotFound, match="no graph"):
            loader.jit_load(model, path="a.pdiparams")
        with pytest.raises(NotFound, match="no file"):
            loader.jit_load(model, path="c")


def test_missing_parameters(saved, seal, key, tmp_path):
    graph = next(path for path in saved.iterdir() if path.suffix in (".json", ".pdmodel"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / graph.name).write_bytes(graph.read_bytes())
    sealed = tmp_path / "graph.sealed"
    strongroom.seal(graph, sealed, key=key)
    for place in (seal(folder), sealed):
        for function in (loader.create_predictor, loader.jit_load):
            with pytest.raises(NotFound, match=r"no m\.pdiparams"):
                function(place, key=key)


@pytest.mark.filterwarnings(
    "ignore:What you save is a function:UserWarning",  # which is meant
    "ignore:no variable in your model:UserWarning",  # as meant
)
def test_a_function_without_parameters(tmp_path, seal, key):
    spec = [paddle.static.InputSpec([None, 4], "float32")]

    def double(x):
        return x * 2

    static = paddle.jit.to_static(double, input_spec=spec, full_graph=True)
    paddle.jit.save(static, str(tmp_path / "model/m"))
    mine = loader.jit_load(seal(tmp_path / "model"), key=key)
    assert mine(paddle.ones([1, 4])).tolist() == [[2, 2, 2, 2]]


def test_info_is_unpickled_by_paddle_and_so_looked_at_before(tmp_path, seal, key):
    folder = make_legacy(tmp_path, 1 << 20)
    (folder / "m.pdiparams.info").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError, match="other than tensors"):
        loader.jit_load(seal(folder), key=key)
    assert not ran


def test_tampered_parameters(saved, seal, key):
    sealed = seal(saved)
    file = sealed / "m.pdiparams.sealed"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for function in (loader.jit_load, loader.create_predictor):
        with pytest.raises(PayloadTampered):
            function(sealed, key=key)


def test_resnet50(tmp_path, seal, key):
    layer = models.resnet50()
    layer.eval()
    folder = tmp_path / "model"
    spec = paddle.static.InputSpec([None, 3, 32, 32], "float32")
    paddle.jit.save(layer, str(folder / "m"), input_spec=[spec])
    paddle.save(layer.state_dict(), str(folder / "m.pdparams"))
    with strongroom.open(seal(folder), key=key) as model:
        assert model.size > 200_000_000  # the weights twice
        predictor = loader.create_predictor(model)
        loaded = loader.jit_load(model)
        weights = loader.load(model, path="m.pdparams")
    assert run(predictor).tobytes() == run(plain_predictor(folder)).tobytes()
    theirs = paddle.jit.load(str(folder / "m"))
    theirs.eval()
    loaded.eval()
    x = paddle.to_tensor(X)
    assert as_bytes(loaded(x)) == as_bytes(theirs(x))
    for name, tensor in layer.state_dict().items():
        assert as_bytes(weights[name]) == as_bytes(tensor)


def test_without_paddle(tmp_path):
    script = """
import sys
sys.modules["paddle"] = None
try:
    import strongroom.loaders.paddle
except ImportError as error:
    print(type(error).__name__, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1)[0] == MissingExtra.__name__
    assert "strongroom[paddle]" in done.stdout


AFTER_TENSORFLOW = """
import sys
import tensorflow
flags = sys.getdlopenflags()
from strongroom.loaders import paddle as loader
from strongroom.loaders import paddle_pickle
assert sys.getdlopenflags() == flags
predictor = loader.create_predictor(sys.argv[1])
entry = predictor.get_input_handle(predictor.get_input_names()[0])
entry.copy_from_cpu(loader.paddle.ones([1, 3, 32, 32]).numpy())
predictor.run()
print(tensorflow.ones([2]).numpy().sum())
"""


def test_in_a_process_with_tensorflow(saved, seal):
    """Imported as it is, Paddle 3.3 ends a process that has imported TensorFlow 2.21."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AFTER_TENSORFLOW, seal(saved)],
        env=os.environ | {"STRONGROOM_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("2.0\n")
