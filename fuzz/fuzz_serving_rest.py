"""Invariant: any bytes to any path of the model server are answered, or refused with a status below 500 and JSON that says why."""

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.append(str(Path(__file__).parents[1] / "tests" / "serving"))

with atheris.instrument_imports(include=["strongroom"]):
    import seeds
    from in_process import callee, rest_seeds

REST = rest_seeds()
LENGTH = b"inference-header-content-length"


def examples():
    """One byte for method, path and headers, one for the length of the header, then the body."""
    for number, (_, _, headers, body) in enumerate(REST):
        yield bytes([number, min(255, int(headers.get(LENGTH, b"0")))]) + body


def main() -> None:
    place = Path(tempfile.mkdtemp(prefix="strongroom-fuzz-"))
    try:
        with callee(place) as called:

            def target(data: bytes) -> None:
                if len(data) < 2:
                    return
                method, path, headers, _ = REST[data[0] % len(REST)]
                if headers:
                    headers = {LENGTH: b"%d" % data[1]}
                called.check_rest(method, path, headers, data[2:])

            seeds.fuzz(target, examples())
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
