"""Policies: versions that only rise, approvals, and the snapshot that decisions rest on."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from sqlalchemy import Connection, Row, insert, select, update

from strongroom.errors import InvalidPolicy, NotFound, UsageError
from strongroom.format.encoding import b64url, canonical_json
from strongroom.keyserver.store.core import Core
from strongroom.keyserver.store.records import Actor, PolicyRecord, Snapshot
from strongroom.keyserver.store.state import State, read_crls, state_changed, verify_state
from strongroom.keyserver.store.tables import approvals, micros, moment, nodes, policies, store
from strongroom.release.approvals import overlapping, verify_approval, verify_approvals
from strongroom.release.policy import Policy

__all__ = ["PolicyRegister"]

_DOMAIN: Final = b"strongroom/v1/policy-history\x00"


class PolicyRegister(Core):
    """The part of the store that is about policies."""

    def _prepare(self) -> None:
        self._snapshot: Snapshot | None = None
        self._state = State(-1, {})
        self._snapshot_lock = threading.Lock()
        super()._prepare()

    def put_policy(self, document: Mapping[str, Any], actor: Actor) -> PolicyRecord:
        """Put in a version of a policy; it is pending where the version in force demands approvals.

        Another pending version of the same id is rejected by it.

        Args:
            document: the policy.
            actor: who puts it in.

        Raises:
            InvalidPolicy: it is no policy, does not follow the version in force by one, or is about
                a key that another policy is about.
            NotAuthorised: the actor may only read.
            StorageError: the database does not answer.
        """
        policy = Policy.parse(document)
        if policy.test_roots and not self.test:
            raise InvalidPolicy(
                "test_roots",
                "is for key stores that were made for tests",
                hint="This one is for production.",
            )
        with self._change(actor) as transaction:
            connection = transaction.connection
            previous = _in_force(connection, policy.id)
            if previous is not None and policy.version != previous.version + 1:
                raise InvalidPolicy(
                    "version",
                    f"is {policy.version}, and {previous.version} is in force",
                    hint=f"The next one is {previous.version + 1}, also where old content returns.",
                )
            _check_alone(connection, policy)
            connection.execute(
                update(policies)
                .where(policies.c.id == policy.id, policies.c.status == "pending")
                .values(status="rejected")
            )
            needed = 0 if previous is None or previous.approvals is None else previous.approvals.needed
            statement = {
                "store": self.id,
                "id": policy.id,
                "version": policy.version,
                "digest": policy.digest.hex(),
                "previous": None if previous is None else previous.digest.hex(),
                "needed": needed,
                "created": micros(transaction.now),
                "author": actor.name,
            }
            (number,) = connection.execute(
                insert(policies)
                .values(
                    id=policy.id,
                    version=policy.version,
                    status="pending",
                    document=canonical_json(policy.to_json()).decode(),
                    digest=statement["digest"],
                    previous=statement["previous"],
                    needed=needed,
                    created=statement["created"],
                    author=actor.name,
                    signature=self._signing.sign(_DOMAIN + canonical_json(statement)),
                )
                .returning(policies.c.number)
            ).one()
            if not needed:
                _activate(connection, policy.id, number)
            transaction.changed = not needed
            transaction.note(
                "policy.put",
                id=policy.id,
                version=policy.version,
                digest=statement["digest"],
                status="pending" if needed else "active",
                needed=needed,
                policy=policy.to_json(),
            )
            return self._policy_record(connection, number)

    def approve_policy(
        self, id: str, version: int, approver: str, signature: bytes, actor: Actor
    ) -> PolicyRecord:
        """Add an approval; with the last that is needed, the version comes into force.

        Args:
            id: of the policy.
            version: that is pending.
            approver: name, as the version in force has it.
            signature: Ed25519, over :func:`.policy_statement`.
            actor: who brings it.

        Raises:
            NotFound: nothing is pending under this id and version.
            NotAuthorised: it is not the signature of an approver, or the actor may only read.
            InvalidPolicy: another policy has come to be about the same key meanwhile.
            StorageError: the database does not answer.
        """
        with self._change(actor) as transaction:
            connection = transaction.connection
            row = connection.execute(
                select(policies).where(
                    policies.c.id == id,
                    policies.c.version == version,
                    policies.c.status == "pending",
                )
            ).first()
            previous = _in_force(connection, id)
            if row is None or previous is None:
                raise NotFound(f"No version {version} of the policy {id} waits for approval.")
            self._check_signature(row)
            server_key = self._signing.public_key().public_bytes_raw()
            policy = Policy.parse(json.loads(row.document))
            verify_approval(policy, previous, approver, signature, server_key)
            given = _approvals(connection, row.number)
            if approver in given:
                raise UsageError(f"{approver} has approved this version already.")
            given[approver] = signature
            connection.execute(
                insert(approvals).values(number=row.number, approver=approver, signature=signature)
            )
            complete = len(given) >= row.needed
            if complete:
                # All of them again, as the database has them.
                verify_approvals(policy, previous, given, server_key)
                _check_alone(connection, policy)
                _activate(connection, id, row.number)
            transaction.changed = complete
            transaction.note(
                "policy.approved",
                id=id,
                version=version,
                digest=row.digest,
                approver=approver,
                signature=b64url(signature),
                approvals=sorted(given),
                status="active" if complete else "pending",
            )
            return self._policy_record(connection, row.number)

    def policies(self) -> list[PolicyRecord]:
        """The versions that are in force or pending, by id.

        Raises:
            HeaderTampered: one was changed in the database.
            StorageError: the database does not answer.
        """
        return self._records(policies.c.status.in_(("active", "pending")))

    def policy_history(self, id: str) -> list[PolicyRecord]:
        """All versions of a policy, also rejected ones, in the order in which they were put in.

        Raises:
            NotFound: there is none.
            HeaderTampered: one was changed in the database.
            StorageError: the database does not answer.
        """
        found = self._records(policies.c.id == id)
        if not found:
            raise NotFound(f"There is no policy {id}.")
        return found

    def snapshot(self) -> Snapshot:
        """What decisions rest on now; read anew only where the revision has changed.

        Raises:
            HeaderTampered: the database does not hold what the server has signed.
            StorageError: the database does not answer.
        """
        with self._snapshot_lock, self._database.reading() as connection:
            revision = connection.execute(select(store.c.revision)).scalar_one()
            if self._snapshot is None or self._snapshot.revision != revision:
                self._snapshot = self._read_snapshot(connection)
            return self._snapshot

    def _read_snapshot(self, connection: Connection) -> Snapshot:
        state = verify_state(connection, self._signing)
        rows = connection.execute(
            select(policies).where(policies.c.status == "active").order_by(policies.c.number)
        ).all()
        found = []
        for row in rows:
            self._check_signature(row)
            found.append(Policy.parse(json.loads(row.document)))
        evicted = connection.execute(select(nodes.c.platform).where(nodes.c.evicted.is_(True)))
        self._state = state
        return Snapshot(
            revision=state.revision,
            policies=tuple(one for one in found if not one.shadow),
            shadows=tuple(one for one in found if one.shadow),
            evicted=frozenset(evicted.scalars()),
            newest_crls=read_crls(connection),
        )

    def _records(self, where: Any) -> list[PolicyRecord]:
        with self._database.reading() as connection:
            query = select(policies.c.number).where(where).order_by(policies.c.id, policies.c.number)
            numbers = connection.execute(query).scalars().all()
            return [self._policy_record(connection, number) for number in numbers]

    def _policy_record(self, connection: Connection, number: int) -> PolicyRecord:
        row = connection.execute(select(policies).where(policies.c.number == number)).one()
        self._check_signature(row)
        return PolicyRecord(
            id=row.id,
            version=row.version,
            status=row.status,
            policy=json.loads(row.document),
            digest=row.digest,
            approvals=tuple(sorted(_approvals(connection, number))),
            needed=row.needed,
            created=moment(row.created),
            author=row.author,
            previous=row.previous,
            signature=b64url(row.signature),
        )

    def _check_signature(self, row: Row[Any]) -> None:
        statement = {
            "store": self.id,
            "id": row.id,
            "version": row.version,
            "digest": row.digest,
            "previous": row.previous,
            "needed": row.needed,
            "created": row.created,
            "author": row.author,
        }
        try:
            public = self._signing.public_key()
            public.verify(row.signature, _DOMAIN + canonical_json(statement))
            document = Policy.parse(json.loads(row.document))
        except (InvalidSignature, ValueError, InvalidPolicy):
            raise state_changed() from None
        if (document.digest.hex(), document.id, document.version) != (row.digest, row.id, row.version):
            raise state_changed()


def _in_force(connection: Connection, id: str) -> Policy | None:
    document = connection.execute(
        select(policies.c.document).where(policies.c.id == id, policies.c.status == "active")
    ).scalar()
    return None if document is None else Policy.parse(json.loads(document))


def _check_alone(connection: Connection, policy: Policy) -> None:
    documents = connection.execute(
        select(policies.c.document).where(policies.c.status == "active", policies.c.id != policy.id)
    ).scalars()
    shared = overlapping(policy, [Policy.parse(json.loads(one)) for one in documents])
    if shared:
        other, entry = shared[0]
        raise InvalidPolicy("keys", f"has {entry}, which the policy {other} is about")


def _activate(connection: Connection, id: str, number: int) -> None:
    connection.execute(
        update(policies)
        .where(policies.c.id == id, policies.c.status == "active")
        .values(status="superseded")
    )
    connection.execute(update(policies).where(policies.c.number == number).values(status="active"))


def _approvals(connection: Connection, number: int) -> dict[str, bytes]:
    rows = connection.execute(select(approvals).where(approvals.c.number == number))
    return {row.approver: bytes(row.signature) for row in rows}
