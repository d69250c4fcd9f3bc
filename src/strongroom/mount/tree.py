"""Several sealed models as one read-only tree of files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from strongroom.errors import UsageError
from strongroom.model.payload import FileContent
from strongroom.model.reader import SealedModel

__all__ = ["File", "Node", "Tree", "check_name"]

_MAX_NAME: Final = 255
"""Bytes of a name, as on other file systems."""


@dataclass(slots=True, eq=False)
class Node:
    """A file or a folder of a tree.

    Attributes:
        number: from 1, which is the root; the same as long as the tree is there.
        path: from the root of the tree; empty for the root.
        size: bytes of plaintext; 0 for a folder.
        children: of a folder, by name; None for a file.
        model: that the file belongs to.
        member: the path of the file in its model.
    """

    number: int
    path: str
    size: int = 0
    children: dict[str, Node] | None = None
    model: SealedModel | None = field(default=None, repr=False)
    member: str = ""

    @property
    def is_folder(self) -> bool:
        return self.children is not None

    def content(self) -> FileContent:
        """The authenticated content of a file; opened by the first who asks.

        Raises:
            IsADirectoryError: it is a folder.
            StrongroomError: the file is not what the model says, or cannot be had.
        """
        if self.model is None:
            raise IsADirectoryError(self.path)
        return self.model.content(self.member)


class File:
    """An open file of a tree. Several threads may read."""

    def __init__(self, node: Node) -> None:
        self.path = node.path
        self.size = node.size
        self._content: FileContent | None = node.content()

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill ``out`` from ``offset``; returns how many bytes that were, fewer at the end of the file.

        Raises:
            StrongroomError: and then ``out`` holds nothing that is not authentic.
        """
        if self._content is None:
            raise ValueError("I/O operation on closed file.")
        return self._content.read_into(out, offset)

    def close(self) -> None:
        """The model stays open."""
        self._content = None


def check_name(name: str) -> str:
    """``name``, if a model can have it in a tree.

    Raises:
        UsageError: it is empty, too long, ``.`` or ``..``, or holds a slash or NUL.
    """
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise UsageError(f"{name!r} cannot be the name of a file or a folder.")
    if len(name.encode("utf-8", "surrogateescape")) > _MAX_NAME:
        raise UsageError(f"The name {name[:40]}… is longer than {_MAX_NAME} bytes.")
    return name


class Tree:
    """A read-only tree of models that somebody else opens and closes.

    A model that is a directory is a folder under its name; one that is a single file is a file of that
    name. The name "", for one model alone, has the files of the model directly in the root: those of a
    directory, or the one file under the name that it was sealed with.

    Args:
        models: open models by name.

    Raises:
        UsageError: no model, or a name that cannot be one.
    """

    def __init__(self, models: Mapping[str, SealedModel]) -> None:
        if not models:
            raise UsageError("There is no model to show.")
        self._nodes: list[Node] = []
        self.root = self._add("", None)
        for name, model in models.items():
            if name == "" and len(models) == 1:
                top = self.root
            elif not model.is_directory:
                check_name(name)
                self._add_file(self.root, name, model, next(iter(model.files)))
                continue
            else:
                top = self._folder(self.root, check_name(name))
            for member in model.files:
                *folders, last = member.split("/")
                folder = top
                for one in folders:
                    folder = self._folder(folder, one)
                self._add_file(folder, last, model, member)

    def _add(self, path: str, size: int | None) -> Node:
        node = Node(len(self._nodes) + 1, path, size or 0, {} if size is None else None)
        self._nodes.append(node)
        return node

    def _folder(self, above: Node, name: str) -> Node:
        assert above.children is not None
        if name not in above.children:
            above.children[name] = self._add(_join(above.path, name), None)
        return above.children[name]

    def _add_file(self, above: Node, name: str, model: SealedModel, member: str) -> None:
        assert above.children is not None
        node = self._add(_join(above.path, name), model.files[member].size)
        node.model, node.member = model, member
        above.children[name] = node

    @property
    def size(self) -> int:
        """Bytes of plaintext of all files."""
        return sum(one.size for one in self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        """All files and folders; a folder before what is in it."""
        return iter(self._nodes)

    def numbered(self, number: int) -> Node:
        """The node of that number.

        Raises:
            FileNotFoundError: there is none.
        """
        if not 1 <= number <= len(self._nodes):
            raise FileNotFoundError(number)
        return self._nodes[number - 1]

    def node(self, path: str) -> Node:
        """What is at a path relative to the root, "" for the root.

        Raises:
            FileNotFoundError: nothing is.
            NotADirectoryError: the path leads through a file.
        """
        node = self.root
        for name in path.split("/") if path else ():
            if node.children is None:
                raise NotADirectoryError(path)
            if name not in node.children:
                raise FileNotFoundError(path)
            node = node.children[name]
        return node

    def names(self, path: str = "") -> list[str]:
        """The names in a folder.

        Raises:
            FileNotFoundError: there is no such folder.
            NotADirectoryError: it is a file.
        """
        children = self.node(path).children
        if children is None:
            raise NotADirectoryError(path)
        return list(children)

    def open(self, path: str) -> File:
        """Open a file.

        Raises:
            FileNotFoundError: there is none.
            IsADirectoryError: it is a folder.
            StrongroomError: the file is not what the model says, or cannot be had.
        """
        return File(self.node(path))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
