"""Gramine's encrypted files by the letter: node by node, every number computed from its definition.

Shares nothing with the codec. It can write what the codec never would: other versions, any size in the
metadata, nodes that are left over.
"""

import os
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

NODE = 4096
IV = bytes(12)


def metadata_key(wrap_key: bytes, nonce: bytes) -> bytes:
    label = b"SGX-PROTECTED-FS-METADATA-KEY"
    block = (1).to_bytes(4, "little") + label + bytes(64 - len(label)) + nonce + bytes([128, 0, 0, 0])
    cmac = CMAC(AES(wrap_key))
    cmac.update(block)
    return cmac.finalize()


def data_place(number: int) -> int:
    return number + 2 + number // 96


def mht_place(number: int) -> int:
    return 1 + 97 * number


def metadata_node(
    wrap_key: bytes,
    path: bytes,
    size: int,
    root: bytes,
    head: bytes,
    version: int = 2,
    flags: int = 0,
    nonce: bytes | None = None,
) -> bytes:
    nonce = nonce or os.urandom(32)
    plain = path.ljust(772, b"\0") + struct.pack("<Q", size) + root + head.ljust(3072, b"\0")
    sealed = AESGCM(metadata_key(wrap_key, nonce)).encrypt(IV, plain, None)
    node = b"GRAFS_PF" + bytes([version, 0]) + nonce + sealed[-16:]
    if version == 2:
        node += bytes([flags])
    return (node + sealed[:-16]).ljust(NODE, b"\0")


def seal(wrap_key: bytes, path: bytes, data: bytes, version: int = 2, size: int | None = None) -> bytes:
    """A file; with ``size`` less than the data has, as if it had been shortened afterwards."""
    body = data[3072:]
    count = -(-len(body) // NODE)
    mhts = -(-count // 96)
    file = bytearray(NODE * (1 + count + mhts))
    nodes = [bytearray(NODE) for _ in range(mhts)]

    def put(place: int, plain: bytes) -> bytes:
        key = os.urandom(16)
        sealed = AESGCM(key).encrypt(IV, plain, None)
        file[place * NODE : (place + 1) * NODE] = sealed[:NODE]
        return key + sealed[NODE:]

    for number in range(count):
        entry = put(data_place(number), body[number * NODE : (number + 1) * NODE].ljust(NODE, b"\0"))
        slot = number % 96 * 32
        nodes[number // 96][slot : slot + 32] = entry
    root = bytes(32)
    for number in reversed(range(mhts)):
        entry = put(mht_place(number), bytes(nodes[number]))
        if number:
            slot = 3072 + (number - 1) % 32 * 32
            nodes[(number - 1) // 32][slot : slot + 32] = entry
        else:
            root = entry
    size = len(data) if size is None else size
    file[:NODE] = metadata_node(wrap_key, path, size, root, data[:3072], version)
    return bytes(file)


def unseal(wrap_key: bytes, file: bytes) -> tuple[bytes, bytes]:
    """Path and plaintext."""
    assert file[:8] == b"GRAFS_PF"
    start = {1: 58, 2: 59}[file[8]]
    key = metadata_key(wrap_key, file[10:42])
    plain = AESGCM(key).decrypt(IV, file[start : start + 3884] + file[42:58], None)
    path = plain[:772].split(b"\0")[0]
    (size,) = struct.unpack("<Q", plain[772:780])
    count = max(0, -(-(size - 3072) // NODE))
    keys = {(-1, 0): plain[780:812]}
    mhts = {}

    def get(place: int, entry: bytes) -> bytes:
        sealed = file[place * NODE : (place + 1) * NODE]
        return AESGCM(entry[:16]).decrypt(IV, sealed + entry[16:], None)

    out = bytearray(plain[812:])
    for number in range(-(-count // 96)):
        parent = ((number - 1) // 32, (number - 1) % 32) if number else (-1, 0)
        mhts[number] = get(mht_place(number), keys[parent])
        for slot in range(32):
            keys[number, slot] = mhts[number][3072 + 32 * slot : 3104 + 32 * slot]
    for number in range(count):
        slot = number % 96 * 32
        out += get(data_place(number), mhts[number // 96][slot : slot + 32])
    return path, bytes(out[:size])


def log_record(number: int, node: bytes) -> bytes:
    return struct.pack("<Q", number) + node
