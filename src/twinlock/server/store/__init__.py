"""The features' stores on a database through SQLAlchemy Core: SQLite by default, PostgreSQL by its URL."""
