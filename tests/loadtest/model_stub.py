"""A model server that is as small as one can be: both protocols over REST and gRPC.

``python model_stub.py`` prints the port for REST and serves on it until it is killed.
"""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httptools
import uvloop

V2 = {
    "name": "m",
    "versions": ["1"],
    "platform": "stub",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
}


def tfs_metadata(shape):
    dim = [{"size": str(size), "name": ""} for size in shape]
    info = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": dim, "unknown_rank": False}, "name": "x:0"}
    signature = {"inputs": {"x": info}, "outputs": {}, "method_name": "tensorflow/serving/predict"}
    return {"metadata": {"signature_def": {"signature_def": {"serving_default": signature}}}}


class Stub:
    """Answers like a server with one model, ``m``; what it was asked is in ``seen``.

    Attributes:
        shape: of the model's only input, float32.
        delay: seconds that the answer to an inference takes.
        failing: code of what every answer to an inference is, by number of the inference.
        closing: close the connection after an answer.
    """

    def __init__(self, shape=(-1, 4)):
        self.shape = shape
        self.delay = 0.0
        self.failing = lambda number: None
        self.closing = False
        self.seen = []
        self.inferences = 0
        self.transports = set()

    def answer(self, path, body, headers):
        """Status and body."""
        if path == "/inferences":
            return 200, b"%d" % self.inferences
        if path.startswith("/v2/models/m") and not body:
            inputs = [{"name": "x", "datatype": "FP32", "shape": list(self.shape)}]
            return 200, json.dumps({**V2, "inputs": inputs}).encode()
        if path == "/v1/models/m/metadata":
            return 200, json.dumps(tfs_metadata(self.shape)).encode()
        if not path.startswith(("/v2/models/m", "/v1/models/m")):
            return 404, b'{"error": "there is no such model"}'
        self.inferences += 1
        if len(self.seen) < 1000:
            self.seen.append((path, body, headers))
        status = self.failing(self.inferences)
        return (200, b'{"outputs": []}') if status is None else (status, b'{"error": "said so"}')


class Connection(asyncio.Protocol):
    def __init__(self, stub):
        self.stub = stub

    def connection_made(self, transport):
        self.transport = transport
        self.stub.transports.add(transport)
        self._new()

    def connection_lost(self, error):
        self.stub.transports.discard(self.transport)

    def _new(self):
        self.parser = httptools.HttpRequestParser(self)
        self.url, self.body, self.headers = b"", b"", {}

    def data_received(self, data):
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 x\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.headers[name.decode()] = value.decode()

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        status, body = self.stub.answer(self.url.decode(), self.body, self.headers)
        close = "connection: close\r\n" if self.stub.closing else ""
        head = f"HTTP/1.1 {status} x\r\n{close}content-length: {len(body)}\r\n\r\n"
        inference = self.body
        self.url, self.body, self.headers = b"", b"", {}
        if self.stub.delay and inference:
            loop = asyncio.get_running_loop()
            loop.call_later(self.stub.delay, self._write, head.encode() + body)
        else:
            self._write(head.encode() + body)

    def _write(self, data):
        self.transport.write(data)
        if self.stub.closing:
            self.transport.close()


class RestServer:
    """In a thread; ``with RestServer(stub) as port``."""

    def __init__(self, stub, context=None):
        self.stub, self.context = stub, context

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        started = asyncio.run_coroutine_threadsafe(self._start(), self.loop)
        return started.result(60)

    async def _start(self):
        self.server = await self.loop.create_server(
            lambda: Connection(self.stub), "127.0.0.1", 0, ssl=self.context
        )
        return self.server.sockets[0].getsockname()[1]

    def __exit__(self, *_):
        async def stop():
            self.server.close()
            for one in list(self.stub.transports):
                one.abort()
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(60)
        self.loop.close()


def grpc_server(stub, credentials=None):
    """A server of both services, started, and its port; inferences go through ``stub.answer`` like those of REST."""
    import time

    import grpc

    from strongroom.serving.grpc_calls import service
    from strongroom.serving.messages import message
    from strongroom.serving.status import Code, RequestError

    def infer(kind, answer):
        def method(request, context):
            name = request.model_name if kind == "v2" else request.model_spec.name
            if name != "m":
                raise RequestError(Code.NOT_FOUND, "there is no such model")
            time.sleep(stub.delay)
            status, _ = stub.answer(f"/{kind}/models/m".replace("tfs", "v1") + "/infer", request, {})
            if status != 200:
                raise RequestError(Code(status), "said so")
            return message(answer)()

        return method

    def v2_metadata(request, context):
        if request.name != "m":
            raise RequestError(Code.NOT_FOUND, "there is no such model")
        found = message("inference.ModelMetadataResponse")(name="m")
        found.inputs.add(name="x", datatype="FP32", shape=stub.shape)
        return found

    def tfs_metadata(request, context):
        signatures = message("tensorflow.serving.SignatureDefMap")()
        info = signatures.signature_def["serving_default"].inputs["x"]
        info.dtype = 1
        for size in stub.shape:
            info.tensor_shape.dim.add(size=size)
        found = message("tensorflow.serving.GetModelMetadataResponse")()
        found.metadata["signature_def"].value = signatures.SerializeToString()
        return found

    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers(
        [
            service(
                "inference.GRPCInferenceService",
                {
                    "ModelMetadata": v2_metadata,
                    "ModelInfer": infer("v2", "inference.ModelInferResponse"),
                },
            ),
            service(
                "tensorflow.serving.PredictionService",
                {
                    "GetModelMetadata": tfs_metadata,
                    "Predict": infer("tfs", "tensorflow.serving.PredictResponse"),
                },
            ),
        ]
    )
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port


async def _serve():
    loop = asyncio.get_running_loop()
    stub = Stub((-1, 16))
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
