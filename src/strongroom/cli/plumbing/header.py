"""``strongroom plumbing header``."""

from __future__ import annotations

import json as json_module

import typer

from strongroom.cli.terminal import print_json
from strongroom.cli.verb import Json, Source, verb
from strongroom.format.header import FIXED_SIZE
from strongroom.format.layout import PREAMBLE_SIZE, Layout, parse_preamble
from strongroom.model.reader import locate, read_area

__all__ = ["register"]

_EXAMPLES = """
strongroom plumbing header model.pt.sealed
strongroom plumbing header resnet50.sealed/MANIFEST.sealed --json
"""


def header(source: Source, json: Json = False) -> None:
    """Show the header of one sealed file as it stands there, its MAC, and where its payload lies.

    Nothing of it is authenticated. Of a directory, it is the header of its manifest.
    """
    file, tree = locate(source)
    try:
        area = read_area(file)
        layout = Layout.of_payload(area.header.segment, file.size - area.size)
        preamble = memoryview(bytearray(PREAMBLE_SIZE))
        file.read_into(area.size, preamble)
    finally:
        file.close()
        if tree is not None:
            tree.close()
    raw = area.signed[FIXED_SIZE:].decode()
    salt, prefix = parse_preamble(bytes(preamble))
    facts = {
        "header_area": area.size,
        "header_size": len(area.signed) - FIXED_SIZE,
        "mac": area.mac.hex(),
        "payload_offset": area.size,
        "payload_size": layout.payload,
        "segments": layout.count,
        "plaintext_size": layout.size,
        "salt": salt.hex(),
        "nonce_prefix": prefix.hex(),
    }
    if json:
        print_json({**facts, "header": json_module.loads(raw), "raw": raw, "authenticated": False})
        return
    print(json_module.dumps(json_module.loads(raw), indent=2))
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    verb(app, "header", header, _EXAMPLES)
