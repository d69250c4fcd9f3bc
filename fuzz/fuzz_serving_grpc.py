"""Invariant: any bytes to any method of the model server are answered, or refused with a code that is no fault of its own, in words for a person."""

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).parents[1] / "tests" / "serving"))

with atheris.instrument_imports(include=["strongroom"]):
    import seeds
    from in_process import callee, grpc_seeds

GRPC = grpc_seeds()
METHODS = sorted({method for method, _ in GRPC})


def examples():
    """One byte for the method, then the message."""
    for method, data in GRPC:
        yield bytes([METHODS.index(method)]) + data


def main() -> None:
    place = Path(tempfile.mkdtemp(prefix="strongroom-fuzz-"))
    try:
        with callee(place) as called:

            def target(data: bytes) -> None:
                if data:
                    called.check_grpc(METHODS[data[0] % len(METHODS)], data[1:])

            seeds.fuzz(target, examples())
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
