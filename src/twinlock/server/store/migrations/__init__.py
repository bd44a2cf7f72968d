"""The database's versions, as Alembic runs them when a server starts."""
