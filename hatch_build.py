"""Compiles the messages of the serving protocols when the package is built.

python hatch_build.py    # anew, in a checkout; needs grpcio-tools
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PROTOS = Path(__file__).parent / "src" / "strongroom" / "serving" / "protos"
OUTPUT = PROTOS / "descriptors.binpb"


def compile_protos() -> None:
    """Write the descriptors of all messages: data, from which classes are made in a pool of their own."""
    import grpc_tools
    from grpc_tools import protoc

    names = sorted(str(one.relative_to(PROTOS)) for one in PROTOS.rglob("*.proto"))
    includes = (f"-I{PROTOS}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}")
    output = f"--descriptor_set_out={OUTPUT}"
    if protoc.main(["protoc", *includes, "--include_imports", output, *names]):
        sys.exit("the messages of the serving protocols do not compile")


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:
    pass
else:

    class Hook(BuildHookInterface):  # type: ignore[type-arg, misc]
        """Called by hatchling."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Compile, and have the output in the wheel."""
            compile_protos()


if __name__ == "__main__":
    compile_protos()
