"""Policies in files: JSON, or TOML where the name says so."""

from __future__ import annotations

from typing import Any

from strongroom.cli.attest_files import read_limited
from strongroom.cli.terminal import shown
from strongroom.errors import InvalidPolicy, UsageError
from strongroom.release import policy_text
from strongroom.release.limits import MAX_POLICY
from strongroom.release.policy import Policy

__all__ = ["read_document", "read_policy"]


def read_document(path: str) -> dict[str, Any]:
    """The document in a file, whether or not it is a policy.

    Raises:
        UsageError: the file is neither JSON nor TOML.
    """
    data = read_limited(path, 2 * MAX_POLICY)
    try:
        return policy_text.read_policy(data, toml=path.endswith(".toml"))
    except InvalidPolicy as error:
        raise UsageError(f"{shown(path)} {error.problem}.") from None


def read_policy(path: str) -> Policy:
    """A policy of a file.

    Raises:
        UsageError: the file is neither JSON nor TOML.
        InvalidPolicy: it is no policy.
    """
    return Policy.parse(read_document(path))
