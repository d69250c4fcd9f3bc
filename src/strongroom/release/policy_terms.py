"""The parts of a policy besides its requirements: leases, versions, bundles, who approves changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from strongroom.attest.requirements_values import boolean, entries, integer, mapping, unknown_member
from strongroom.crypto.derive import BUNDLE_SIZE
from strongroom.errors import InvalidPolicy, UsageError
from strongroom.format.encoding import unb64url_text
from strongroom.release.limits import (
    DEFAULT_ATTEST_AGAIN,
    DEFAULT_LEASE,
    MAX_ATTEST_AGAIN,
    MAX_LEASE,
    MIN_LEASE,
)
from strongroom.release.names import check_name

__all__ = [
    "Approvals",
    "LeaseTerms",
    "Versions",
    "parse_approvals",
    "parse_bundles",
    "parse_lease",
    "parse_versions",
]

_MAX_HOLDERS: Final = 10**6
_MAX_KEY_VERSION: Final = 10**9
_MAX_APPROVERS: Final = 64
_ED25519_SIZE: Final = 32


def _object(value: object, path: str, known: Collection[str]) -> Mapping[str, Any]:
    members = mapping(value, path)
    for name in members:
        if name not in known:
            raise unknown_member(name, known, path)
    return members


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """On what terms a key is given.

    Attributes:
        seconds: how long it may be held.
        max_holders: machines that may hold it at once; None sets no limit.
        renew: whether a holder may ask for more without attesting again.
        attest_again_after: seconds after which a holder must attest again, however often it renews.
    """

    seconds: int = DEFAULT_LEASE
    max_holders: int | None = None
    renew: bool = True
    attest_again_after: int = DEFAULT_ATTEST_AGAIN


def parse_lease(value: object, path: str) -> LeaseTerms:
    """Read the member ``lease``."""
    given = _object(value, path, ("seconds", "max_holders", "renew", "attest_again_after"))
    members: dict[str, Any] = {}
    for name, least, most in (
        ("seconds", MIN_LEASE, MAX_LEASE),
        ("max_holders", 1, _MAX_HOLDERS),
        ("attest_again_after", MIN_LEASE, MAX_ATTEST_AGAIN),
    ):
        if name in given:
            members[name] = integer(least, most)(given[name], f"{path}.{name}")
    if "renew" in given:
        members["renew"] = boolean(given["renew"], f"{path}.renew")
    terms = LeaseTerms(**members)
    if terms.attest_again_after < terms.seconds:
        if "attest_again_after" in given:
            raise InvalidPolicy(f"{path}.attest_again_after", "is shorter than the lease")
        terms = LeaseTerms(**members, attest_again_after=terms.seconds)
    return terms


@dataclass(frozen=True, slots=True)
class Versions:
    """Which versions of a key may be given: the current one, some by number, or all from one on."""

    current: bool = True
    numbers: frozenset[int] = field(default=frozenset())
    least: int | None = None

    def allow(self, version: int, current: int) -> bool:
        """Whether ``version`` may be given while ``current`` is the current one.

        From ``least`` on means up to the current one: a version that is not in use yet is not given.
        """
        if self.least is not None and self.least <= version <= current:
            return True
        return version in self.numbers or (self.current and version == current)

    def to_json(self) -> Any:
        """As in the document."""
        if self.least is not None:
            return {"min": self.least}
        return [*(["current"] if self.current else []), *sorted(self.numbers)]


def _version(value: object, path: str) -> int | str:
    if value == "current":
        return "current"
    if isinstance(value, str):
        raise InvalidPolicy(path, 'is neither "current" nor the number of a version')
    number: int = integer(1, _MAX_KEY_VERSION)(value, path)
    return number


def parse_versions(value: object, path: str) -> Versions:
    """Read the member ``versions``: ``["current", 3]`` or ``{"min": 2}``."""
    if isinstance(value, Mapping):
        members = _object(value, path, ("min",))
        return Versions(False, least=integer(1, _MAX_KEY_VERSION)(members["min"], f"{path}.min"))
    if not isinstance(value, list):
        raise InvalidPolicy(path, 'is neither a list of versions nor {"min": number}')
    listed = entries(value, path, _version)
    numbers = frozenset(one for one in listed if isinstance(one, int))
    return Versions("current" in listed, numbers)


def _bundle(value: object, path: str) -> bytes:
    return _bytes(value, path, BUNDLE_SIZE)


def _bytes(value: object, path: str, size: int) -> bytes:
    try:
        data = unb64url_text(value)
    except ValueError as error:
        raise InvalidPolicy(path, str(error)) from None
    if len(data) != size:
        raise InvalidPolicy(path, f"has {len(data)} bytes, not {size}")
    return data


def parse_bundles(value: object, path: str) -> frozenset[bytes]:
    """Read the member ``revoked_bundles``: as ``strongroom inspect`` shows them, base64url."""
    if not isinstance(value, list):
        raise InvalidPolicy(path, "is not a list")
    return frozenset(entries(value, path, _bundle))


@dataclass(frozen=True, slots=True)
class Approvals:
    """How many of whom must approve the version of a policy that follows.

    Attributes:
        needed: how many.
        approvers: name → Ed25519 public key, 32 bytes.
    """

    needed: int
    approvers: Mapping[str, bytes]


def parse_approvals(value: object, path: str) -> Approvals:
    """Read the member ``approvals``."""
    members = _object(value, path, ("needed", "approvers"))
    where = f"{path}.approvers"
    given = mapping(members.get("approvers"), where)
    if len(given) > _MAX_APPROVERS:
        raise InvalidPolicy(where, f"has more than {_MAX_APPROVERS} entries")
    approvers: dict[str, bytes] = {}
    for name, key in given.items():
        try:
            check_name(name)
        except UsageError:
            raise InvalidPolicy(f"{where}.{name}", "cannot name an approver") from None
        approvers[name] = _public_key(key, f"{where}.{name}")
    # One person under two names would be two of m.
    if len(set(approvers.values())) != len(approvers):
        raise InvalidPolicy(where, "has one key under two names")
    needed = integer(1, len(approvers))(members.get("needed"), f"{path}.needed")
    return Approvals(needed, approvers)


# Points of small order, without the sign: with such a key, signatures can be made that verify for
# any message. The list is that of libsodium.
_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


def _public_key(value: object, path: str) -> bytes:
    data = _bytes(value, path, _ED25519_SIZE)
    try:
        Ed25519PublicKey.from_public_bytes(data)
    except ValueError:
        data = b""
    if not data or data[:-1] + bytes([data[-1] & 0x7F]) in _SMALL_ORDER:
        raise InvalidPolicy(path, "is not an Ed25519 public key")
    return data
