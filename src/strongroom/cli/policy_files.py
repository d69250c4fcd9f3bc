"""Policies in files: JSON, or TOML where the name says so."""

from __future__ import annotations

import tomllib

from strongroom.cli.attest_files import read_limited
from strongroom.cli.terminal import shown
from strongroom.errors import UsageError
from strongroom.format.encoding import parse_json
from strongroom.release.limits import MAX_POLICY
from strongroom.release.policy import Policy

__all__ = ["read_policy"]


def read_policy(path: str) -> Policy:
    """A policy of a file.

    Raises:
        UsageError: the file is neither JSON nor TOML.
        InvalidPolicy: it is no policy.
    """
    data = read_limited(path, MAX_POLICY)
    try:
        document = tomllib.loads(data.decode()) if path.endswith(".toml") else parse_json(data)
    except ValueError as error:
        raise UsageError(f"{shown(path)} {error}.") from None
    return Policy.parse(document)
