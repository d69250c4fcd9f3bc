"""The schema: made and upgraded by Alembic's migrations, under a lock."""

from __future__ import annotations

from typing import Any, Final

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from strongroom.errors import UnsupportedVersion, UsageError
from strongroom.keyserver.store.database import Database

__all__ = ["migrate"]

_PLACE: Final = "strongroom.keyserver.store:migrations"


def migrate(database: Database) -> None:
    """Bring the schema to that of this release; an empty database gets all of it.

    Two processes that start at once do it one after the other; it is all there, or nothing.

    Raises:
        UnsupportedVersion: a newer release has upgraded the database.
        UsageError: somebody else's tables are in it.
        StorageError: the database does not answer.
    """
    config = Config()
    config.set_main_option("script_location", _PLACE)
    script = ScriptDirectory.from_config(config)
    with database.reading() as connection:
        if _revision(connection) == script.get_current_head():
            return
    with database.writing() as connection:
        _upgrade(connection, config, script)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection, config: Config, script: ScriptDirectory) -> None:
    found = _revision(connection)
    known = {one.revision for one in script.walk_revisions()}
    if found is not None and found not in known:
        raise UnsupportedVersion(
            f"The database has schema {found}, of a newer release.",
            hint="Run that release, or restore a backup that this one wrote.",
        )
    if found is None and set(inspect(connection).get_table_names()) - {"alembic_version"}:
        raise UsageError(
            "The database has tables of somebody else.",
            hint="Give the key server a database of its own.",
        )

    def steps(revision: Any, context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(config, script, fn=steps) as environment:
        environment.configure(connection=connection, transactional_ddl=False)
        environment.run_migrations()
