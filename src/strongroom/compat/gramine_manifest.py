"""The lines of a Gramine manifest that make an application see what was exported for it.

Gramine compares the path in an encrypted file with the URI of the mount, followed by the path below the
mount point, as text. So the URI is what the files were bound to, wherever they are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["manifest_lines"]


def manifest_lines(
    uri: str, mount: str, key_name: str, encrypted: Sequence[str], clear: Sequence[str]
) -> str:
    """``fs.mounts``, and ``sgx.trusted_files`` for what is in clear, in TOML.

    Args:
        uri: the host path that files are bound to, normalised: of the file, or of the directory.
        mount: where the application sees it.
        key_name: of the wrap key.
        encrypted: paths in the directory; empty for one file.
        clear: paths in the directory of what is not encrypted.
    """
    encryption = {"type": "encrypted", "key_name": key_name}
    if not clear:
        return _array("fs.mounts", [_table({"path": mount, "uri": f"file:{uri}"} | encryption)])
    # In an encrypted mount, all files are: here each has its own.
    mounts = [
        _table({"path": f"{mount}/{path}", "uri": f"file:{uri}/{path}"} | kind)
        for paths, kind in ((encrypted, encryption), (clear, {}))
        for path in paths
    ]
    trusted = [_text(f"file:{uri}/{path}") for path in clear]
    return _array("fs.mounts", mounts) + _array("sgx.trusted_files", trusted)


def _array(name: str, entries: Iterable[str]) -> str:
    return f"{name} = [\n" + "".join(f"  {one},\n" for one in entries) + "]\n"


def _table(members: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{name} = {_text(value)}" for name, value in members.items()) + " }"


def _text(value: str) -> str:
    # The escapes of JSON are TOML's, but for DEL, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
