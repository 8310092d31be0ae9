"""Run by Alembic, on the connection and in the transaction of `services.backends.sql.migrate`."""

from alembic import context

from services.backends.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
