"""Alembic's entry: runs the versions on the connection that `api.schema` opened. No configuration file of its own."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
