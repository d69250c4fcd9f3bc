"""Vectors about the header area: layout, JSON, members, recipients."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from strongroom.testing import encapsulated as hpke
from strongroom.testing.raw import (
    BUNDLE,
    MAGIC,
    OTHER_KEY,
    PASSPHRASE,
    Vector,
    area,
    b64,
    header,
    passphrase_entry,
    pattern,
    sealed,
    segments,
    symmetric_entry,
    to_json,
)

__all__ = ["vectors"]

PLAIN = pattern("plaintext", 100)
PAYLOAD = b"".join(segments(PLAIN))
GOOD = sealed(PLAIN)


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from _valid()
    yield from _layout()
    yield from _authenticity()
    yield from _json()
    yield from _members()
    yield from _paths()
    yield from _recipients()
    yield from _hpke()
    yield from _passphrases()


def _ok(name: str, content: bytes, key: str = "symmetric", path: str = "model.bin") -> Vector:
    return Vector(name, content, key, {path: PLAIN})


def _bad(name: str, content: bytes, error: str, **detail: Any) -> Vector:
    return Vector(name, content, expect=error, detail=detail, inspect=True)


def _malformed(name: str, content: bytes, field: str) -> Vector:
    return _bad(name, content, "Malformed", field=field)


def _says(**members: Any) -> bytes:
    """A sealed file whose authentic header says ``members``."""
    return area(header(**members)) + PAYLOAD


def _says_json(old: bytes, new: bytes) -> bytes:
    encoded = to_json(header())
    assert encoded.count(old) == 1
    return area(encoded.replace(old, new)) + PAYLOAD


def _valid() -> Iterator[Vector]:
    yield _ok("valid", GOOD)
    yield _ok("valid-header-area-8192", area(header(), size=8192) + PAYLOAD)
    yield _ok("valid-header-area-largest", area(header(), size=1 << 20) + PAYLOAD)
    room = 4096 - 16 - 32 - len(to_json(header(meta={"fill": ""})))
    yield _ok("valid-header-fills-area", _says(meta={"fill": "x" * room}))
    meta = {"name": "test", "later": {"list": [1, 2.5, None, True], "text": "ünïcode \U0001f510"}}
    yield _ok("valid-meta-unknown-members", _says(meta=meta))
    yield _ok("valid-meta-empty", _says(meta={}))
    spaced = to_json(header()).replace(b'"v":1,', b' "v" : 1 ,\n')
    yield _ok("valid-json-white-space", area(spaced) + PAYLOAD)
    reordered = dict(reversed(list(header().items())))
    yield _ok("valid-members-in-another-order", area(reordered) + PAYLOAD)
    path = "modèles/重み/1.bin"
    yield Vector("valid-path-unicode", sealed(PLAIN, path=path), plain={path: PLAIN})
    longest = "/".join(["d" * 200] * 5) + "/" + "f" * 19
    yield Vector("valid-path-longest", sealed(PLAIN, path=longest), plain={longest: PLAIN})


def _layout() -> Iterator[Vector]:
    yield _bad("empty", b"", "NotSealed")
    yield _bad("magic-other", b"\x89PNG" + GOOD[4:], "NotSealed")
    yield _bad("magic-line-ends-converted", GOOD.replace(b"\r\n", b"\n", 1), "NotSealed")
    yield _bad("magic-seventh-bit-cleared", b"\x09" + GOOD[1:], "NotSealed")
    for size in (5, 8, 15):
        yield _bad(f"truncated-fixed-{size}", GOOD[:size], "Truncated")
    for size in (16, 200, 4095):
        yield _bad(f"truncated-header-area-{size}", GOOD[:size], "Truncated")
    for name, said in (("zero", 0), ("small", 2048), ("not-a-multiple", 4097)):
        content = area(header(), said_size=said) + PAYLOAD
        yield _malformed(f"header-area-size-{name}", content, "header area")
    for name, said in (("above-limit", (1 << 20) + 4096), ("huge", 0xFFFFF000)):
        content = area(header(), said_size=said) + PAYLOAD
        yield _bad(f"header-area-size-{name}", content, "LimitExceeded")
    for name, said in (("above-area", 4096 - 16 - 32 + 1), ("huge", 0xFFFFFFFF), ("zero", 0)):
        content = area(header(), said_header=said) + PAYLOAD
        yield _malformed(f"header-size-{name}", content, "header")
    end = 16 + len(to_json(header())) + 32
    for name, at in (("first", end), ("last", 4095)):
        content = GOOD[:at] + b"\x01" + GOOD[at + 1 :]
        yield _malformed(f"padding-nonzero-{name}", content, "padding")


def _tampered(name: str, content: bytes, **more: Any) -> Vector:
    return Vector(name, content, expect="HeaderTampered", **more)


def _authenticity() -> Iterator[Vector]:
    end = 16 + len(to_json(header()))
    for name, at in (("first", end), ("last", end + 31)):
        content = GOOD[:at] + bytes([GOOD[at] ^ 1]) + GOOD[at + 1 :]
        yield _tampered(f"header-mac-{name}-byte-flipped", content)
    yield _tampered("header-mac-of-another-key", area(header(), dek=pattern("DEK 2", 32)) + PAYLOAD)
    for name, old, new in (
        ("name", b'"name":"test"', b'"name":"tesu"'),
        ("path", b"model.bin", b"model.bim"),
        ("segment", b"65536", b"131072"),
        ("recipients", b'"recipients":[', b'"recipients":[{"alg":"other"},'),
    ):
        changed = to_json(header()).replace(old, new)
        mac = GOOD[end : end + 32]
        start = MAGIC + (4096).to_bytes(4, "big") + len(changed).to_bytes(4, "big")
        yield _tampered(f"header-{name}-changed", (start + changed + mac).ljust(4096, b"\0") + PAYLOAD)
    larger = GOOD[:8] + (8192).to_bytes(4, "big") + GOOD[12:4096] + bytes(4096) + PAYLOAD
    yield _tampered("header-area-enlarged", larger)


def _json() -> Iterator[Vector]:
    whole = to_json(header())
    cases = {
        "byte-order-mark": b"\xef\xbb\xbf" + whole,
        "utf-16": whole.decode().encode("utf-16"),
        "not-utf-8": whole.replace(b"test", b"te\xff"),
        "surrogate": whole.replace(b"test", b"\\ud800"),
        "not-json": whole[:-1],
        "trailing-data": whole + b"{}",
        "trailing-comma": whole[:-1] + b",}",
        "array": b"[" + whole + b"]",
        "string": b'"header"',
        "null": b"null",
        "nan": whole.replace(b'"test"', b"NaN"),
        "infinity": whole.replace(b'"test"', b"-Infinity"),
        "number-above-double": whole.replace(b'"test"', b"1e999"),
        "control-character": whole.replace(b"test", b"te\x01"),
        "nested-33-levels": whole.replace(b'"test"', b"[" * 31 + b"]" * 31),
        "nested-1500-levels": whole.replace(b'"test"', b"[" * 1500 + b"]" * 1500),
        "duplicate-member": whole.replace(b'"v":1', b'"v":1,"v":1'),
        "duplicate-member-escaped": whole.replace(b'"v":1', b'"v":1,"\\u0076":1'),
        "duplicate-in-meta": whole.replace(b'"name":', b'"name":"x","name":'),
        "duplicate-deep-in-meta": whole.replace(b'"test"', b'{"a":{"b":1,"b":2}}'),
        "duplicate-in-recipient": whole.replace(b'{"alg":', b'{"alg":"A256KW","alg":'),
        "unknown-member": whole.replace(b'"v":1', b'"v":1,"critical":true'),
    }
    for name, encoded in cases.items():
        yield _malformed(f"json-{name}", area(encoded) + PAYLOAD, "header")
    deepest = whole.replace(b'"test"', b"[" * 30 + b"]" * 30)
    yield _ok("valid-json-nested-32-levels", area(deepest) + PAYLOAD)


def _members() -> Iterator[Vector]:
    for version in (0, 2, -1, 10**30):
        yield _bad(f"version-{version}", _says(v=version), "UnsupportedVersion")
    for name, value in (("string", "1"), ("true", True), ("float", 1.0), ("null", None)):
        yield _malformed(f"version-{name}", _says(v=value), "v")
    yield _malformed("version-missing", _says(v=...), "v")
    for member in ("bundle", "path", "segment", "recipients", "meta"):
        yield _malformed(f"{member}-missing", _says(**{member: ...}), member)
    text = b64(BUNDLE)
    after = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    noncanonical = text[:-1] + after[after.index(text[-1]) + 1]
    bundles: dict[str, Any] = {
        "not-canonical": noncanonical,
        "padded": text + "==",
        "standard-alphabet": "+/" + text[2:],
        "line-end": text + "\n",
        "short": b64(BUNDLE[:15]),
        "long": b64(BUNDLE + b"\0"),
        "impossible-length": text[:-1],
        "empty": "",
        "number": 16,
        "null": None,
    }
    for name, value in bundles.items():
        yield _malformed(f"bundle-{name}", _says(bundle=value), "bundle")
    sizes: dict[str, Any] = {
        "zero": 0,
        "one": 1,
        "negative": -65536,
        "too-small": 32768,
        "too-large": 1 << 25,
        "huge": 1 << 64,
        "not-a-power-of-two": 65537,
        "three-halves": 98304,
        "string": "65536",
        "float": 65536.0,
        "true": True,
        "null": None,
    }
    for name, value in sizes.items():
        yield _malformed(f"segment-{name}", _says(segment=value), "segment")
    metas: dict[str, Any] = {"array": [], "string": "x", "null": None}
    for name, value in metas.items():
        yield _malformed(f"meta-{name}", _says(meta=value), "meta")


def _paths() -> Iterator[Vector]:
    paths: dict[str, Any] = {
        "empty": "",
        "absolute": "/etc/passwd",
        "parent": "../model.bin",
        "parent-inside": "a/../../model.bin",
        "parent-alone": "..",
        "dot": "./model.bin",
        "dot-alone": ".",
        "empty-part": "a//model.bin",
        "trailing-slash": "a/",
        "backslash": "..\\model.bin",
        "nul": "model.bin\0.txt",
        "not-nfc": unicodedata.normalize("NFD", "modèle.bin"),
        "too-long": "d" * 1025,
        "too-long-in-bytes": "é" * 513,
        "number": 1,
        "null": None,
        "array": ["model.bin"],
    }
    for name, value in paths.items():
        yield _malformed(f"path-{name}", _says(path=value), "path")
    content = area(header(path="MANIFEST")) + b"".join(segments(PLAIN, "MANIFEST"))
    yield Vector("path-manifest-in-a-single-file", content, expect="UsageError")


def _recipients() -> Iterator[Vector]:
    mine = symmetric_entry()
    theirs = symmetric_entry(OTHER_KEY)
    future = {"alg": "future", "kid": "1", "parameters": {"x": [1, 2]}}
    yield _ok("valid-several-recipients", _says(recipients=[theirs, passphrase_entry(), mine]))
    yield _ok("valid-unknown-recipient-beside", _says(recipients=[future, mine]))
    yield _ok("valid-unknown-member-of-recipient", _says(recipients=[{**mine, "note": "x"}]))
    anonymous = {name: value for name, value in mine.items() if name != "kid"}
    other = {name: value for name, value in theirs.items() if name != "kid"}
    yield _ok("valid-recipient-without-kid", _says(recipients=[other, anonymous]))
    for name, entries in (
        ("another-key", [theirs]),
        ("another-key-without-kid", [other]),
        ("unknown-alg", [future]),
        ("key-of-another-type", [passphrase_entry(), _hpke_entry("X25519")]),
        ("a-hundred", [{"alg": f"future-{n}"} for n in range(100)]),
    ):
        yield Vector(f"recipient-{name}", _says(recipients=entries), expect="NoMatchingRecipient")
    yield Vector(
        "recipients-empty",
        _says(recipients=[]),
        expect="ManifestMismatch",
        detail={"path": "model.bin"},
    )
    shapes: dict[str, tuple[Any, str]] = {
        "object": ({}, "recipients"),
        "null": (None, "recipients"),
        "string": ("A256KW", "recipients"),
        "entry-string": (["A256KW"], "recipients[0]"),
        "entry-array": ([mine, []], "recipients[1]"),
        "alg-missing": ([{"kid": "x"}], "recipients[0].alg"),
        "alg-number": ([{"alg": 1}], "recipients[0].alg"),
        "kid-number": ([{**mine, "kid": 1}], "recipients[0].kid"),
        "kid-null": ([{**mine, "kid": None}], "recipients[0].kid"),
        "uri-array": ([{**mine, "uri": []}], "recipients[0].uri"),
        "encrypted-key-padded": (
            [{**mine, "encrypted_key": mine["encrypted_key"] + "="}],
            "recipients[0].encrypted_key",
        ),
        "encrypted-key-number": ([{**mine, "encrypted_key": 1}], "recipients[0].encrypted_key"),
        "encrypted-key-null": ([{**mine, "encrypted_key": None}], "recipients[0].encrypted_key"),
    }
    for name, (value, field) in shapes.items():
        yield _malformed(f"recipients-{name}", _says(recipients=value), field)
    yield Vector(
        "recipient-encrypted-key-missing",
        _says(recipients=[{"alg": "A256KW", "kid": mine["kid"]}]),
        expect="Malformed",
        detail={"field": "recipients[0].encrypted_key"},
    )
    yield Vector(
        "recipient-encrypted-key-short",
        _says(recipients=[{**mine, "encrypted_key": b64(bytes(32))}]),
        expect="Malformed",
        detail={"field": "recipients[0].encrypted_key"},
    )
    flipped = {**mine, "encrypted_key": "A" + mine["encrypted_key"][1:]}
    assert flipped != mine
    yield _tampered("recipient-encrypted-key-changed", _says(recipients=[flipped]))
    wrong = symmetric_entry(dek=pattern("DEK 2", 32))
    yield _tampered("recipient-wraps-another-key", _says(recipients=[wrong]))


def _hpke_entry(kem: str, wrapped: str = "WRAPPED") -> dict[str, Any]:
    return {
        "alg": f"HPKE-{kem}",
        "kid": getattr(hpke, f"{kem}_KID"),
        "encrypted_key": getattr(hpke, f"{kem}_{wrapped}"),
    }


def _hpke() -> Iterator[Vector]:
    for kem in ("MLKEM768X25519", "X25519"):
        key = f"hpke-{kem.lower()}"
        entry = _hpke_entry(kem)
        yield _ok(f"valid-{key}", _says(recipients=[entry]), key)
        anonymous = {name: value for name, value in entry.items() if name != "kid"}
        yield _ok(f"valid-{key}-without-kid", _says(recipients=[anonymous]), key)
        text = entry["encrypted_key"]
        flipped = {**entry, "encrypted_key": ("A" if text[0] != "A" else "B") + text[1:]}
        yield _tampered(f"{key}-encapsulation-changed", _says(recipients=[flipped]), key=key)
        short = {**entry, "encrypted_key": text[:40]}
        yield _tampered(f"{key}-encapsulation-short", _says(recipients=[short]), key=key)
    for name, wrapped in (
        ("another-bundle", "WRAPPED_FOR_ANOTHER_BUNDLE"),
        ("wraps-16-bytes", "WRAPPED_16_BYTES"),
    ):
        entry = _hpke_entry("X25519", wrapped)
        yield _tampered(f"hpke-x25519-{name}", _says(recipients=[entry]), key="hpke-x25519")
    zero_point = {**_hpke_entry("X25519"), "encrypted_key": b64(bytes(32 + 48))}
    yield _tampered("hpke-x25519-zero-point", _says(recipients=[zero_point]), key="hpke-x25519")


def _passphrases() -> Iterator[Vector]:
    entry = passphrase_entry()
    yield _ok("valid-passphrase", _says(recipients=[entry]), "passphrase")
    yield _ok("valid-passphrase-decomposed", _says(recipients=[entry]), "passphrase-decomposed")
    eight = [passphrase_entry(f"other {n}", f"salt {n}") for n in range(7)] + [entry]
    yield _ok("valid-eight-passphrases", _says(recipients=eight), "passphrase")

    def bad(name: str, error: str, entries: list[dict[str, Any]], **detail: Any) -> Vector:
        return Vector(
            f"passphrase-{name}",
            _says(recipients=entries),
            "passphrase",
            expect=error,
            detail=detail,
        )

    yield bad("another", "WrongPassphrase", [passphrase_entry(PASSPHRASE + ".")])
    yield bad("too-many", "LimitExceeded", [*eight, passphrase_entry("x", "salt 9")])
    yield bad("none", "NoMatchingRecipient", [symmetric_entry()])
    for name, member, value in (
        ("passes-zero", "t", 0),
        ("passes-true", "t", True),
        ("passes-string", "t", "1"),
        ("passes-null", "t", None),
        ("lanes-zero", "p", 0),
        ("memory-below-lanes", "m", 7),
        ("memory-negative", "m", -8),
        ("memory-float", "m", 8.0),
        ("salt-short", "salt", b64(bytes(15))),
        ("salt-number", "salt", 0),
        ("encrypted-key-long", "encrypted_key", b64(bytes(48))),
    ):
        changed = [{**entry, member: value}]
        yield bad(name, "Malformed", changed, field=f"recipients[0].{member}")
    for name, member, value in (
        ("passes-above-limit", "t", 17),
        ("passes-huge", "t", 1 << 32),
        ("lanes-above-limit", "p", 17),
        ("memory-above-limit", "m", (1 << 20) + 1),
        ("memory-huge", "m", 1 << 64),
    ):
        yield bad(name, "LimitExceeded", [{**entry, member: value}])
