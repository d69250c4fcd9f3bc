"""Nodes of Gramine's encrypted files: where they lie, what the first one holds. Bytes in, numbers out.

A file is a row of nodes of 4096 bytes: the metadata node, then groups of one node of keys (MHT node, of
a Merkle hash tree) and its 96 data nodes. Each is encrypted with AES-128-GCM under a key of its own,
which lies with its tag in the node above; the root's lie in the metadata node, and that is encrypted
under a key derived from the wrap key.
"""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, FormatError, UnsupportedVersion

__all__ = [
    "CHILDREN",
    "DATA_NODES",
    "ENTRY",
    "GROUP",
    "HEAD",
    "IV",
    "KEY",
    "MAGIC",
    "MAX_PATH",
    "NODE",
    "TAG",
    "Metadata",
    "data_count",
    "has_children",
    "key_nodes",
    "metadata_key",
    "node_count",
    "normal_path",
    "pending_write",
    "physical",
]

NODE: Final = 4096
MAGIC: Final = b"GRAFS_PF"
IV: Final = bytes(12)
"""No node key is ever used twice, so the IV need not differ."""

KEY: Final = 16
TAG: Final = 16
ENTRY: Final = KEY + TAG
HEAD: Final = 3072
"""Bytes of the file that lie in the metadata node."""

DATA_NODES: Final = 96
CHILDREN: Final = 32
GROUP: Final = DATA_NODES * NODE
"""Bytes of the file below one MHT node."""

MAX_PATH: Final = 771
_PATH_FIELD: Final = MAX_PATH + 1
_FIXED: Final = struct.Struct("<8sBB32s16s")
_FIELDS: Final = struct.Struct(f"<{_PATH_FIELD}sQ{KEY}s{TAG}s{HEAD}s")
_PENDING: Final = 1
_LABEL: Final = b"SGX-PROTECTED-FS-METADATA-KEY"
_NONCE: Final = 32


def data_count(size: int) -> int:
    """Data nodes of a file of ``size`` bytes."""
    return max(0, -(-(size - HEAD) // NODE))


def key_nodes(size: int) -> int:
    """MHT nodes of a file of ``size`` bytes."""
    return -(-data_count(size) // DATA_NODES)


def node_count(size: int) -> int:
    """All nodes of a file of ``size`` bytes."""
    return 1 + data_count(size) + key_nodes(size)


def physical(number: int) -> int:
    """Place of MHT node ``number`` in the file, in nodes; its data nodes follow it."""
    return 1 + (1 + DATA_NODES) * number


def has_children(number: int, count: int) -> bool:
    """Whether MHT node ``number`` of ``count`` has other MHT nodes below it."""
    return CHILDREN * number + 1 < count


def metadata_key(wrap_key: SecretBytes, nonce: bytes) -> SecretBytes:
    """The key of the metadata node (NIST SP 800-108 in counter mode, with AES-CMAC)."""
    cmac = CMAC(AES(wrap_key.buffer))
    cmac.update(struct.pack("<I64s32sI", 1, _LABEL, nonce, 8 * KEY))
    return SecretBytes.take(cmac.finalize())


def normal_path(path: bytes) -> bytes:
    """As Gramine's ``get_norm_path``: without empty and ``.`` parts, ``..`` resolved as text."""
    absolute = path.startswith(b"/")
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if part != b"..":
            parts.append(part)
        elif parts and parts[-1] != b"..":
            parts.pop()
        elif not absolute:
            parts.append(part)
    return b"/" * absolute + b"/".join(parts)


def pending_write(node: bytes) -> bool:
    """Whether the metadata node says that a write was under way. Nothing authenticates that."""
    return node[8] == 2 and bool(node[_FIXED.size] & _PENDING)


@dataclass(frozen=True)
class Metadata:
    """What the metadata node says once it is decrypted.

    Args:
        path: that the file is bound to, normalised; bytes, not always UTF-8.
        size: bytes of plaintext.
        root: key and tag of MHT node 0; without meaning in a file of at most 3072 bytes.
        head: the first 3072 bytes of the file; what is beyond ``size`` has no meaning.
    """

    path: bytes
    size: int
    root: bytes
    head: bytes

    @classmethod
    def open(cls, node: bytes, wrap_key: SecretBytes, name: str) -> tuple[Metadata, int]:
        """Decrypt a metadata node; also gives the major version.

        Raises:
            FormatError, UnsupportedVersion: it is no such node.
            ForeignTampered: it does not authenticate.
        """
        if len(node) != NODE or not node.startswith(MAGIC):
            raise FormatError(
                f"{name} is not an encrypted file of Gramine.",
                hint=f"Such a file begins with {MAGIC.decode()}.",
            )
        _, major, _, nonce, tag = _FIXED.unpack_from(node)
        if major not in (1, 2):
            raise UnsupportedVersion(
                f"{name} is an encrypted file of Gramine in version {major}; known are 1 and 2."
            )
        start = _FIXED.size + (major == 2)
        fields = None
        with metadata_key(wrap_key, nonce) as key, contextlib.suppress(InvalidTag):
            fields = AESGCM(key.buffer).decrypt(IV, node[start : start + _FIELDS.size] + tag, None)
        if fields is None:
            raise ForeignTampered(
                f"{name} does not authenticate under this wrap key.",
                hint="The key is another, or the file was damaged.",
            )
        return cls.parse(fields, name), major

    @classmethod
    def parse(cls, fields: bytes, name: str) -> Metadata:
        """The decrypted fields.

        Raises:
            FormatError: the path has no end.
        """
        path, size, key, tag, head = _FIELDS.unpack(fields)
        path, end, _ = path.partition(b"\0")
        if not end:
            raise FormatError(f"{name}: the path in it has no end.")
        return cls(path, size, key + tag, head)

    def seal(self, wrap_key: SecretBytes, version: int, nonce: bytes) -> bytes:
        """The metadata node. ``nonce``: 32 random bytes, new for every node that is written."""
        root = self.root
        fields = _FIELDS.pack(self.path, self.size, root[:KEY], root[KEY:], self.head)
        with metadata_key(wrap_key, nonce) as key:
            sealed = AESGCM(key.buffer).encrypt(IV, fields, None)
        node = _FIXED.pack(MAGIC, version, 0, nonce, sealed[-TAG:])
        if version == 2:
            node += b"\0"
        return (node + sealed[:-TAG]).ljust(NODE, b"\0")
