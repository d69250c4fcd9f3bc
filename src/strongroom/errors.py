"""The error tree. Every failure of strongroom is one of these; nothing is signalled by a return value.

::

    StrongroomError                     exit code
    ├── UsageError                      2   the call itself is wrong
    │   ├── NotFound                        (also a FileNotFoundError)
    │   ├── AlreadyExists                   (also a FileExistsError)
    │   ├── MissingExtra                    an optional dependency is not installed
    │   └── UnknownFramework                no loader fits, or several do
    ├── FormatError                     3   the bytes are not what they should be
    │   ├── NotSealed                       no sealed file or sealed model here
    │   ├── UnsupportedVersion              written by a newer format
    │   ├── Malformed                       breaks a rule of the format (``.field``)
    │   └── LimitExceeded                   larger than a reader accepts
    ├── AccessError                     4   no key, or release denied
    │   ├── NoKey                           no key was given at all
    │   ├── InvalidKey                      a key, key file or recipient that cannot be used
    │   ├── NoMatchingRecipient             sealed for others (``.recipients``)
    │   ├── WrongPassphrase                 sealed under another passphrase
    │   ├── ReleaseDenied                   the key server refuses (``.code``)
    │   └── NotAuthorised                   who asks may not do this
    ├── IntegrityError                  5   tampered or truncated
    │   ├── HeaderTampered
    │   ├── PayloadTampered                 (``.path``, ``.segment``)
    │   ├── Truncated
    │   ├── ManifestMismatch                a file is not the one the manifest names (``.path``)
    │   ├── ForeignTampered                 a file of another system: damaged, or another key
    │   ├── UntrustedAnswer                 an answer not signed by the key server that is expected
    │   └── AuditBroken                     the chain of audit records does not hold
    ├── EvidenceError                   6   evidence or policy
    │   ├── MalformedEvidence               not what its kind says
    │   ├── NotAuthentic                    a signature, chain, date or revocation list speaks against it
    │   ├── MissingEndorsement              what would vouch for it is not at hand
    │   ├── NotAcceptable                   authentic, and not what the policy wants (``.reasons``)
    │   └── InvalidPolicy                   a policy that cannot be one (``.path``)
    └── Unavailable                     7   a retry may help
        ├── StorageError                    disk full, I/O error (also an OSError)
        ├── ServerUnavailable               the key server or cache does not answer
        └── SourceChanged                   a plaintext file changed while it was sealed

A message is one sentence that says what is wrong; ``hint`` says what to do about it.
No message and no attribute ever holds key material or plaintext of a payload.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

__all__ = [
    "AccessError",
    "AlreadyExists",
    "AuditBroken",
    "EvidenceError",
    "ForeignTampered",
    "FormatError",
    "HeaderTampered",
    "IntegrityError",
    "InvalidKey",
    "InvalidPolicy",
    "LimitExceeded",
    "Malformed",
    "MalformedEvidence",
    "ManifestMismatch",
    "MissingEndorsement",
    "MissingExtra",
    "NoKey",
    "NoMatchingRecipient",
    "NotAcceptable",
    "NotAuthentic",
    "NotAuthorised",
    "NotFound",
    "NotSealed",
    "PayloadTampered",
    "ReleaseDenied",
    "ServerUnavailable",
    "SourceChanged",
    "StorageError",
    "StrongroomError",
    "Truncated",
    "Unavailable",
    "UnknownFramework",
    "UnsupportedVersion",
    "UntrustedAnswer",
    "UsageError",
    "WrongPassphrase",
    "os_errors",
    "printable",
]


def printable(text: str) -> str:
    """``text`` with control characters and what is not UTF-8 as escapes.

    Names, recipients and metadata come from files that somebody else may have made; printed as
    they are, they could steer a terminal or forge a line of a log.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class StrongroomError(Exception):
    """Base of every error that strongroom raises on purpose.

    Attributes:
        hint: what a person can do about it, or None.
        exit_code: what the command line exits with.
    """

    exit_code: ClassVar[int] = 70

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = printable(message)
        self.hint = hint if hint is None else printable(hint)
        super().__init__(self.message)

    # The default would call __init__ with the message alone, in the other process.
    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.message, dict(self.__dict__))

    def within(self, path: str) -> None:
        """Say which file of a model this is about, unless the message does already."""
        if path not in self.message:
            self.message = printable(f"{path}: {self.message}")

    # OSError among the bases would print "[Errno …]"; the message alone is the sentence.
    def __str__(self) -> str:
        return self.message


def _restore(kind: type[StrongroomError], message: str, state: dict[str, Any]) -> StrongroomError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class UsageError(StrongroomError):
    """The call itself is wrong: arguments that contradict each other, a name that is not allowed."""

    exit_code = 2


class NotFound(UsageError, FileNotFoundError):
    """There is nothing at the given path or URL."""


class AlreadyExists(UsageError, FileExistsError):
    """The destination is there already and overwriting it was not asked for."""


class MissingExtra(UsageError, ImportError):
    """An optional dependency is needed for this and is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs packages that are not installed.",
            hint=f'pip install "strongroom[{extra}]"',
        )
        self.extra = extra


class UnknownFramework(UsageError):
    """No loader fits the files of the model, or several do."""


class FormatError(StrongroomError):
    """The bytes are not what the format says."""

    exit_code = 3


class NotSealed(FormatError):
    """There is no sealed file or sealed model at the given place."""


class UnsupportedVersion(FormatError):
    """The file says a format version that this release does not know."""


class Malformed(FormatError):
    """The file breaks a rule of the format; ``field`` names the part that does."""

    def __init__(self, field: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"Malformed sealed file: {field} {problem}.", hint=hint)
        self.field = field
        self.problem = problem


class LimitExceeded(FormatError):
    """A size or count in the file is above what a reader accepts."""


class AccessError(StrongroomError):
    """The model cannot be opened with the keys at hand."""

    exit_code = 4


class NoKey(AccessError):
    """No key was given, by argument or by environment."""


class InvalidKey(AccessError):
    """A key, key file or recipient that cannot be used as one."""


class NoMatchingRecipient(AccessError):
    """None of the given keys is among the recipients; ``recipients`` describes those that are."""

    def __init__(
        self, message: str, *, recipients: Sequence[str] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.recipients = tuple(recipients)


class WrongPassphrase(AccessError):
    """The model is sealed under a passphrase, and not under this one."""


class ReleaseDenied(AccessError):
    """The key server does not release the key; ``code`` is its reason, for programs.

    What exactly was not acceptable is in the audit trail of the server, and nowhere else.
    """

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class NotAuthorised(AccessError):
    """Who asks is not known, or may not do this."""


class IntegrityError(StrongroomError):
    """Authentication failed: the sealed data was changed, cut or exchanged."""

    exit_code = 5


class HeaderTampered(IntegrityError):
    """The header does not authenticate under the model's key."""


class PayloadTampered(IntegrityError):
    """A segment does not authenticate; ``path`` and ``segment`` say which."""

    def __init__(self, path: str, segment: int, detail: str = "") -> None:
        super().__init__(
            f"{path}: segment {segment} does not authenticate{detail}.",
            hint="Fetch the sealed file again from where it was published; do not use this copy.",
        )
        self.path = path
        self.segment = segment


class Truncated(IntegrityError):
    """The sealed data ends too early."""


class ManifestMismatch(IntegrityError):
    """A file of a sealed directory is not the one that the manifest names."""

    def __init__(self, path: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {problem}.", hint=hint)
        self.path = path


class ForeignTampered(IntegrityError):
    """A file that another system encrypted does not authenticate: it was changed, or the key is another."""


class UntrustedAnswer(IntegrityError):
    """An answer is not signed by the key server that is expected, or is about something else."""


class AuditBroken(IntegrityError):
    """The chain of audit records does not hold: one was changed, left out, added or cut off."""


class EvidenceError(StrongroomError):
    """Evidence is not authentic, or a policy does not accept it."""

    exit_code = 6


class MalformedEvidence(EvidenceError):
    """The evidence is not what its kind says, or larger than what is accepted."""


class NotAuthentic(EvidenceError):
    """A signature, a certificate chain, a date or a revocation list speaks against the evidence."""


class MissingEndorsement(EvidenceError):
    """What would vouch for the evidence is not at hand: a certificate, collateral, a revocation list."""


class NotAcceptable(EvidenceError):
    """The evidence is authentic, and not what the policy wants; ``reasons`` says why, in words."""

    def __init__(self, message: str, *, reasons: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reasons = tuple(map(printable, reasons))


class InvalidPolicy(EvidenceError):
    """A policy that cannot be one; ``path`` names the member, such as ``any[0].mr_td``."""

    def __init__(self, path: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"The policy is not valid: {path} {problem}.", hint=hint)
        self.path = path
        self.problem = problem


class Unavailable(StrongroomError):
    """Something outside is not available now; a retry may help."""

    exit_code = 7


class StorageError(Unavailable, OSError):
    """Reading or writing failed in the system: disk full, I/O error, connection lost."""


class ServerUnavailable(Unavailable):
    """The key server or the key cache does not answer, or says that it cannot now."""


class SourceChanged(Unavailable):
    """A plaintext file changed while it was being sealed."""


# No retry helps against these, unlike a full disk or a lost connection.
_OF_THE_CALLER = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EROFS)


@contextmanager
def os_errors(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError of the block into this tree, naming ``where``."""
    try:
        yield
    except StrongroomError:
        raise
    except FileNotFoundError as error:
        parent = os.path.dirname(os.fspath(where))
        # Who writes a new file knows that it is not there.
        lacking = parent and "://" not in parent and not os.path.lexists(parent)
        hint = f"There is no directory {parent}." if lacking else None
        raise NotFound(f"{where}: no such file or directory.", hint=hint) from error
    except FileExistsError as error:
        raise AlreadyExists(f"{where} exists already.") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise UsageError(f"{where}: {os.strerror(error.errno or 0).lower()}.") from error
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        if error.errno in _OF_THE_CALLER:
            raise UsageError(f"{where}: {reason}.") from error
        hint = "Free some space and run it again." if error.errno == errno.ENOSPC else None
        raise StorageError(f"{where}: {reason}.", hint=hint) from error
