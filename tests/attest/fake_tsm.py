"""configfs-tsm as drivers/virt/coco/tsm.c of Linux 6.7 has it, in a file system in user space."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from fuse_tree import FuseTree, Node


class FakeTsm(FuseTree):
    """The directory of reports of a machine with a TEE.

    Args:
        place: where it is mounted.
        provider: name of the driver; None where there is none.
        quote: makes ``outblob`` from what was written to ``inblob``; may raise OSError.
        certificates: content of ``auxblob``; None where the driver has no such file.
    """

    def __init__(
        self,
        place: Path,
        provider: str | None,
        quote: Callable[[bytes], bytes],
        certificates: bytes | None = b"",
    ) -> None:
        super().__init__(place)
        self.provider, self.quote, self.certificates = provider, quote, certificates
        self.interfere: Callable[[Node], None] = lambda entry: None
        self.made: list[str] = []
        self._state: dict[int, dict] = {}

    def mkdir(self, node: Node) -> None:
        if self.provider is None:
            raise OSError(errno.ENXIO, "")
        self.made.append(node.name)
        state = self._state[node.number] = {"in": b"", "written": 0, "read": 0, "out": None}
        self.add(node, "provider", lambda: f"{self.provider}\n".encode())
        self.add(node, "generation", lambda: f"{state['written']}\n".encode())
        self.add(node, "inblob", lambda: b"")
        self.add(node, "outblob", lambda: self._report(node))
        if self.certificates is not None:
            self.add(node, "auxblob", lambda: (self._report(node), self.certificates)[1])

    def closed(self, node: Node, written: bytes) -> None:
        """The blob is taken when its file is closed, however many writes it came in."""
        if node.name != "inblob":
            raise OSError(errno.EACCES, "")
        if len(written) > 64:
            raise OSError(errno.EFBIG, "")
        assert node.parent is not None
        self.write(node.parent, written)

    def write(self, entry: Node, blob: bytes) -> None:
        state = self._state[entry.number]
        state["in"] = blob
        state["written"] += 1

    def _report(self, entry: Node) -> bytes:
        state = self._state[entry.number]
        if not state["in"]:
            raise OSError(errno.EINVAL, "")
        if state["out"] is None or state["read"] != state["written"]:
            # tdx_guest: tdx_report_new; other lengths are refused there, and not before.
            if len(state["in"]) != 64:
                raise OSError(errno.EINVAL, "")
            self.interfere(entry)
            state["out"] = self.quote(state["in"])
            state["read"] = state["written"]
        return state["out"]
