"""The data nodes of one group of a Gramine file, encrypted and decrypted in memory that is used again.

Every 4 KiB have a key of their own, so what is done per node decides: 2.4 µs, of which 0.9 µs make the
cipher. Slices of the buffers are made once, nothing is joined, and both buffers stay in the cache of
the processor: 1500 MiB/s on one core, where ``encrypt`` and ``decrypt`` with ``bytes`` give 500.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from strongroom.compat.gramine_nodes import DATA_NODES, GROUP, IV, KEY, NODE, TAG
from strongroom.crypto.secret import SecretBytes
from strongroom.model.memory import allocate

__all__ = ["GroupDecryptor", "GroupEncryptor", "NodeKeys", "open_node", "seal_node"]

_ENTRIES: Final = struct.Struct(f"{KEY}s{TAG}s")
_ZEROS: Final = bytes(NODE)


def open_node(entry: bytes, node: memoryview | bytes) -> bytes | None:
    """The plaintext of an MHT node under its key and tag, or None if it does not authenticate."""
    try:
        return AESGCM(entry[:KEY]).decrypt(IV, b"".join((node, entry[KEY:])), None)
    except InvalidTag:
        return None


def seal_node(key: bytes, plaintext: bytes) -> tuple[bytes, bytes]:
    """Ciphertext and tag of an MHT node."""
    sealed = AESGCM(key).encrypt(IV, plaintext, None)
    return sealed[:NODE], sealed[NODE:]


class GroupDecryptor:
    """Decrypts groups of data nodes, one after the other.

    Attributes:
        nodes: memory for an MHT node and 96 data nodes, as they lie in the file. What is in it is
            lost by :meth:`open`.
        plaintext: memory for the 96 data nodes decrypted.
    """

    def __init__(self, plaintext: memoryview | None = None) -> None:
        memory = allocate(GROUP + 2 * NODE)
        self.nodes = memory[: GROUP + NODE]
        self._slots: list[tuple[memoryview, memoryview]] = []
        # The tag has to stand behind the ciphertext. It is put over the beginning of the next
        # node, which has been decrypted by then: they are taken from the last to the first.
        for end in range(GROUP + NODE, NODE, -NODE):
            self._slots.append((memory[end - NODE : end + TAG], memory[end : end + TAG]))
        self.plaintext = memoryview(b"")
        self._outs: list[memoryview] = []
        self.use(allocate(GROUP) if plaintext is None else plaintext)

    def use(self, plaintext: memoryview) -> None:
        """Decrypt into other memory from now on: 96 × 4096 bytes."""
        self.plaintext = plaintext
        self._outs = [plaintext[end - NODE : end] for end in range(GROUP, 0, -NODE)]

    def open(self, keys: bytes, first: int, last: int) -> bool:
        """Decrypt the data nodes ``first`` … ``last`` of the group, from ``nodes`` to ``plaintext``.

        Args:
            keys: the plaintext of their MHT node.

        Returns:
            Whether all are authentic. If not, ``plaintext`` is all zeros.
        """
        begin, end = DATA_NODES - 1 - last, DATA_NODES - first
        entries = list(_ENTRIES.iter_unpack(keys[first * KEY * 2 : (last + 1) * KEY * 2]))
        entries.reverse()
        slots, outs = self._slots[begin:end], self._outs[begin:end]
        try:
            for (key, tag), (sealed, place), out in zip(entries, slots, outs, strict=True):
                place[:] = tag
                AESGCM(key).decrypt_into(IV, sealed, None, out)
        except InvalidTag:
            self.plaintext[:] = bytes(GROUP)
            return False
        return True


class NodeKeys:
    """The keys of all nodes of one file that is written: the AES-256-CTR stream of a random seed.

    That they all differ is what the zero IV rests on: the stream repeats no block. Their being
    determined lets several processes, and two passes, give the same file.
    """

    def __init__(self, seed: SecretBytes) -> None:
        self._seed = seed  # kept: a secret that nobody has any more is zeroed

    def of_group(self, number: int) -> list[bytes]:
        """97 keys: of MHT node ``number`` and of its data nodes."""
        start = number << 64
        stream = Cipher(AES(self._seed.buffer), CTR(start.to_bytes(16, "big"))).encryptor()
        keys = stream.update(bytes(KEY * (1 + DATA_NODES)))
        return [keys[at : at + KEY] for at in range(0, len(keys), KEY)]


class GroupEncryptor:
    """Encrypts groups of data nodes, one after the other.

    Attributes:
        plaintext: memory for 96 data nodes.
        nodes: memory for an MHT node and the 96 data nodes encrypted, as they lie in the file.
    """

    def __init__(self, plaintext: memoryview | None = None) -> None:
        memory = allocate(GROUP + 2 * NODE)
        self.nodes = memory[: GROUP + NODE]
        # The tag goes behind the ciphertext, where the next node will overwrite it.
        self._slots = [
            (memory[start : start + NODE + TAG], memory[start + NODE : start + NODE + TAG])
            for start in range(NODE, GROUP + NODE, NODE)
        ]
        self.plaintext = memoryview(b"")
        self._ins: list[memoryview] = []
        self.use(allocate(GROUP) if plaintext is None else plaintext)

    def use(self, plaintext: memoryview) -> None:
        """Encrypt from other memory from now on: 96 × 4096 bytes."""
        self.plaintext = plaintext
        self._ins = [plaintext[start : start + NODE] for start in range(0, GROUP, NODE)]

    def seal(self, keys: list[bytes], size: int) -> bytes:
        """Encrypt the first ``size`` bytes of ``plaintext``; the rest of a node becomes zeros.

        Args:
            keys: 96, of the data nodes.

        Returns:
            The tags of the data nodes.
        """
        count = -(-size // NODE)
        self.plaintext[size : count * NODE] = _ZEROS[: count * NODE - size]
        tags = []
        for key, plain, (out, tag) in zip(keys, self._ins[:count], self._slots, strict=False):
            AESGCM(key).encrypt_into(IV, plain, None, out)
            tags.append(bytes(tag))
        return b"".join(tags)
