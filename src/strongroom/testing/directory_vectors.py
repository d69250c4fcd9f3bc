"""Vectors about sealed directories: the manifest, and whether the files are those that it names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from strongroom.testing.raw import (
    BUNDLE,
    Vector,
    area,
    b64,
    header,
    pattern,
    segments,
    symmetric_entry,
    to_json,
)

__all__ = ["vectors"]

PLAIN = {
    "1/model.bin": pattern("1/model.bin", 100),
    "config.pbtxt": b'name: "test"\n',
    "größe.bin": pattern("größe.bin", 10),
}
CLEAR = ("config.pbtxt",)
MANIFEST = "MANIFEST.sealed"
MODEL = "1/model.bin.sealed"


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from _valid()
    yield from _manifests()
    yield from _entries()
    yield from _files()
    yield from _places()


def _salt(path: str, label: str = "") -> bytes:
    return segments(b"", path, label=label)[0][1:33]


def _entry(path: str, plain: bytes, **members: Any) -> dict[str, Any]:
    if path in CLEAR:
        own = {"path": path, "size": len(plain), "sha256": hashlib.sha256(plain).hexdigest()}
    else:
        own = {"path": path, "size": len(plain), "salt": b64(_salt(path))}
    return {name: value for name, value in {**own, **members}.items() if value is not ...}


def _manifest() -> dict[str, Any]:
    return {"v": 1, "files": [_entry(path, plain) for path, plain in sorted(PLAIN.items())]}


def _sealed_manifest(content: Any) -> bytes:
    raw = content if isinstance(content, bytes) else to_json(content)
    return area(header(path="MANIFEST")) + b"".join(segments(raw, "MANIFEST"))


def _member(path: str, plain: bytes, *, label: str = "", bundle: bytes = BUNDLE, **said: Any) -> bytes:
    members = {"path": path, "recipients": [], "meta": {}, "bundle": b64(bundle), **said}
    payload = segments(plain, path, label=label, bundle=bundle)
    return area(header(**members), bundle=bundle) + b"".join(payload)


def _directory(manifest: Any = None, **changes: bytes | None) -> dict[str, bytes]:
    """A sealed directory; ``changes`` replaces, adds or (None) removes files."""
    files: dict[str, bytes | None] = {
        MANIFEST: _sealed_manifest(_manifest() if manifest is None else manifest)
    }
    for path, plain in PLAIN.items():
        if path in CLEAR:
            files[path] = plain
        else:
            files[f"{path}.sealed"] = _member(path, plain)
    return {path: data for path, data in {**files, **changes}.items() if data is not None}


def _bad(name: str, files: Mapping[str, bytes], error: str, **detail: Any) -> Vector:
    return Vector(f"directory-{name}", files, expect=error, detail=detail)


def _valid() -> Iterator[Vector]:
    yield Vector("valid-directory", _directory(), plain=PLAIN)
    extra = _directory(**{"README.md": b"not part of the model\n"})
    yield Vector("valid-directory-extra-clear-file", extra, plain=PLAIN)
    everything_sealed = {"a": b"", "a.b": b"1", "a/b": b"2"}
    del everything_sealed["a"]
    manifest = {"v": 1, "files": [_entry(p, d) for p, d in sorted(everything_sealed.items())]}
    files = {f"{p}.sealed": _member(p, d) for p, d in everything_sealed.items()}
    files[MANIFEST] = _sealed_manifest(manifest)
    yield Vector("valid-directory-order-by-code-point", files, plain=everything_sealed)


def _manifests() -> Iterator[Vector]:
    good = _manifest()
    raw = to_json(good)
    files = good["files"]
    for name, manifest, error, field in (
        ("version-2", {**good, "v": 2}, "UnsupportedVersion", None),
        ("version-true", {**good, "v": True}, "Malformed", "manifest.v"),
        ("version-string", {**good, "v": "1"}, "Malformed", "manifest.v"),
        ("version-missing", {"files": files}, "Malformed", "manifest.v"),
        ("unknown-member", {**good, "meta": {}}, "Malformed", "manifest"),
        ("files-missing", {"v": 1}, "Malformed", "manifest"),
        ("files-object", {"v": 1, "files": {}}, "Malformed", "files"),
        ("not-json", raw[:-1], "Malformed", "manifest"),
        ("empty", b"", "Malformed", "manifest"),
        ("byte-order-mark", b"\xef\xbb\xbf" + raw, "Malformed", "manifest"),
        ("not-utf-8", raw.replace(b"model", b"m\xffdel"), "Malformed", "manifest"),
        ("array", b"[]", "Malformed", "manifest"),
        ("duplicate-member", raw.replace(b'"v":1', b'"v":1,"v":1'), "Malformed", "manifest"),
        (
            "duplicate-in-entry",
            raw.replace(b'"size":100', b'"size":99,"size":100'),
            "Malformed",
            "manifest",
        ),
        ("nested", raw.replace(b"100", b"[" * 40 + b"]" * 40), "Malformed", "manifest"),
        ("unsorted", {"v": 1, "files": files[::-1]}, "Malformed", "files"),
        ("duplicate-path", {"v": 1, "files": [files[0], *files]}, "Malformed", "files"),
    ):
        detail = {} if field is None else {"field": field}
        yield _bad(f"manifest-{name}", _directory(manifest), error, **detail)


def _first(**members: Any) -> dict[str, Any]:
    files = _manifest()["files"]
    changed = {name: value for name, value in {**files[0], **members}.items() if value is not ...}
    return {"v": 1, "files": [changed, *files[1:]]}


def _entries() -> Iterator[Vector]:
    digest = hashlib.sha256(PLAIN["1/model.bin"]).hexdigest()
    salt = b64(_salt("1/model.bin"))
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "path-parent": ({"path": "../model.bin"}, "files[0].path"),
        "path-absolute": ({"path": "/model.bin"}, "files[0].path"),
        "path-empty-part": ({"path": "1//model.bin"}, "files[0].path"),
        "path-backslash": ({"path": "1\\model.bin"}, "files[0].path"),
        "path-not-nfc": ({"path": "1/u\u0308.bin"}, "files[0].path"),
        "path-too-long": ({"path": "1" * 1025}, "files[0].path"),
        "path-number": ({"path": 1}, "files[0].path"),
        "path-missing": ({"path": ...}, "files[0].path"),
        "path-reserved": ({"path": "MANIFEST"}, "files[0].path"),
        "size-negative": ({"size": -1}, "files[0].size"),
        "size-true": ({"size": True}, "files[0].size"),
        "size-float": ({"size": 100.0}, "files[0].size"),
        "size-huge": ({"size": 1 << 80}, "files[0].size"),
        "size-missing": ({"size": ...}, "files[0].size"),
        "salt-not-canonical": ({"salt": salt[:-1] + "_"}, "files[0].salt"),
        "salt-padded": ({"salt": salt + "="}, "files[0].salt"),
        "salt-short": ({"salt": salt[:-3]}, "files[0].salt"),
        "salt-null": ({"salt": None}, "files[0].salt"),
        "salt-and-sha256": ({"sha256": digest}, "files[0]"),
        "neither-salt-nor-sha256": ({"salt": ...}, "files[0]"),
        "unknown-member": ({"mode": 420}, "files[0]"),
        "sha256-upper-case": ({"salt": ..., "sha256": digest.upper()}, "files[0].sha256"),
        "sha256-short": ({"salt": ..., "sha256": digest[:-2]}, "files[0].sha256"),
        "sha256-number": ({"salt": ..., "sha256": 0}, "files[0].sha256"),
        "clear-file-in-the-place-of-the-manifest": (
            {"path": MANIFEST, "salt": ..., "sha256": digest},
            "files",
        ),
    }
    for name, (members, field) in cases.items():
        if name.startswith("clear-file"):
            manifest = _first(**members)
            manifest["files"].sort(key=lambda entry: entry["path"])
        else:
            manifest = _first(**members)
        yield _bad(f"entry-{name}", _directory(manifest), "Malformed", field=field)
    string = {"v": 1, "files": ["1/model.bin"]}
    yield _bad("entry-string", _directory(string), "Malformed", field="files[0]")
    for name, entries in (
        ("file-above-file", [_entry("1", b""), _entry("1/model.bin", b"")]),
        (
            "sealed-and-clear-under-one-name",
            [_entry("x", b""), {"path": "x.sealed", "size": 0, "sha256": digest}],
        ),
        (
            "sealed-file-above-file",
            [_entry("x", b""), {"path": "x.sealed/y", "size": 0, "sha256": digest}],
        ),
    ):
        manifest = {"v": 1, "files": entries}
        yield _bad(name, _directory(manifest), "Malformed", field="files")


def _files() -> Iterator[Vector]:
    plain = PLAIN["1/model.bin"]
    other_bundle = pattern("another bundle", 16)

    def mismatch(name: str, files: Mapping[str, bytes], path: str = "1/model.bin") -> Vector:
        return _bad(name, files, "ManifestMismatch", path=path)

    def with_model(content: bytes) -> dict[str, bytes]:
        return _directory(**{MODEL: content})

    yield mismatch("sealed-file-missing", _directory(**{MODEL: None}))
    yield mismatch("clear-file-missing", _directory(**{"config.pbtxt": None}), "config.pbtxt")
    extra = _directory(**{"2/model.bin.sealed": _member("2/model.bin", plain)})
    yield mismatch("sealed-file-extra", extra, "2/model.bin.sealed")
    yield mismatch(
        "file-of-another-bundle", with_model(_member("1/model.bin", plain, bundle=other_bundle))
    )
    yield mismatch("file-older", with_model(_member("1/model.bin", plain, label="older ")))
    yield mismatch("file-of-another-path", with_model(_member("größe.bin", PLAIN["größe.bin"])))
    yield mismatch("file-size", with_model(_member("1/model.bin", plain + b"x")))
    yield mismatch(
        "clear-file-changed", _directory(**{"config.pbtxt": b'name: "tesT"\n'}), "config.pbtxt"
    )
    yield mismatch("clear-file-size", _directory(**{"config.pbtxt": b'name: "te"\n'}), "config.pbtxt")
    yield _bad(
        "file-with-recipients",
        with_model(_member("1/model.bin", plain, recipients=[symmetric_entry()])),
        "Malformed",
        field="recipients",
    )
    good = _member("1/model.bin", plain)
    forged = area(header(path="1/model.bin", recipients=[], meta={}), dek=pattern("DEK 2", 32))
    yield _bad("file-header-tampered", with_model(forged + good[4096:]), "HeaderTampered")
    changed = good[:-1] + bytes([good[-1] ^ 1])
    yield _bad(
        "file-payload-tampered",
        with_model(changed),
        "PayloadTampered",
        path="1/model.bin",
        segments=[0],
    )
    yield Vector(
        "directory-file-truncated",
        with_model(good[:4100]),
        expect="Truncated",
        inspect=True,
    )
    yield Vector("directory-file-empty", with_model(b""), expect="NotSealed", inspect=True)
    yield Vector("directory-file-in-clear", with_model(plain), expect="NotSealed", inspect=True)
    malformed = _member("1/model.bin", plain, meta=[])
    yield Vector(
        "directory-file-malformed",
        with_model(malformed),
        expect="Malformed",
        detail={"field": "meta"},
        inspect=True,
    )


def _places() -> Iterator[Vector]:
    without = _directory(**{MANIFEST: None})
    yield Vector("directory-without-manifest", without, expect="NotSealed", inspect=True)
    single = area(header()) + b"".join(segments(b"{}"))
    yield _bad(
        "manifest-is-another-file",
        _directory(**{MANIFEST: single}),
        "ManifestMismatch",
        path="MANIFEST",
    )
    manifest = _sealed_manifest(_manifest())
    flipped = manifest[:-1] + bytes([manifest[-1] ^ 1])
    yield _bad(
        "manifest-tampered",
        _directory(**{MANIFEST: flipped}),
        "PayloadTampered",
        path="MANIFEST",
        segments=[0],
    )
    cut = manifest[:4096]
    yield Vector(
        "directory-manifest-truncated",
        _directory(**{MANIFEST: cut}),
        expect="Truncated",
        inspect=True,
    )
    alone = area(header(path="MANIFEST", recipients=[])) + manifest[4096:]
    yield _bad(
        "manifest-without-recipients",
        _directory(**{MANIFEST: alone}),
        "ManifestMismatch",
        path="MANIFEST",
    )
    yield Vector("manifest-opened-as-a-file", manifest, expect="UsageError")
    yield Vector(
        "file-of-a-directory-opened-alone",
        _member("1/model.bin", PLAIN["1/model.bin"]),
        expect="ManifestMismatch",
        detail={"path": "1/model.bin"},
    )
    other = {"v": 1, "files": []}
    yield _bad("manifest-of-no-files", _directory(other), "ManifestMismatch", path="1/model.bin.sealed")
