"""Alembic's entry: runs on the connection that `twinlock.server.store.migrate` hands over."""

from alembic import context

from twinlock.server.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
