"""Loaders on a GPU: the answers of the sealed model are those of the plain one, bit for bit."""

import sys

import numpy
import pytest

from strongroom.errors import PayloadTampered, UsageError

# The warnings of the frameworks differ from machine to machine, and are not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = 2048
RNG = numpy.random.default_rng(6)
WEIGHTS = [RNG.random((SIZE, SIZE), dtype="f4") / SIZE for _ in range(2)]  # 32 MiB: several pieces
X = RNG.random((4, SIZE), dtype="f4")


def needs(name):
    """The module, or a skipped test that says which one is missing."""
    return pytest.importorskip(name, exc_type=ImportError)


def torch_on_cuda():
    torch = needs("torch")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} does not see the GPU")
    return torch


# TensorRT


def build(trt, *flags):
    """A serialized plan of two matrix products."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    node = network.add_input("x", trt.float32, X.shape)
    for weight in WEIGHTS:
        constant = network.add_constant(weight.shape, trt.Weights(weight)).get_output(0)
        plain = trt.MatrixOperation.NONE
        node = network.add_matrix_multiply(node, plain, constant, plain).get_output(0)
        node = network.add_activation(node, trt.ActivationType.RELU).get_output(0)
    node.name = "y"
    network.mark_output(node)
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(flag)
    return bytes(builder.build_serialized_network(network, config))


def infer(engine):
    import device

    device.use_primary_context()
    context = engine.create_execution_context()
    arrays = {"x": device.Array(X), "y": device.Array(numpy.zeros_like(X))}
    for name, array in arrays.items():
        context.set_tensor_address(name, array.address)
    assert context.execute_async_v3(0)
    out = arrays["y"].numpy()
    for array in arrays.values():
        array.free()
    return out


@pytest.fixture(scope="module")
def trt():
    return needs("tensorrt")


@pytest.fixture(scope="module")
def plan(trt):
    return build(trt)


@pytest.fixture
def sealed_plan(plan, tmp_path, seal):
    (tmp_path / "m.plan").write_bytes(plan)
    return seal(tmp_path / "m.plan")


@pytest.fixture
def runtime(trt):
    return trt.Runtime(trt.Logger(trt.Logger.WARNING))


@pytest.mark.parametrize("way", ["stream", "buffer"])
def test_engine(trt, runtime, plan, sealed_plan, key, monkeypatch, way):
    from strongroom.loaders import tensorrt as loader

    bindings = sys.modules[trt.Runtime.__module__]
    if way == "buffer":
        monkeypatch.delattr(bindings, "IStreamReaderV2", raising=False)
    elif not hasattr(bindings, "IStreamReaderV2"):
        pytest.skip(f"TensorRT {trt.__version__} has no IStreamReaderV2")
    expected = infer(runtime.deserialize_cuda_engine(plan))
    assert expected.any()
    flags = runtime.tempfile_control_flags
    engine = loader.deserialize_cuda_engine(runtime, sealed_plan, key=key)
    assert isinstance(engine, trt.ICudaEngine)
    assert infer(engine).tobytes() == expected.tobytes()
    assert infer(loader.load(sealed_plan, key=key)).tobytes() == expected.tobytes()
    assert runtime.tempfile_control_flags == flags


def test_tampered_plan(trt, runtime, sealed_plan, key):
    from strongroom.loaders import tensorrt as loader

    content = bytearray(sealed_plan.read_bytes())
    content[len(content) // 2] ^= 1
    sealed_plan.write_bytes(content)
    with pytest.raises(PayloadTampered):
        loader.deserialize_cuda_engine(runtime, sealed_plan, key=key)


def test_no_plan(trt, runtime, tmp_path, seal, key):
    from strongroom.loaders import tensorrt as loader

    (tmp_path / "m.plan").write_bytes(b"no plan" * 1000)
    with pytest.raises(UsageError, match=r"cannot use m\.plan"):
        loader.deserialize_cuda_engine(runtime, seal(tmp_path / "m.plan"), key=key)


@pytest.mark.parametrize("package", ["tensorrt_lean", "tensorrt_dispatch", "tensorrt"])
def test_version_compatible_engine(trt, tmp_path, seal, key, package):
    """One that brings the lean runtime along, which TensorRT loads from a file that it makes."""
    from strongroom.loaders import tensorrt as loader

    bindings = needs(package)
    plan = build(trt, trt.BuilderFlag.VERSION_COMPATIBLE)
    runtime = bindings.Runtime(bindings.Logger(bindings.Logger.WARNING))
    runtime.engine_host_code_allowed = True
    (tmp_path / "m.plan").write_bytes(plan)
    expected = infer(runtime.deserialize_cuda_engine(plan))
    engine = loader.deserialize_cuda_engine(runtime, seal(tmp_path / "m.plan"), key=key)
    assert infer(engine).tobytes() == expected.tobytes()


def test_torch2trt(tmp_path, seal, key):
    torch = torch_on_cuda()
    torch2trt = needs("torch2trt")
    from strongroom.loaders import torch2trt as loader

    module = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU()).eval().cuda()
    x = torch.rand(4, 64, device="cuda")
    converted = torch2trt.torch2trt(module, [x])
    torch.save(converted.state_dict(), tmp_path / "m.pth")
    loaded = loader.load(seal(tmp_path / "m.pth"), key=key)
    assert isinstance(loaded, torch2trt.TRTModule)
    assert torch.equal(loaded(x), converted(x))


def test_tf_trt(tmp_path, seal, key):
    tf = needs("tensorflow")
    from tensorflow.python.compiler.tensorrt import trt_convert

    from strongroom.loaders import tensorflow as loader

    if not tf.test.is_built_with_gpu_support() or not hasattr(tf.raw_ops, "TRTEngineOp"):
        pytest.skip(f"TensorFlow {tf.__version__} is built without TensorRT")

    class Module(tf.Module):
        def __init__(self):
            self.weight = tf.Variable(WEIGHTS[0])

        @tf.function(input_signature=[tf.TensorSpec([None, SIZE], tf.float32)])
        def __call__(self, x):
            return tf.nn.relu(x @ self.weight)

    tf.saved_model.save(Module(), str(tmp_path / "plain"))
    converter = trt_convert.TrtGraphConverterV2(input_saved_model_dir=str(tmp_path / "plain"))
    converter.convert()
    converter.build(lambda: iter([(X,)]))
    converter.save(str(tmp_path / "converted"))
    plain = tf.saved_model.load(str(tmp_path / "converted"))
    mine = loader.saved_model_load(seal(tmp_path / "converted"), key=key)
    one, two = (m.signatures["serving_default"](tf.constant(X)) for m in (plain, mine))
    for name in one:
        assert one[name].numpy().tobytes() == two[name].numpy().tobytes()


# PaddlePaddle


def run_paddle(predictor):
    entry = predictor.get_input_handle(predictor.get_input_names()[0])
    entry.copy_from_cpu(X)
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


@pytest.mark.parametrize("engine", ["GPU", "TensorRT"])
def test_paddle(tmp_path, seal, key, engine):
    loader = needs("strongroom.loaders.paddle")
    paddle = loader.paddle
    if not paddle.is_compiled_with_cuda():
        pytest.skip(f"paddle {paddle.__version__} is a build for the CPU")
    if engine == "TensorRT" and not any(paddle.inference.get_trt_compile_version()):
        pytest.skip(f"paddle {paddle.__version__} is built without TensorRT")

    def configure(config):
        config.enable_use_gpu(256, 0)
        if engine == "TensorRT":
            config.enable_tensorrt_engine(1 << 28, 4, 1)
            shapes = {"x": list(X.shape)}
            config.set_trt_dynamic_shape_info(shapes, shapes, shapes)

    folder = tmp_path / "model"
    spec = paddle.static.InputSpec([None, SIZE], "float32", "x")
    layer = paddle.nn.Sequential(paddle.nn.Linear(SIZE, SIZE), paddle.nn.ReLU())
    paddle.jit.save(layer, str(folder / "m"), input_spec=[spec])
    graph = next(path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel"))
    config = paddle.inference.Config(str(graph), str(folder / "m.pdiparams"))
    configure(config)
    expected = run_paddle(paddle.inference.create_predictor(config))
    mine = loader.create_predictor(seal(folder), key=key, configure=configure)
    if engine == "GPU":
        assert run_paddle(mine).tobytes() == expected.tobytes()
    else:  # TensorRT chooses its kernels anew for each predictor, by time
        numpy.testing.assert_allclose(run_paddle(mine), expected, rtol=1e-3)


def test_paddle_state_dict(tmp_path, seal, key):
    loader = needs("strongroom.loaders.paddle")
    paddle = loader.paddle
    if not paddle.is_compiled_with_cuda():
        pytest.skip(f"paddle {paddle.__version__} is a build for the CPU")
    paddle.save({"w": paddle.to_tensor(WEIGHTS[0])}, str(tmp_path / "m.pdparams"))
    loaded = loader.load(seal(tmp_path / "m.pdparams"), key=key)["w"]
    assert loaded.place.is_gpu_place()
    assert loaded.numpy().tobytes() == WEIGHTS[0].tobytes()


# PyTorch, safetensors, ONNX Runtime


def test_torch(tmp_path, seal, key):
    torch = torch_on_cuda()
    from strongroom.loaders import torch as loader

    torch.save({"w": torch.from_numpy(WEIGHTS[0]), "n": 3}, tmp_path / "m.pt")
    for options in ({}, {"mmap": True}):
        sealed = tmp_path / "m.pt.sealed"
        sealed.unlink(missing_ok=True)
        loaded = loader.load(seal(tmp_path / "m.pt"), "cuda", key=key, **options)
        assert loaded["w"].device.type == "cuda"
        assert loaded["w"].cpu().numpy().tobytes() == WEIGHTS[0].tobytes()


def test_torchscript(tmp_path, seal, key):
    torch = torch_on_cuda()
    from strongroom.loaders import torch as loader

    x = torch.from_numpy(X)
    module = torch.nn.Linear(SIZE, SIZE)
    torch.jit.save(torch.jit.trace(module, x), tmp_path / "m.pt")
    loaded = loader.jit_load(seal(tmp_path / "m.pt"), "cuda", key=key)
    assert torch.equal(loaded(x.cuda()), module.cuda()(x.cuda()))


def test_safetensors(tmp_path, seal, key):
    torch_on_cuda()
    from safetensors.numpy import save_file

    from strongroom.loaders import safetensors as loader

    save_file({"w": WEIGHTS[0]}, tmp_path / "m.safetensors")
    sealed = seal(tmp_path / "m.safetensors")
    loaded = loader.load_file(sealed, device="cuda", key=key)["w"]
    assert loaded.device.type == "cuda"
    assert loaded.cpu().numpy().tobytes() == WEIGHTS[0].tobytes()
    with loader.safe_open(sealed, "pt", device="cuda:0", key=key) as file:
        part = file.get_slice("w")[3:5]
        assert part.device.type == "cuda"
        assert part.cpu().numpy().tobytes() == WEIGHTS[0][3:5].tobytes()


@pytest.mark.parametrize("provider", ["CUDAExecutionProvider", "TensorrtExecutionProvider"])
def test_onnx(tmp_path, seal, key, provider):
    runtime, onnx = needs("onnxruntime"), needs("onnx")
    from onnx import TensorProto, helper, numpy_helper

    from strongroom.loaders import onnx as loader

    if provider not in runtime.get_available_providers():
        pytest.skip(f"onnxruntime {runtime.__version__} has no {provider}")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, X.shape)],
        [value("y", TensorProto.FLOAT, X.shape)],
        [numpy_helper.from_array(WEIGHTS[0], "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, tmp_path / "m.onnx")
    plain = runtime.InferenceSession(tmp_path / "m.onnx", providers=[provider])
    mine = loader.session(seal(tmp_path / "m.onnx"), providers=[provider], key=key)
    assert mine.get_providers()[0] == provider
    expected, found = (session.run(None, {"x": X})[0] for session in (plain, mine))
    if provider == "CUDAExecutionProvider":
        assert found.tobytes() == expected.tobytes()
    else:  # TensorRT chooses its kernels anew for each session, by time
        numpy.testing.assert_allclose(found, expected, rtol=1e-3)
