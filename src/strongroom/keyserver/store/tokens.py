"""Tokens of administrators: 32 random bytes, of which the database has a hash only."""

from __future__ import annotations

import hashlib
import hmac
import secrets as random
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select

from strongroom.errors import NotAuthorised, NotFound, UsageError
from strongroom.format.encoding import b64url, canonical_json
from strongroom.keyserver.store.core import Core
from strongroom.keyserver.store.records import ROLES, Actor, TokenRecord
from strongroom.keyserver.store.tables import micros, moment, tokens

__all__ = ["TOKEN_PREFIX", "TokenRegister"]

TOKEN_PREFIX: Final = "srt_"
_TOKEN_SIZE: Final = 32
_MAX_NAME: Final = 100
_LATEST: Final = (1 << 53) - 1
"""Microseconds: what canonical JSON holds, under whose MAC a token is."""


def _digest(token: str) -> bytes:
    # 256 random bits need no slow hash.
    return hashlib.sha256(token.encode()).digest()


class TokenRegister(Core):
    """The part of the store that is about tokens."""

    def add_token(
        self, name: str, role: str, expires: datetime | None, actor: Actor
    ) -> tuple[str, str]:
        """Make a token. It is told once; the database has its hash.

        Args:
            name: of whom it is for.
            role: owner, operator or auditor; not above the actor's own.
            expires: with a time zone; None means never.
            actor: who makes it.

        Raises:
            UsageError: an argument is not what it should be.
            NotAuthorised: the actor may not give this role.
            StorageError: the database does not answer.
        """
        if role not in ROLES:
            raise UsageError(f"There is no role {role}.", hint="Roles are: " + ", ".join(ROLES))
        if not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
            raise UsageError("The name of a token is a short text.")
        if expires is not None and not 0 < micros(expires) <= _LATEST:
            raise UsageError("The end of a token is a time between 1970 and 2255.")
        if expires is not None and expires <= self._clock():
            raise UsageError("The end of the token has passed already.")
        if ROLES.index(role) > (ROLES.index(actor.role) if actor.role in ROLES else -1):
            raise NotAuthorised(f"{actor.name} has the role {actor.role} and cannot give {role}.")
        id = random.token_hex(8)
        token = TOKEN_PREFIX + b64url(random.token_bytes(_TOKEN_SIZE))
        with self._change(actor) as transaction:
            transaction.changed = False
            row: dict[str, Any] = {
                "id": id,
                "name": name,
                "role": role,
                "digest": _digest(token),
                "created": micros(transaction.now),
                "expires": None if expires is None else micros(expires),
            }
            mac = self._token_mac(**row)
            transaction.connection.execute(insert(tokens).values(mac=mac, **row))
            transaction.note("token.added", id=id, name=name, role=role, expires=row["expires"])
        return id, token

    def token(self, token: str) -> Actor:
        """Whose token this is.

        Raises:
            NotAuthorised: it is nobody's, has expired, or its record was changed.
            StorageError: the database does not answer.
        """
        digest = _digest(token)
        with self._database.reading() as connection:
            row = connection.execute(select(tokens).where(tokens.c.digest == digest)).first()
        if (
            row is None
            or not hmac.compare_digest(bytes(row.digest), digest)
            or not hmac.compare_digest(bytes(row.mac), self._mac_of(row))
            or (row.expires is not None and micros(self._clock()) >= row.expires)
        ):
            raise NotAuthorised("The token is not known or has expired.")
        return Actor(row.name, row.role, "token")

    def tokens(self) -> list[TokenRecord]:
        """What is known of all tokens, oldest first.

        Raises:
            StorageError: the database does not answer.
        """
        with self._database.reading() as connection:
            rows = connection.execute(select(tokens).order_by(tokens.c.created, tokens.c.id)).all()
        return [
            TokenRecord(
                row.id,
                row.name,
                row.role,
                moment(row.created),
                None if row.expires is None else moment(row.expires),
            )
            for row in rows
        ]

    def drop_token(self, id: str, actor: Actor) -> None:
        """Make a token worthless.

        Args:
            id: of it.
            actor: who decides it.

        Raises:
            NotFound: there is none.
            NotAuthorised: the actor may only read.
            StorageError: the database does not answer.
        """
        with self._change(actor) as transaction:
            transaction.changed = False
            dropped = transaction.connection.execute(delete(tokens).where(tokens.c.id == id))
            if not dropped.rowcount:
                raise NotFound(f"There is no token {id}.")
            transaction.note("token.dropped", id=id)

    def _mac_of(self, row: Row[Any]) -> bytes:
        return self._token_mac(
            id=row.id,
            name=row.name,
            role=row.role,
            digest=bytes(row.digest),
            created=row.created,
            expires=row.expires,
        )

    def _token_mac(self, *, digest: bytes, **members: Any) -> bytes:
        """Who can write to the database can still not make a token, or give one another role."""
        content = canonical_json({"store": self.id, "digest": digest.hex(), **members})
        return hmac.digest(self._secret("tokens").buffer, content, hashlib.sha256)
