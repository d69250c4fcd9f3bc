"""The one joint for extension: something wraps the DEK into the header, something gets it out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from strongroom.crypto.derive import DEK_SIZE
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import HeaderTampered, ManifestMismatch, NoMatchingRecipient, WrongPassphrase
from strongroom.format.header import Header

__all__ = ["Identity", "Recipient", "describe", "unwrap"]


_NAMED: Final = 8
"""How many recipients a message lists; a header can hold thousands."""


@runtime_checkable
class Recipient(Protocol):
    """Somebody who shall be able to open a model."""

    def wrap(self, dek: SecretBytes, header: Header) -> dict[str, Any]:
        """The member of ``recipients`` that wraps ``dek``; ``header`` has no recipients yet."""
        ...


@runtime_checkable
class Identity(Protocol):
    """Somebody who may be able to open a model."""

    def unwrap(self, header: Header) -> SecretBytes:
        """The DEK. The header is not authentic yet: its MAC is checked with the result.

        Raises:
            NoMatchingRecipient: no recipient of the header is this identity.
            WrongPassphrase: a recipient is a passphrase, and not this one.
            HeaderTampered: a recipient is this identity, and its wrapped key was changed.
            StrongroomError: whatever else went wrong on the way to the key.
        """
        ...


def describe(entry: Mapping[str, Any]) -> str:
    """One recipient in words, for messages: ``A256KW kid=…``."""
    parts = [str(entry["alg"])]
    parts += [f"{name}={entry[name]}" for name in ("kid", "uri") if name in entry]
    return " ".join(parts)


def unwrap(header: Header, identities: Sequence[Identity]) -> SecretBytes:
    """The DEK, from the first identity that a recipient matches.

    Raises:
        ManifestMismatch: the file is one of a directory, whose manifest has the recipients.
        NoMatchingRecipient, WrongPassphrase: no identity fits.
        HeaderTampered: what a recipient wraps is no DEK.
        StrongroomError: an identity fits and fails.
    """
    if not header.recipients:
        raise ManifestMismatch(
            header.path,
            "this file is part of a sealed directory and has no recipients of its own",
            hint="Open the directory that holds MANIFEST.sealed.",
        )
    wrong: WrongPassphrase | None = None
    for identity in identities:
        try:
            dek = identity.unwrap(header)
        except NoMatchingRecipient:
            continue
        except WrongPassphrase as error:
            wrong = error
        else:
            if len(dek) != DEK_SIZE:  # a public key wraps whatever anybody likes
                raise HeaderTampered(f"A recipient wraps a key of {len(dek)} bytes, not {DEK_SIZE}.")
            return dek
    if wrong is not None:
        raise wrong
    names = [describe(entry) for entry in header.recipients]
    raise NoMatchingRecipient(
        ("The given key does not open" if len(identities) == 1 else "None of the given keys opens")
        + " this model; it is sealed for: "
        + "; ".join(names[:_NAMED])
        + (f" and {len(names) - _NAMED} more." if len(names) > _NAMED else "."),
        recipients=names,
        hint="Give the key of one of these recipients.",
    )
