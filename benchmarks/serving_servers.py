"""Servers for the benchmarks of serving: this project's, those of others, and the least that frameworks do.

    python benchmarks/serving_servers.py asgi|grpc-aio|grpc-threads PORT
    python benchmarks/serving_servers.py grpc-onnx PORT MODEL
    python benchmarks/serving_servers.py plain MODEL REST_PORT GRPC_PORT

``plain`` is this project's server with a model that is not sealed, loaded by ONNX Runtime.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TICKS = os.sysconf("SC_CLK_TCK")

MLSERVER_MODEL = """
import numpy as np, onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Onnx(MLModel):
    async def load(self):
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri)
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = self.session.run(None, {"x": np.asarray(x, np.float32)})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
"""

TRITON_MODEL = """
import onnxruntime, triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        self.session = onnxruntime.InferenceSession(MODEL)

    def execute(self, requests):
        answers = []
        for one in requests:
            x = utils.get_input_tensor_by_name(one, "x").as_numpy()
            (y,) = self.session.run(None, {"x": x})
            answers.append(utils.InferenceResponse([utils.Tensor("y", y)]))
        return answers
"""

TRITON_CONFIG = """
name: "identity"
backend: "python"
max_batch_size: 0
input [{ name: "x", data_type: TYPE_FP32, dims: [ -1, 16 ] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [ -1, 16 ] }]
"""


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Server:
    """One that answers.

    Attributes:
        name: for tables.
        pid: of its first process.
        rest, grpc: ports; 0 where it has none.
        path: of its inference over REST.
    """

    name: str
    pid: int
    rest: int = 0
    grpc: int = 0
    path: str = "/v2/models/identity/infer"

    def cpu(self) -> float:
        """Seconds of all its processes."""
        return sum(_cpu(pid) for pid in _family(self.pid))

    def memory(self) -> int:
        """Bytes that are its own: not of files."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        raise SystemExit("no RssAnon")


def _family(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += _family(int(child))
    return found


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def process(
    command: list[str], cpu: int | None, folder: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / f"{Path(command[0]).name}.{free_port()}.log"
    with log.open("wb") as output:
        one = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={**os.environ, **(env or {})},
            preexec_fn=None if cpu is None else lambda: os.sched_setaffinity(0, {cpu}),
        )
    try:
        yield one
    finally:
        one.send_signal(signal.SIGTERM)
        try:
            one.wait(20)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


def until_ready(one: subprocess.Popen[bytes], port: int, path: str, seconds: float = 120) -> None:
    """Wait until a path answers; None of them is only whether the port is open."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if one.poll() is not None:
            raise SystemExit(f"{one.args} has ended with {one.returncode}")
        try:
            if path:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    answer.read()
            else:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            time.sleep(0.02)
    raise SystemExit(f"{one.args} does not answer")


@contextmanager
def strongroom(
    folder: Path,
    models: str,
    cpu: int | None = 0,
    *more: str,
    name: str = "strongroom",
    plain: bool = False,
) -> Iterator[Server]:
    """This project's server; ``models`` is a models.yaml. ``plain``: of a model that is not sealed."""
    config = folder / f"models-{free_port()}.yaml"
    config.write_text(models)
    rest, grpc = free_port(), free_port()
    program = [str(Path(sys.executable).with_name("strongroom"))]
    if plain:
        program = [sys.executable, __file__, "plain"]
    command = [*program, "serve", "--config", str(config), "--rest-port", str(rest)]
    command += ["--grpc-port", str(grpc), "--drain-seconds", "0", *more]
    with process(command, cpu, folder) as one:
        until_ready(one, rest, "/readyz")
        yield Server(name, one.pid, rest, grpc)


@contextmanager
def bare(folder: Path, kind: str, cpu: int | None = 0, *more: str) -> Iterator[Server]:
    """The least that a framework does: the body that came is the answer, or is what a model runs with."""
    port = free_port()
    with process([sys.executable, __file__, kind, str(port), *more], cpu, folder) as one:
        until_ready(one, port, "")
        yield Server(f"bare {kind}", one.pid, *((port, 0) if kind == "asgi" else (0, port)))


@contextmanager
def mlserver(folder: Path, venv: Path, model: Path, cpu: int | None = 0) -> Iterator[Server]:
    """MLServer with a model of ONNX Runtime, in its own process: parallel workers take more."""
    place = folder / "mlserver"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    rest, grpc, metrics = free_port(), free_port(), free_port()
    settings = {
        "host": "127.0.0.1",
        "http_port": rest,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "parallel_workers": 0,
    }
    (place / "onnx_model.py").write_text(MLSERVER_MODEL)
    (place / "settings.json").write_text(json.dumps(settings))
    parameters = {"uri": str(model)}
    about = {"name": "identity", "implementation": "onnx_model.Onnx", "parameters": parameters}
    (place / "model-settings.json").write_text(json.dumps(about))
    with process([str(venv / "bin" / "mlserver"), "start", "."], cpu, place) as one:
        until_ready(one, rest, "/v2/models/identity/ready")
        yield Server("MLServer", one.pid, rest, grpc)


@contextmanager
def triton(folder: Path, venv: Path, model: Path, cpu: int | None = 0) -> Iterator[Server]:
    """Triton's Python backend with a model of ONNX Runtime; the server that nvidia-pytriton brings."""
    place = folder / "triton"
    shutil.rmtree(place, ignore_errors=True)
    version = place / "models" / "identity" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(TRITON_MODEL.replace("MODEL", repr(str(model))))
    (version.parent / "config.pbtxt").write_text(TRITON_CONFIG)
    packages = next(venv.glob("lib/python3.*/site-packages"))
    server = packages / "pytriton" / "tritonserver"
    backend = place / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    minor = packages.parent.name.removeprefix("python")
    stub = server / "python_backend_stubs" / minor / "triton_python_backend_stub"
    shutil.copy(stub, backend)
    libraries = [f"{sys.base_prefix}/lib", str(packages / "nvidia_pytriton.libs")]
    env = {
        "LD_LIBRARY_PATH": ":".join([*libraries, str(server / "external_libs")]),
        # Otherwise its stub takes the interpreter of the system.
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
    }
    rest, grpc = free_port(), free_port()
    command = [str(server / "bin" / "tritonserver"), f"--model-repository={place / 'models'}"]
    command += [f"--backend-directory={place / 'backends'}", f"--http-port={rest}"]
    command += [f"--grpc-port={grpc}", "--allow-metrics=false"]
    with process(command, cpu, place, env) as one:
        until_ready(one, rest, "/v2/health/ready")
        yield Server("Triton, Python backend", one.pid, rest, grpc)


def _asgi(port: int) -> None:
    import orjson
    import uvicorn

    async def app(scope, receive, send):
        found = orjson.loads((await receive())["body"])["inputs"][0]
        output = {"name": "y", "datatype": "FP32", "shape": found["shape"], "data": found["data"]}
        body = orjson.dumps({"model_name": "identity", "outputs": [output]})
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(app, port=port, log_level="error", access_log=False, loop="uvloop", http="httptools")


def _handlers(function):
    import grpc

    service, _, method = METHOD[1:].partition("/")
    handler = grpc.unary_unary_rpc_method_handler(function)
    return (grpc.method_handlers_generic_handler(service, {method: handler}),)


def _grpc_threads(port: int, answer=lambda request, context: request) -> None:
    import grpc

    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers(_handlers(answer))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def _grpc_onnx(port: int, model: str) -> None:
    """Threads around a run with the end of the message, where the contents of its tensor are."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    (x,) = session.get_inputs()
    shape = (1, *x.shape[1:])
    count = int(np.prod(shape))

    def answer(request, context):
        image = np.frombuffer(request, np.float32, count, len(request) - 4 * count).reshape(shape)
        if not image.flags.aligned:
            image = image.copy()
        return session.run(None, {x.name: image})[0].tobytes()

    _grpc_threads(port, answer)


def _grpc_aio(port: int) -> None:
    import grpc

    async def same(request, context):
        return request

    async def serve():
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(_handlers(same))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


def _plain(arguments: list[str]) -> None:
    """The program, which loads models that are not sealed; nothing else is another."""
    from strongroom.cli import main
    from strongroom.serving import loading

    def load(config, version, location):
        import onnxruntime

        from strongroom.serving.backends.onnx import _Session
        from strongroom.serving.servable import Servable
        from strongroom.serving.warmup import warm_up

        loaded = _Session(onnxruntime.InferenceSession(location))
        warm_up(loaded, "serving_default", config.warm_up)
        return Servable(config, version, loaded)

    loading.load_servable = load
    sys.argv = ["strongroom", *arguments]
    main()


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "plain":
        _plain(arguments)
    else:
        kinds = {
            "asgi": _asgi,
            "grpc-aio": _grpc_aio,
            "grpc-onnx": _grpc_onnx,
            "grpc-threads": _grpc_threads,
        }
        kinds[kind](int(arguments[0]), *arguments[1:])
