"""Brings a database to this program's schema: one Alembic history for the control plane and the ledger.

Does not touch a database of a newer program or one that holds other tables.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from api.database import Database, DatabaseUnusable
from api.database_faults import fault


def migrate(database: Database) -> None:
    """Create or upgrade the tables.

    Raises:
        DatabaseUnusable: the schema is of a newer version of this program, or the database cannot be written.
    """
    try:
        with database.writer.begin() as connection:
            config = _config(connection)
            _refuse_newer(config, connection, database.name)
            command.upgrade(config, "head")
    except DBAPIError as error:
        if fault(error) is None:
            raise
        raise database.unusable(error) from None


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _refuse_newer(config: Config, connection: Connection, url: str) -> None:
    scripts = ScriptDirectory.from_config(config)
    for revision in MigrationContext.configure(connection).get_current_heads():
        try:
            scripts.get_revision(revision)
        except CommandError:
            newest = scripts.get_current_head()
            raise DatabaseUnusable(
                f"{url} has schema {revision}, this program knows schemas up to {newest}; "
                "start the newer version of the control plane, or give it another database"
            ) from None
