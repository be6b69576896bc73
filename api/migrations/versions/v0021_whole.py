"""On PostgreSQL the ledger's rows are checked for what they name once a statement, not row by row."""

import sqlalchemy as sa
from alembic import op

from ledger.tables import WHOLE, table_of, whole_ddl

revision = "whole"
down_revision = "totals"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for row in WHOLE:
        table = table_of(row).name
        op.execute(sa.text(f"DROP TRIGGER IF EXISTS {table}_whole ON {table}"))
        for statement in whole_ddl(row):
            op.execute(sa.text(statement))
        for key in sa.inspect(op.get_bind()).get_foreign_keys(table):
            op.execute(sa.text(f"ALTER TABLE {table} DROP CONSTRAINT {key['name']}"))
