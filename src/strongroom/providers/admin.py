"""What an owner does with a key server, over its REST interface: keys, policies, audit, nodes, tokens.

Keys go one way: a DEK is sealed to the server's registration key, which the profile pins, together
with the name, version and bundle that it is for. Nothing here ever gets one back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strongroom.crypto.hpke import KEMS
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import AuditBroken, InvalidKey, NotFound, UntrustedAnswer
from strongroom.format.encoding import b64url, canonical_json, parse_json, unb64url_text
from strongroom.release.answer import verify_signed
from strongroom.release.approvals import policy_statement
from strongroom.release.audit import Head
from strongroom.release.messages import time_text
from strongroom.release.names import KeyName
from strongroom.release.policy import Policy

__all__ = ["AdminClient", "Pinned", "Requests", "audit_head_of", "records_of", "registration_info"]

_REGISTER: Final = b"strongroom/v1/register\x00"
_ENROL: Final = "/v1/nodes/enrol-tpm"
_PAGE: Final = 1000
"""Audit records in one answer: the most that a server gives."""


class Requests(Protocol):
    """The way to the server."""

    def request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        token: str | None = None,
    ) -> dict[str, Any]:
        """The JSON that answers; errors of the server are raised as those of our tree."""
        ...


class Pinned(Protocol):
    """What a profile says of the server."""

    @property
    def server_id(self) -> str: ...
    @property
    def signing_key(self) -> bytes: ...
    @property
    def registration_suite(self) -> str: ...
    @property
    def registration_key(self) -> bytes: ...


def registration_info(server_id: str, key: KeyName, bundle: bytes) -> bytes:
    """What a DEK is sealed with on its way to the server: it opens for this key and model alone."""
    about = {
        "server_id": server_id,
        "name": key.name,
        "version": key.version,
        "bundle": b64url(bundle),
    }
    return _REGISTER + canonical_json(about)


def audit_head_of(signed: object, pinned: Pinned) -> Head:
    """The end of the audit chain that the server has signed.

    Raises:
        UntrustedAnswer: another server has, or nobody.
    """
    payload = verify_signed(signed, pinned.signing_key)
    sequence, value = payload.get("sequence"), payload.get("hash")
    if (
        payload.get("server_id") != pinned.server_id
        or type(sequence) is not int
        or not isinstance(value, str)
    ):
        raise UntrustedAnswer("What the server has signed is no head of its audit trail.")
    return Head(sequence, value)


class AdminClient:
    """An owner's, operator's or auditor's hand.

    Args:
        requests: the way to the server; knows its CA and, where there is one, a client certificate.
        pinned: the profile of the server.
        token: ``srt_…``; None where a client certificate says who asks.
    """

    def __init__(self, requests: Requests, pinned: Pinned, token: str | None = None) -> None:
        self._requests = requests
        self._pinned = pinned
        self._token = token

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._requests.request(method, path, body, token=self._token)

    def _list(self, path: str, member: str) -> list[dict[str, Any]]:
        found = self._ask("GET", path).get(member)
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise UntrustedAnswer(f"The key server's answer has no list of {member}.")
        return found

    def add_key(
        self, key: KeyName, bundle: bytes, dek: SecretBytes, meta: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Register the DEK of a sealed model.

        Args:
            key: its name; without a version, the server takes the next one.
            bundle: of the sealed model, 16 bytes.
            dek: 32 bytes.
            meta: not secret.

        Raises:
            AlreadyExists: this version is there.
            NotAuthorised: who asks may not do this.
            InvalidKey: the profile's registration key is of a kind that is not known.
            UntrustedAnswer: the server says that it has registered something else.
        """
        kem = KEMS.get(self._pinned.registration_suite)
        if kem is None:
            raise InvalidKey("The registration key of the server is of a kind that is not known.")
        info = registration_info(self._pinned.server_id, key, bundle)
        try:
            sealed = kem.seal(dek, self._pinned.registration_key, info)
        except ValueError:
            raise InvalidKey("The registration key in the profile is no public key.") from None
        body = {
            "name": key.name,
            "version": key.version,
            "bundle": b64url(bundle),
            "encrypted_key": b64url(sealed),
            "meta": dict(meta or {}),
        }
        made = self._ask("POST", "/v1/keys", body)
        said = (made.get("name"), made.get("bundle"))
        version = made.get("version")
        if said != (key.name, b64url(bundle)) or key.version not in (None, version):
            raise UntrustedAnswer("The key server registered another key than the one it was given.")
        return made

    def keys(self, name: str | None = None) -> list[dict[str, Any]]:
        """Versions of keys, of one name or of all."""
        query = "" if name is None else "?" + urlencode({"name": name})
        return self._list(f"/v1/keys{query}", "keys")

    def set_state(self, key: KeyName, state: str, reason: str) -> dict[str, Any]:
        """Another state for a version: active, deprecated, revoked, destroyed; the last is for ever."""
        body = {"name": key.name, "version": key.version, "state": state, "reason": reason}
        return self._ask("POST", "/v1/keys/state", body)

    def rotate(self, key: KeyName) -> dict[str, Any]:
        """Make a version, the newest if none is named, the current one."""
        return self._ask("POST", "/v1/keys/rotate", {"name": key.name, "version": key.version})

    def put_policy(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A new version of a policy; in force, or pending until enough have approved."""
        return self._ask("PUT", "/v1/policies", {"policy": dict(document)})

    def policies(self) -> list[dict[str, Any]]:
        """The versions in force, and those that wait."""
        return self._list("/v1/policies", "policies")

    def policy_history(self, id: str) -> list[dict[str, Any]]:
        """All versions of a policy, oldest first."""
        return self._list("/v1/policies/history?" + urlencode({"id": id}), "policies")

    def approve(self, policy: Policy, approver: str, key: Ed25519PrivateKey) -> dict[str, Any]:
        """Sign a version that waits, as the one who approves it has it before him.

        Args:
            policy: what is approved: read from the approver's own file, not from the server.
            approver: his name in the version in force.
            key: his.

        Raises:
            NotFound: this version does not wait at the server, or waits there with another content.
        """
        history = self.policy_history(policy.id)
        waiting = [one for one in history if one.get("version") == policy.version]
        if not waiting or waiting[-1].get("status") != "pending":
            raise NotFound(f"{policy.id} version {policy.version} does not wait for approvals.")
        if Policy.parse(waiting[-1].get("policy")).digest != policy.digest:
            raise NotFound(
                f"The server has another {policy.id} version {policy.version} than this file.",
                hint="Find out who put it there, and what differs, before anybody approves it.",
            )
        active = [one for one in history if one.get("status") == "active"]
        previous = Policy.parse(active[-1].get("policy")) if active else None
        signature = key.sign(policy_statement(policy, previous, self._pinned.signing_key))
        body = {
            "id": policy.id,
            "version": policy.version,
            "approver": approver,
            "signature": b64url(signature),
        }
        return self._ask("POST", "/v1/policies/approve", body)

    def audit(self, after: int = 0, limit: int = _PAGE) -> list[dict[str, Any]]:
        """Audit records after a number, in order, at most ``limit`` of them (1000)."""
        query = urlencode({"after": after, "limit": limit})
        return self._list(f"/v1/audit?{query}", "records")

    def audit_from(self, after: int = 0) -> Iterator[dict[str, Any]]:
        """All audit records after a number, in order.

        Raises:
            AuditBroken: they do not get on.
        """
        while records := self.audit(after):
            yield from records
            last = records[-1].get("sequence")
            if type(last) is not int or last <= after:
                raise AuditBroken(f"After audit record {after}, the server gives records before it.")
            after = last

    def signed_head(self) -> dict[str, Any]:
        """The end of the audit chain as the server signs it: to be kept elsewhere."""
        return self._ask("GET", "/v1/audit/head")

    def audit_head(self) -> Head:
        """The end of the audit chain, once the signature is verified."""
        return audit_head_of(self.signed_head(), self._pinned)

    def nodes(self) -> list[dict[str, Any]]:
        """Machines that got keys, and machines that get none."""
        return self._list("/v1/nodes", "nodes")

    def evict(self, platform: str, reason: str) -> None:
        """No key for a machine from now on; its leases are not renewed."""
        self._ask("POST", "/v1/nodes/evict", {"platform": platform, "reason": reason})

    def admit(self, platform: str) -> None:
        """Undo :meth:`evict`."""
        self._ask("POST", "/v1/nodes/admit", {"platform": platform})

    def enrol_tpm(
        self, evidence: Mapping[str, Any], activate: Callable[[bytes], bytes]
    ) -> dict[str, Any]:
        """Prove to the server that an attestation key lies in a TPM whose maker vouches for it.

        Args:
            evidence: of the TPM, with the certificate of its endorsement key.
            activate: has the TPM open a credential; 32 bytes come out.

        Returns:
            ``platform``, as policies list it, ``ak_name`` and ``ek``.

        Raises:
            EvidenceError: the certificate leads to no CA that the server believes, the key is no
                attestation key, or the TPM does not hold it.
            UntrustedAnswer: the server asks or says something else.
            StrongroomError: as ``activate``.
        """
        asked = self._ask("POST", f"{_ENROL}/begin", {"evidence": dict(evidence)})
        try:
            credential = unb64url_text(asked.get("credential"))
        except ValueError:
            raise UntrustedAnswer("The key server's answer has no credential for the TPM.") from None
        answer = {"enrolment": asked.get("enrolment"), "answer": b64url(activate(credential))}
        made = self._ask("POST", f"{_ENROL}/finish", answer)
        if not all(isinstance(made.get(name), str) for name in ("platform", "ak_name", "ek")):
            raise UntrustedAnswer("The key server does not say what it has enrolled.")
        return made

    def add_token(self, name: str, role: str, expires: datetime | None) -> dict[str, Any]:
        """A new token, told once: id and token."""
        end = None if expires is None else time_text(expires)
        made = self._ask("POST", "/v1/tokens", {"name": name, "role": role, "expires": end})
        if not all(isinstance(made.get(member), str) for member in ("id", "token")):
            raise UntrustedAnswer("The key server's answer has no token.")
        return made

    def tokens(self) -> list[dict[str, Any]]:
        """What is known of the tokens, not the tokens."""
        return self._list("/v1/tokens", "tokens")

    def drop_token(self, id: str) -> None:
        """Make a token good for nothing, at once."""
        self._ask("DELETE", f"/v1/tokens/{quote(id, safe='')}")


def records_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Audit records as :meth:`AdminClient.audit_from` gave them, one on a line.

    Raises:
        AuditBroken: a line is no record.
    """
    for number, line in enumerate(lines, 1):
        try:
            yield parse_json(line)
        except ValueError as error:
            raise AuditBroken(f"Line {number} is no audit record: it {error}.") from None
