"""Revocation lists: the newest that were seen, for all replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import delete, insert

from strongroom.keyserver.store.core import Core
from strongroom.keyserver.store.records import Actor
from strongroom.keyserver.store.state import read_crls
from strongroom.keyserver.store.tables import crls

__all__ = ["CrlRegister"]

_SERVER: Final = Actor("key server", "operator", "local")


class _NothingNew(Exception):
    """Nothing is to be written."""


class CrlRegister(Core):
    """The part of the store that is about revocation lists."""

    def crls_seen(self, numbers: Mapping[str, int]) -> None:
        """Remember what is newer than anything known. From now on, no replica takes an older one.

        Args:
            numbers: issuer → number, of authentic lists.

        Raises:
            HeaderTampered: the database does not hold what the server has signed.
            StorageError: the database does not answer.
        """
        try:
            with self._change(_SERVER) as transaction:
                known = read_crls(transaction.connection)
                newer = {
                    issuer: f"{number:x}"
                    for issuer, number in numbers.items()
                    if number > known.get(issuer, -1)
                }
                if not newer:
                    raise _NothingNew
                for issuer, number in newer.items():
                    transaction.connection.execute(delete(crls).where(crls.c.issuer == issuer))
                    transaction.connection.execute(insert(crls).values(issuer=issuer, number=number))
                transaction.note("crl.newer", crls=newer)
        except _NothingNew:
            pass
