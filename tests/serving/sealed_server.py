"""``strongroom serve`` as a child process, with sealed models of ONNX; and what the system says of it."""

from __future__ import annotations

import json
import sys
import time
from base64 import urlsafe_b64encode
from pathlib import Path

from front_process import Server
from onnx import TensorProto
from onnx_graphs import doubling, graph, identity, tensor

import strongroom

KEY = bytes(range(32))

_KINDS = {
    "ints": TensorProto.INT32,
    "bools": TensorProto.BOOL,
    "texts": TensorProto.STRING,
    "halves": TensorProto.FLOAT16,
    "bytes": TensorProto.UINT8,
}


def _gather():
    """y = w[x]: which indices there are is nothing that a signature says."""
    from onnx import helper

    weights = helper.make_tensor("w", TensorProto.FLOAT, (4,), [1, 2, 3, 4])
    return graph(
        [("Gather", ["w", "x"], ["y"], {})],
        [tensor("x", TensorProto.INT64, (None,))],
        [tensor("y", TensorProto.FLOAT, (None,))],
        [weights],
    )


def _reshape():
    """y = x, in rows of three: half of all sizes cannot be computed with."""
    from onnx import helper

    shape = helper.make_tensor("s", TensorProto.INT64, (2,), [-1, 3])
    return graph(
        [("Reshape", ["x", "s"], ["y"], {})],
        [tensor("x", TensorProto.FLOAT, (None,))],
        [tensor("y", TensorProto.FLOAT, (None, 3))],
        [shape],
    )


def _fill():
    """y has as many zeros as x says."""
    return graph(
        [("ConstantOfShape", ["x"], ["y"], {})],
        [tensor("x", TensorProto.INT64, (None,))],
        [tensor("y", TensorProto.FLOAT, None)],
    )


def graphs():
    """Models by name."""
    return {
        "m": doubling(),
        "batched": doubling(),
        **{name: identity(kind, (None, 2)) for name, kind in _KINDS.items()},
        "gather": _gather(),
        "reshape": _reshape(),
        "fill": _fill(),
    }


def seal(place: Path, content: bytes, key=KEY) -> None:
    """One sealed model, there as a whole or not at all."""
    plain = place.with_suffix(".onnx")
    plain.write_bytes(content)
    strongroom.seal(plain, place, key=key, overwrite=True)
    plain.unlink()


def write_key(place: Path, key=KEY) -> Path:
    place.write_bytes(urlsafe_b64encode(key))
    return place


class Serve(Server):
    """The real command: ``Serve(place, "m=m.sealed", …)``."""

    def __init__(self, place: Path, *arguments, **options) -> None:
        command = [
            *(sys.executable, "-m", "strongroom", "serve"),
            *("--rest-port", "0", "--grpc-port", "0"),
        ]
        super().__init__(
            place, command=[*command, "--poll", "0.05", "--drain-seconds", "0", *arguments], **options
        )

    @classmethod
    def of_all(cls, place: Path, *arguments):
        """With every model of :func:`graphs`."""
        write_key(place / "key")
        models = []
        for name, content in graphs().items():
            seal(place / f"{name}.sealed", content)
            models.append({"name": name, "path": f"{name}.sealed"})
        models[1]["batching"] = {"max_batch": 8, "delay": 0.001}
        (place / "models.yaml").write_text(json.dumps({"models": models}))
        made = cls(place, "--config", "models.yaml", "-k", "key", *arguments)
        made.until(lambda: made.ask("GET", "/readyz")[0] == 200, 60)
        return made

    def memory(self, what="RssAnon") -> int:
        """Bytes that are its own now; with ``VmHWM`` the most that it ever had, files too."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = dict(line.split(":", 1) for line in status.splitlines())
        return int(found[what].split()[0]) << 10

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def states(self, model="m"):
        """What TensorFlow Serving's status says: version → state, code, words."""
        status, _, content = self.ask("GET", f"/v1/models/{model}")
        if status != 200:
            return {}
        return {
            int(one["version"]): (
                one["state"],
                one["status"]["error_code"],
                one["status"]["error_message"],
            )
            for one in json.loads(content)["model_version_status"]
        }

    def check_health(self):
        """It runs, answers, and has called nothing a fault of its own."""
        assert self.process.poll() is None, self.text()
        assert self.ask("GET", "/readyz")[0] == 200
        time.sleep(0.15)  # the access log is written ten times a second
        text = self.text().splitlines()
        others = [one for one in text if not (one.startswith("{") and one.endswith("}"))]
        assert not others, others[:5]
        lines = [json.loads(one) for one in text]
        wrong = [
            one
            for one in lines
            if one["level"] in ("error", "critical")
            or one.get("status") in ("INTERNAL", "UNKNOWN")
            or (type(one.get("status")) is int and one["status"] >= 500)
        ]
        assert not wrong, wrong[:5]
