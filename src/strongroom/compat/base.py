"""What a codec is: one foreign format, read and perhaps written.

A codec is made for one import or export, with the key of the foreign system and the options of its
format. It streams: plaintext goes to the caller in pieces, in order, and lies in memory only. What
has gone out is worthless until the call has returned: the caller drops all of it if the call raises.
"""

from __future__ import annotations

import posixpath
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ForeignTampered, InvalidKey, UsageError
from strongroom.model.output import Output
from strongroom.model.payload import Content
from strongroom.model.reader import SealedModel
from strongroom.model.storage import Source

__all__ = ["HEAD_SIZE", "Codec", "ForeignTampered", "PlainFile", "Write"]

Write = Callable[[memoryview | bytes], Any]

HEAD_SIZE: Final = 64
"""How many first bytes of a file :meth:`Codec.recognises` gets to see."""


@dataclass(frozen=True)
class PlainFile:
    """A file that a codec has found: its path in the model, and how to have its plaintext.

    Args:
        path: relative, POSIX.
        copy_to: hands all of it to its argument, in order. When it returns, all was authentic as
            far as the format can tell; when it raises, nothing of what it gave may be used.
    """

    path: str
    copy_to: Callable[[Write], None]


class Codec(ABC):
    """One foreign format.

    Attributes:
        name: what ``--from`` and ``--to`` call it.
        title: a line for people.
        unprotected: what the format does not protect, as a sentence for people.
        options: name → what it does, for the options that the format has.
        suffix: what its files add to a name, such as ``.crt``; removed by an import.
        takes_key: whether there is a key at all.
        writes: whether there is an export.
        legacy: too weak to be written, unless somebody insists (``--insecure-legacy``).
        root: the directory whose files are read or written, as the user wrote it; None for one file.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unprotected: ClassVar[str]
    options: ClassVar[Mapping[str, str]] = {}
    suffix: ClassVar[str] = ""
    takes_key: ClassVar[bool] = True
    writes: ClassVar[bool] = False
    legacy: ClassVar[bool] = False
    root: str | None = None

    def __init__(self, key: SecretBytes | None, options: Mapping[str, str] | None = None) -> None:
        """Take the content of a key file, in whatever form the foreign system keeps it, and options.

        Raises:
            InvalidKey: it is not a key of this system, is missing, or there should be none.
            UsageError: an option that the format does not have, or a value it cannot have.
        """
        if self.takes_key and key is None:
            raise InvalidKey(f"{self.name} needs a key.", hint="Give --source-key or --target-key.")
        if not self.takes_key and key is not None:
            raise InvalidKey(f"{self.name} has no key.", hint="Leave the key out.")
        self.given = dict(options or {})
        for option in self.given:
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise UsageError(f"{self.name} has no option {option}.", hint=f"It has these: {known}.")

    @classmethod
    def key_of(cls, model: SealedModel) -> SecretBytes:
        """The key of the foreign system that is derived from a model's own.

        Raises:
            UsageError: this system has none.
        """
        raise UsageError(
            f"No key of {cls.name} is derived from that of a model.", hint="Give a key file."
        )

    def recognises(self, path: str, head: bytes) -> bool:
        """Whether a file of a directory is encrypted, by the rule of the foreign system.

        What is not is refused by an import unless the caller says that it is plain, or
        :meth:`leaves_plain` does. By default every file is.
        """
        return True

    def skips(self, path: str) -> bool:
        """Whether a file of a directory is no file of the model, but something beside one."""
        return False

    def leaves_plain(self, path: str) -> bool:
        """Whether the foreign system itself keeps a file with this name in clear."""
        return False

    def plain_path(self, path: str) -> str:
        """The path that the plaintext of a file gets in the model."""
        if self.suffix and path.endswith(self.suffix) and posixpath.basename(path) != self.suffix:
            return path.removesuffix(self.suffix)
        return path

    def foreign_path(self, path: str) -> str:
        """The path that an export of a file of a model gets."""
        return path + self.suffix

    def configuration(self, destination: str, encrypted: Sequence[str], clear: Sequence[str]) -> str:
        """What the foreign system must be told to read an export, as its configuration has it.

        Args:
            destination: where it went, as the user wrote it.
            encrypted: paths in the model of what was encrypted; empty for an export of one file.
            clear: paths of what was not.
        """
        return ""

    @abstractmethod
    def decrypt(self, source: Source, path: str) -> Sequence[PlainFile]:
        """The plaintexts in one foreign file: mostly one, called :meth:`plain_path` of ``path``.

        ``source`` stays open until they have been read. May read and check a header.

        Raises:
            FormatError: it is not of this format.
            InvalidKey, ForeignTampered: it does not open.
        """

    def encrypt(self, content: Content, destination: str, output: Output) -> None:
        """Write one file of a model to ``output`` (and leave commit and abort to the caller).

        Args:
            content: ``content.size`` bytes; ``content.copy_to(write)`` gives them in order,
                ``content.read_into(memory, offset)`` any range, from several threads.
            destination: where the file will lie, as the user wrote it.
            output: ``output.write`` takes pieces in order; a local file also has ``descriptor``
                (see :class:`strongroom.model.output.FileDescriptorOutput`) for ``os.pwrite``.
        """
        raise UsageError(f"{self.name} files can be imported, not written.")
