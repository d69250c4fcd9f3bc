"""Scripts for model_cryptor, one for each type, run with nothing but the import changed.

They do what the examples of its README do, whose calls and folders they have: encrypt, decrypt, predict,
and the same with the plain model. Each runs in a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from strongroom.compat.model_cryptor import ModelType

KEY = "xYjPtWOHLXL5tP1vI4PxagJgjNqsnWmLX4a4qd-ROj4="  # that of its README

NETWORKS = """
import torch
class Residual(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(channels)
    def forward(self, x):
        return torch.nn.functional.relu(x + self.norm(self.conv(x)))
class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 7, stride=4)
        self.blocks = torch.nn.Sequential(*(Residual(16) for _ in range(3)))
        self.head = torch.nn.Linear(16, 10)
    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))
"""

# How the plain model comes to be.
MAKE = {
    "MODEL_TORCH": "from networks import *; torch.save(Network().eval(), '../models/resnet18.pth')",
    "MODEL_TORCHSCRIPT": """
        from networks import *
        torch.jit.trace(Network().eval(), torch.ones(1, 3, 64, 64)).save('../models/resnet18.pt')
        """,
    "MODEL_ONNX": """
        import numpy, onnx
        from onnx import helper, numpy_helper
        w = numpy_helper.from_array(numpy.random.rand(32, 10).astype('f4'), 'w')
        x, y = (helper.make_tensor_value_info(n, 1, [1, c]) for n, c in (('x', 32), ('y', 10)))
        graph = helper.make_graph([helper.make_node('MatMul', ['x', 'w'], ['y'])], 'g', [x], [y], [w])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9)
        onnx.save(model, '../models/resnet18.onnx')
        """,
    "MODEL_TENSORRT": "open('../models/resnet18.plan', 'wb').write(b'ftrt' + bytes(range(256)) * 40)",
    "MODEL_TORCH2TRT": """
        import torch
        state = {'engine': bytearray(b'ftrt' * 100), 'input_names': ['x'], 'output_names': ['y']}
        torch.save(state, '../models/resnet18.ptrt')
        """,
    "MODEL_TENSORFLOW": """
        import tensorflow as tf
        class Model(tf.Module):
            def __init__(self):
                self.w = tf.Variable(tf.random.normal([32, 10]))
            @tf.function(input_signature=[tf.TensorSpec([None, 32])])
            def __call__(self, x):
                return x @ self.w
        tf.saved_model.save(Model(), '../models/resnet18')
        """,
    "MODEL_PADDLE": """
        import paddle
        network = paddle.nn.Sequential(paddle.nn.Linear(32, 16), paddle.nn.ReLU(), paddle.nn.Linear(16, 3))
        spec = paddle.static.InputSpec([None, 32], 'float32')
        paddle.jit.save(network, '../models/resnet18/inference', input_spec=[spec])
        """,
}
MAKE["MODEL_TF2TRT"] = MAKE[
    "MODEL_TENSORFLOW"
]  # conversion needs a GPU; what it leaves is a SavedModel
MAKE["MODEL_PADDLE2TRT"] = MAKE["MODEL_PADDLE"]

EXAMPLES = {
    "MODEL_TORCH": """
        from   model_cryptor import ModelType
        from   model_cryptor import CryptorFactory
        import torch

        model_file           = '../models/resnet18.pth'
        model_encrypted_file = "../encrypt_models/resnet18.pth.crt"
        crypt_key            = b'KEY'

        cryptor = CryptorFactory.instance(ModelType.MODEL_TORCH)
        cryptor.encrypt(model=model_file, crypt_key=crypt_key, crypted_model=model_encrypted_file)
        model = cryptor.decrypt(model_encrypted_file, crypt_key=crypt_key, map_location = "cpu")

        dummy_input = torch.ones(size=(1,3,64,64), dtype=torch.float32)
        pred        = model(dummy_input)

        model       = torch.load(model_file, weights_only=False)
        assert torch.equal(pred, model(dummy_input))
        """,
    "MODEL_TORCHSCRIPT": """
        from   model_cryptor import ModelType
        from   model_cryptor import CryptorFactory
        import torch

        cryptor = CryptorFactory.instance(ModelType.MODEL_TORCHSCRIPT)
        cryptor.encrypt(model='../models/resnet18.pt', crypt_key="../keys/license.pem",
                        crypted_model="../encrypt_models/resnet18.pt.crt")
        model = cryptor.decrypt("../encrypt_models/resnet18.pt.crt", crypt_key="../keys/license.pem",
                                map_location = "cpu")
        assert isinstance(model, torch.jit.ScriptModule)

        dummy_input = torch.ones(size=(1,3,64,64), dtype=torch.float32)
        pred        = model(dummy_input)
        model       = torch.jit.load('../models/resnet18.pt')
        assert torch.equal(pred, model(dummy_input))
        """,
    "MODEL_ONNX": """
        from   model_cryptor import ModelType
        from   model_cryptor import CryptorFactory
        import numpy as np
        import onnxruntime as ort

        crypt_key = b'KEY'
        cryptor = CryptorFactory.instance(ModelType.MODEL_ONNX)
        cryptor.encrypt(model='../models/resnet18.onnx', crypt_key=crypt_key,
                        crypted_model="../encrypt_models")
        model = cryptor.decrypt("../encrypt_models/resnet18.onnx.crt", crypt_key=crypt_key)

        def predict(model):
            sess       = ort.InferenceSession(model, providers=['CPUExecutionProvider'])
            input_name = sess.get_inputs()[0].name
            out_name   = sess.get_outputs()[0].name
            return sess.run([out_name], {input_name: np.ones(shape=(1, 32)).astype(np.float32)})[0]

        assert np.array_equal(predict(model), predict('../models/resnet18.onnx'))
        """,
    "MODEL_TENSORRT": """
        import tensorrt as trt
        from   model_cryptor import ModelType
        from   model_cryptor import CryptorFactory

        model_file           = '../models/resnet18.plan'
        model_encrypted_file = "../encrypt_models/resnet18.plan.crt"
        crypt_key            = "../keys/license.pem"

        cryptor = CryptorFactory.instance(ModelType.MODEL_TENSORRT)
        cryptor.encrypt(model=model_file, crypt_key=crypt_key, crypted_model=model_encrypted_file)
        model = cryptor.decrypt(model_encrypted_file, crypt_key=crypt_key)

        runtime  = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine   = runtime.deserialize_cuda_engine(model)
        assert engine.plan == open(model_file, "rb").read()
        """,
    "MODEL_TORCH2TRT": """
        from   model_cryptor import ModelType
        from   model_cryptor import CryptorFactory
        from   torch2trt     import TRTModule
        import torch

        crypt_key = b'KEY'
        cryptor = CryptorFactory.instance(ModelType.MODEL_TORCH2TRT)
        cryptor.encrypt(model='../models/resnet18.ptrt', crypt_key=crypt_key,
                        crypted_model="../encrypt_models/resnet18.ptrt.crt")
        model = cryptor.decrypt("../encrypt_models/resnet18.ptrt.crt", crypt_key=crypt_key)

        plain = TRTModule()
        plain.load_state_dict(torch.load('../models/resnet18.ptrt'))
        assert type(model) is TRTModule
        assert model.state == plain.state
        """,
    "MODEL_TENSORFLOW": """
        from   model_cryptor import ModelType
        from   model_cryptor import CryptorFactory
        import tensorflow as tf

        crypt_key = "../keys/license.pem"
        cryptor = CryptorFactory.instance(ModelType.MODEL_TENSORFLOW)
        cryptor.encrypt(model='../models/resnet18', crypt_key=crypt_key, crypted_model="../encrypt_models")
        model = cryptor.decrypt("../encrypt_models/resnet18.crt", crypt_key=crypt_key)

        x    = tf.ones([2, 32])
        pred = model.signatures["serving_default"](x)["output_0"]
        assert tf.reduce_all(pred == tf.saved_model.load('../models/resnet18')(x))
        """,
    "MODEL_PADDLE": """
        from   model_cryptor import ModelType
        from   model_cryptor import CryptorFactory
        import paddle

        crypt_key = b'KEY'
        cryptor = CryptorFactory.instance(ModelType.MODEL_PADDLE)
        cryptor.encrypt(model='../models/resnet18', crypt_key=crypt_key,
                        crypted_model="../encrypt_models/resnet18.crt")
        model = cryptor.decrypt("../encrypt_models/resnet18.crt", crypt_key=crypt_key)

        x = paddle.ones([2, 32])
        assert paddle.equal_all(model(x), paddle.jit.load('../models/resnet18/inference')(x))
        """,
    "MODEL_PADDLE2TRT": """
        from   model_cryptor import ModelType
        from   model_cryptor import CryptorFactory
        import numpy as np
        from   paddle import inference

        crypt_key = b'KEY'
        cryptor = CryptorFactory.instance(ModelType.MODEL_PADDLE2TRT)
        cryptor.encrypt(model='../models/resnet18', crypt_key=crypt_key,
                        crypted_model="../encrypt_models/resnet18.crt")
        model = cryptor.decrypt("../encrypt_models/resnet18.crt", crypt_key=crypt_key)

        def predict(predictor):
            x = predictor.get_input_handle(predictor.get_input_names()[0])
            x.copy_from_cpu(np.ones([2, 32], np.float32))
            predictor.run()
            return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()

        plain = inference.Config('../models/resnet18/inference.json', '../models/resnet18/inference.pdiparams')
        assert np.array_equal(predict(model), predict(inference.create_predictor(plain)))
        """,
}
EXAMPLES["MODEL_TF2TRT"] = EXAMPLES["MODEL_TENSORFLOW"].replace("MODEL_TENSORFLOW", "MODEL_TF2TRT")

# Stand-ins for what needs a GPU: modules that keep what they get, calls that do nothing. They show that
# the right call gets the right bytes, and not what TensorRT makes of them.
TENSORRT = """
class Logger:
    ERROR = 1
    def __init__(self, severity): pass
class Engine: pass
class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, serialized_engine):
        engine = Engine()
        engine.plan = bytes(memoryview(serialized_engine))
        return engine
"""
TORCH2TRT = """
class TRTModule:
    def load_state_dict(self, state):
        self.state = state
"""
WITHOUT_GPU = {
    "MODEL_TORCH2TRT": """
        from strongroom.loaders import torch2trt
        torch2trt.require_driver = lambda *given: None
        """,
    "MODEL_PADDLE2TRT": """
        from strongroom.loaders import paddle
        called = []
        paddle._Config.enable_use_gpu = lambda self, *given: called.append("gpu")
        paddle._Config.enable_tensorrt_engine = lambda self, *given, **more: called.append("tensorrt")
        import atexit, os
        atexit.register(lambda: called == ["gpu", "tensorrt"] or os._exit(9))
        """,
}
NEEDS = {
    "MODEL_TENSORRT": (),
    "MODEL_ONNX": ("onnx", "onnxruntime"),
    "MODEL_TENSORFLOW": ("tensorflow",),
    "MODEL_TF2TRT": ("tensorflow",),
    "MODEL_PADDLE": ("paddle",),
    "MODEL_PADDLE2TRT": ("paddle",),
}


def run(script, folder, stand_ins):
    (folder / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py"],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": str(stand_ins), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("kind", [kind.name for kind in ModelType])
def test_example(kind, tmp_path):
    for module in NEEDS.get(kind, ("torch",)):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the example needs {module}")
    for name in ("models", "encrypt_models", "keys", "examples", "stand_ins"):
        Path(tmp_path, name).mkdir()
    (tmp_path / "keys/license.pem").write_text(KEY)
    (tmp_path / "stand_ins/networks.py").write_text(NETWORKS)
    (tmp_path / "stand_ins/torch2trt.py").write_text(TORCH2TRT)
    (tmp_path / "stand_ins/tensorrt.py").write_text(TENSORRT)
    make = textwrap.dedent(MAKE[kind]) + "\n"
    if kind == "MODEL_TORCH":  # in a process of its own: unpickling finds the classes by itself
        run(make, tmp_path / "examples", tmp_path / "stand_ins")
        make = ""

    example = textwrap.dedent(EXAMPLES[kind]).replace("KEY", KEY)
    changed = example.replace("model_cryptor import", "strongroom.compat.model_cryptor import")
    assert changed.count("strongroom") == 2
    script = make + textwrap.dedent(WITHOUT_GPU.get(kind, "")) + changed
    run(script, tmp_path / "examples", tmp_path / "stand_ins")
    (encrypted,) = (tmp_path / "encrypt_models").iterdir()
    assert encrypted.suffix == ".crt"
    assert [path.name for path in (tmp_path / "examples").iterdir()] == ["script.py"]
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["license.pem"]
    if kind in ("MODEL_TORCH", "MODEL_ONNX"):  # a second run finds what the first one made
        run(script, tmp_path / "examples", tmp_path / "stand_ins")


# Files of single-file formats as model_cryptor would have written them, had it known them.
KERAS = """
import keras, numpy as np
from cryptography.fernet import Fernet
from strongroom.compat.model_cryptor import CryptorFactory, ModelType

cryptor = CryptorFactory.instance(ModelType.MODEL_TENSORFLOW)
key = cryptor.generate_crypt_key()
model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
x = np.ones((2, 4), np.float32)
for name in ("m.keras", "m.h5"):
    model.save(name)
    cryptor.encrypt(name, "license.pem", name + ".crt")
    open("old.crt", "wb").write(Fernet(key).encrypt(open(name, "rb").read()))
    for encrypted in (name + ".crt", "old.crt"):
        found = cryptor.decrypt(encrypted, "license.pem")
        assert isinstance(found, keras.Model)
        assert np.array_equal(found.predict(x, verbose=0), model.predict(x, verbose=0))
"""
PADDLE = """
import paddle
from cryptography.fernet import Fernet
from strongroom.compat.model_cryptor import CryptorFactory, ModelType
from strongroom.errors import UsageError

cryptor = CryptorFactory.instance(ModelType.MODEL_PADDLE)
key = cryptor.generate_crypt_key()
network = paddle.nn.Linear(4, 3)
state = network.state_dict()
paddle.save(state, "m.pdparams")
cryptor.encrypt("m.pdparams", "license.pem", "m.crt")
open("m.pdparams.crt", "wb").write(Fernet(key).encrypt(open("m.pdparams", "rb").read()))
for encrypted in ("m.crt", "m.pdparams.crt"):
    found = cryptor.decrypt(encrypted, "license.pem")
    assert list(found) == list(state)
    assert all(paddle.equal_all(found[name], state[name]) for name in state)

paddle.jit.save(network, "saved/m", input_spec=[paddle.static.InputSpec([None, 4], "float32")])
cryptor.encrypt("saved", "license.pem", "saved.crt")
cryptor = CryptorFactory.instance(ModelType.MODEL_PADDLE2TRT)
try:
    cryptor.decrypt("saved.crt", "license.pem")
except UsageError as error:
    assert "TensorRT" in str(error) or "CUDA" in str(error)
else:
    raise AssertionError("TensorRT without a GPU")
seen = []
predictor = cryptor.decrypt("saved.crt", "license.pem", configure=seen.append)
assert len(seen) == 1
assert predictor.get_input_names()
"""


@pytest.mark.parametrize(("module", "script"), [("keras", KERAS), ("paddle", PADDLE)])
def test_other_files_of_the_frameworks(tmp_path, module, script):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    run(script, tmp_path, tmp_path)
