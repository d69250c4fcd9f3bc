"""A real tritonserver, that of nvidia-pytriton, with the repository agent; and small models for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

import strongroom
from ports import held_port

VENV = Path(__file__).parents[2] / ".venv-triton"
PACKAGES = VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
SERVER = PACKAGES / "pytriton" / "tritonserver"
STUB = SERVER / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
SECONDS = 120.0

NEEDS_TRITON = pytest.mark.skipif(
    not STUB.is_dir(), reason="there is no tritonserver: make test-triton"
)

MARK = b"PLAINTEXT-OF-A-MODEL-THAT-IS-SEALED"

NUMPY = """
import os, numpy, triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.weights = numpy.fromfile(os.path.join(folder, "weights"), numpy.float32, 1)

    def execute(self, requests):
        x = [utils.get_input_tensor_by_name(one, "x").as_numpy() for one in requests]
        return [utils.InferenceResponse([utils.Tensor("y", one * self.weights)]) for one in x]
"""

ONNX = """
import os, onnxruntime, triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"))

    def execute(self, requests):
        x = [utils.get_input_tensor_by_name(one, "x").as_numpy() for one in requests]
        y = [self.session.run(None, {"x": one.reshape(-1, 16)})[0] for one in x]
        return [utils.InferenceResponse([utils.Tensor("y", one.ravel())]) for one in y]
"""

TORCH = """
import os, torch, triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.weights = torch.load(os.path.join(folder, "weights.pt"), weights_only=True)["scale"]

    def execute(self, requests):
        x = [torch.from_numpy(utils.get_input_tensor_by_name(one, "x").as_numpy()) for one in requests]
        y = [(one * self.weights).numpy() for one in x]
        return [utils.InferenceResponse([utils.Tensor("y", one)]) for one in y]
"""


def configuration(name, parameters, backend="python"):
    """A config.pbtxt with the agent and its parameters."""
    said = " ".join(
        f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items()
    )
    return f"""
name: "{name}"
backend: "{backend}"
max_batch_size: 0
input [{{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }}]
output [{{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }}]
model_repository_agents {{ agents [ {{ name: "strongroom" {said} }} ] }}
"""


def numpy_model(scale):
    """Files of a model that multiplies; small, and each stub of it starts fast."""
    weights = np.float32(scale).tobytes() + MARK * 100
    return {"model.py": f"# {MARK.decode()}\n{NUMPY}".encode(), "weights": weights}


def refused(server, name, load=None):
    """What the log says of a load that fails; the client hears that it has failed."""
    before = len(server.text())
    with pytest.raises(InferenceServerException, match="failed to poll from model repository"):
        (load or server.load)(name)
    found = re.search(r"Poll failed for model directory '[^']*': (.*)\"", server.text()[before:])
    assert found, server.text()[before:]
    return found[1]


class Repository:
    """A model repository of sealed models."""

    def __init__(self, place, memory):
        self.plain, self.path, self.key = place / "plain", place / "models", place / "key.txt"
        self.path.mkdir(parents=True)
        self.key.write_text("A" * 43)
        self.key.chmod(0o600)
        self.memory = memory

    def parameters(self, **more):
        return {"key": str(self.key), "directory": str(self.memory)} | more

    def write(self, name, versions, **parameters):
        """The plain model; ``versions`` are files by number."""
        folder = self.plain / name
        shutil.rmtree(folder, ignore_errors=True)
        for number, files in versions.items():
            (folder / str(number)).mkdir(parents=True)
            for file, content in files.items():
                (folder / str(number) / file).write_bytes(content)
        (folder / "config.pbtxt").write_text(configuration(name, self.parameters(**parameters)))
        return folder

    def seal(self, name, versions=None, *, clear=("config.pbtxt",), meta=None, **parameters):
        """A sealed model in its place, whose files lie there as they would elsewhere."""
        folder = self.write(name, versions or {1: numpy_model(2)}, **parameters)
        strongroom.seal(folder, self.path / name, key=self.key, clear=clear, meta=meta, overwrite=True)
        return self.path / name


def uploaded(folder):
    """The files of a sealed model as the load API takes them."""
    return {
        f"file:{one.relative_to(folder)}": one.read_bytes()
        for one in folder.rglob("*")
        if one.is_file() and one.name != "config.pbtxt"
    }


class Triton:
    """A server over a repository."""

    def __init__(self, place, repository, agents, *options, mode="explicit", before=()):
        place.mkdir(parents=True, exist_ok=True)
        backend = place / "backends" / "python"
        shutil.copytree(SERVER / "backends" / "python", backend, dirs_exist_ok=True)
        shutil.copy(STUB / "triton_python_backend_stub", backend)
        self.log = place / "log"
        self.port, self.grpc = held_port(), held_port()
        command = [*before, str(SERVER / "bin" / "tritonserver"), f"--model-repository={repository}"]
        command += [f"--backend-directory={place / 'backends'}", f"--repoagent-directory={agents}"]
        command += [
            f"--model-control-mode={mode}",
            f"--http-port={self.port}",
            f"--grpc-port={self.grpc}",
        ]
        command += ["--allow-metrics=false", "--exit-timeout-secs=60", "--http-address=127.0.0.1"]
        command += ["--grpc-address=127.0.0.1", *options]
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("STRONGROOM_")
        }
        libraries = [f"{sys.base_prefix}/lib", str(PACKAGES / "nvidia_pytriton.libs")]
        environment["LD_LIBRARY_PATH"] = ":".join(libraries)
        # Otherwise the stub takes the interpreter of the system.
        environment["PATH"] = f"{VENV / 'bin'}:{environment['PATH']}"
        # Meant for the stub; the agent's Python takes nothing of it.
        environment["PYTHONPATH"] = str(place / "nowhere")
        environment["OMP_NUM_THREADS"] = "1"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=place, env=environment, start_new_session=True
            )
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{self.grpc}")

    def until(self, condition, what=""):
        end = time.monotonic() + SECONDS
        while not (found := condition()):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, f"{what}\n{self.text()}"
            time.sleep(0.05)
        return found

    def ready(self):
        with suppress(InferenceServerException):
            return self.client.is_server_live()
        return False

    def start(self):
        self.until(self.ready, "does not start")
        return self

    def text(self):
        return self.log.read_text(errors="replace")

    def infer(self, name, x=(1.0, 2.0), version="", client=None):
        tensor = grpc.InferInput("x", [len(x)], "FP32")
        tensor.set_data_from_numpy(np.asarray(x, np.float32))
        return (client or self.client).infer(name, [tensor], version).as_numpy("y").tolist()

    def load(self, name, **more):
        self.client.load_model(name, **more)

    def config(self, name, parameters):
        """A configuration as JSON, for the load API."""
        agent = {"name": "strongroom", "parameters": parameters}
        tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
        return json.dumps(
            {
                "name": name,
                "backend": "python",
                "max_batch_size": 0,
                "input": [{"name": "x", **tensor}],
                "output": [{"name": "y", **tensor}],
                "model_repository_agents": {"agents": [agent]},
            }
        )

    def unload(self, name):
        self.client.unload_model(name)
        self.until(lambda: not self.client.is_model_ready(name), f"{name} is not unloaded")

    def kill(self):
        """As the kernel would, when memory is short."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS)

    def stop(self):
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SECONDS)
        finally:
            # Stubs of a server that was killed notice it in their own time.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
