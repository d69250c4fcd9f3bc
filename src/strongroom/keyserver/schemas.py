"""The messages of the REST interface, as the OpenAPI document describes them.

Bodies of administrators are validated by these models. Those of releases are parsed by
:mod:`strongroom.release.messages`; the models here describe them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from strongroom.attest.limits import MAX_ENDORSEMENT_COUNT, MAX_EVIDENCES
from strongroom.crypto.hpke import KEMS
from strongroom.release.limits import MAX_KEYS

NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$"
_MAX_VERSION: Final = 10**9


def _b64(size: int) -> Any:
    """Base64url of ``size`` bytes, without padding and with no stray bits in its last digit."""
    last = {0: "", 1: "[AQgw]", 2: "[AEIMQUYcgkosw048]"}[size % 3]
    return Field(pattern=f"^[A-Za-z0-9_-]{{{size * 4 // 3}}}{last}$")


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


Name = Annotated[str, Field(pattern=NAME, max_length=200, examples=["team/resnet50"])]
Version = Annotated[int, Field(ge=1, le=_MAX_VERSION, examples=[3])]
Bundle = Annotated[str, _b64(16)]
Bytes32 = Annotated[str, _b64(32)]
Signature = Annotated[str, _b64(64)]
Moment = Annotated[
    str,
    Field(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$",
        examples=["2026-03-01T12:00:00Z"],
    ),
]
Text = Annotated[str, Field(pattern=r"^[^\x00]{1,500}$")]
Platform = Annotated[str, Field(pattern=r"^[!-~]{1,300}$", examples=["piid:00112233"])]
TokenName = Annotated[str, Field(pattern=r"^[ -~]{1,100}$", examples=["alice"])]
State = Literal["active", "deprecated", "revoked", "destroyed"]
Role = Literal["owner", "operator", "auditor"]


class Empty(_Message):
    """Nothing to say."""


class RecipientKey(_Message):
    """A public key to which something is sealed by HPKE."""

    suite: str = Field(examples=[next(iter(KEMS))])
    public_key: str


class Server(_Message):
    """Who this server is: what a client pins, which it must have from the owner and not from here."""

    server_id: str
    signing_key: Bytes32
    registration_key: RecipientKey
    version: str
    test: bool


class ChallengeAnswer(_Message):
    """A challenge: good once, until ``expires``."""

    challenge: Bytes32
    server_id: str
    expires: Moment


class WantedKeyBody(_Message):
    """One key that is asked for."""

    name: Name
    version: Version | Literal["current"]
    bundle: Bundle


class EvidenceBody(_Message):
    """A quote, report, document or token; and what vouches for it."""

    kind: str = Field(min_length=1, max_length=40, examples=["tdx"])
    data: str
    endorsements: list[str] = Field(default=[], max_length=MAX_ENDORSEMENT_COUNT)


class RecipientBody(_Message):
    """The one-time key."""

    suite: Literal["HPKE-MLKEM768X25519", "HPKE-X25519"]
    public_key: str


class ReleaseBody(_Message):
    """What an attester sends."""

    challenge: Bytes32
    recipient: RecipientBody
    keys: list[WantedKeyBody] = Field(min_length=1, max_length=MAX_KEYS)
    evidence: list[EvidenceBody] = Field(default=[], max_length=MAX_EVIDENCES)


class Signed(_Message):
    """A payload, base64url of canonical JSON, and the server's Ed25519 signature over it."""

    payload: str
    signature: Signature


LeaseId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class RenewBody(_Message):
    """Leases that shall last longer."""

    nonce: Bytes32
    leases: list[LeaseId] = Field(min_length=1, max_length=MAX_KEYS)


class EndBody(_Message):
    """Leases that are given back."""

    leases: list[LeaseId] = Field(min_length=1, max_length=MAX_KEYS)


class AddKeyBody(_Message):
    """A data key, sealed to the registration key of the server."""

    name: Name
    version: Version | None = None
    bundle: Bundle
    encrypted_key: str = Field(min_length=1, max_length=4096, pattern=r"^[A-Za-z0-9_-]+$")
    meta: dict[str, Annotated[str, Field(max_length=1000)]] = Field(default={}, max_length=32)


class Key(_Message):
    """A version of a key."""

    name: Name
    version: Version
    bundle: Bundle
    state: State
    current: bool
    created: Moment
    reason: str | None
    meta: dict[str, Any]


class Keys(_Message):
    """Versions of keys."""

    keys: list[Key]


class KeyStateBody(_Message):
    """Another state for a version."""

    name: Name
    version: Version
    state: State
    reason: Text


class RotateBody(_Message):
    """Which version is current from now on; null is the newest."""

    name: Name
    version: Version | None = None


class PolicyBody(_Message):
    """A policy, as the reference of policies describes it."""

    policy: dict[str, Any]


class PolicyStatus(_Message):
    """What became of a policy."""

    id: str
    version: int
    status: Literal["active", "pending", "superseded", "rejected"]
    approvals: int
    needed: int


class Policy(PolicyStatus):
    """A version of a policy, signed by the server along with the digest of the version before."""

    policy: dict[str, Any]
    digest: str
    created: Moment
    author: str
    approved_by: list[str]
    previous: str | None
    signature: Signature


class Policies(_Message):
    """Versions of policies."""

    policies: list[Policy]


class ApproveBody(_Message):
    """An approver's Ed25519 signature over a version of a policy."""

    id: Name
    version: Version
    approver: Text
    signature: Signature


class AuditRecords(_Message):
    """Records of the audit trail, in order."""

    records: list[dict[str, Any]]


class Node(_Message):
    """A machine to which keys were released, or that was evicted."""

    platform: str
    evicted: bool
    reason: str | None
    leases: int
    first_seen: Moment | None
    last_seen: Moment | None


class Nodes(_Message):
    """Machines."""

    nodes: list[Node]


class EvictBody(_Message):
    """A machine that gets no key any more."""

    platform: Platform
    reason: Text


class AdmitBody(_Message):
    """A machine that was evicted and may ask again."""

    platform: Platform


class BeginEnrolmentBody(_Message):
    """A TPM's evidence, with the certificate of its endorsement key."""

    evidence: EvidenceBody


class EnrolmentQuestion(_Message):
    """What the machine is asked; `enrolment` is brought back with the answer."""

    platform: str
    enrolment: str
    credential: str
    expires: Moment


class FinishEnrolmentBody(_Message):
    """What the TPM has got out of the credential."""

    enrolment: str = Field(min_length=1, max_length=2000, pattern=r"^[A-Za-z0-9_-]+$")
    answer: Bytes32


class EnrolledTpm(_Message):
    """An attestation key that lies in a TPM whose maker vouches for it."""

    platform: str = Field(examples=["ak:" + "5e" * 32])
    ak_name: str
    ek: str


class TokenBody(_Message):
    """A token to be made."""

    name: TokenName
    role: Role
    expires: Moment | None = None


class NewToken(_Message):
    """A token, told once."""

    id: str
    token: str


class Token(_Message):
    """What is known of a token."""

    id: str
    name: str
    role: Role
    created: Moment
    expires: Moment | None


class Tokens(_Message):
    """Tokens."""

    tokens: list[Token]


class Health(_Message):
    """How the server is."""

    status: Literal["ok"]
