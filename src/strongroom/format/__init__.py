"""Bytes to dataclasses and back: header, manifest, arithmetic of the payload. No I/O, no keys."""
