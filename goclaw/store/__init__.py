"""Floor 2: the disk. The only floor that names the database files or knows SQL."""

from goclaw.store.database import (
    Archive,
    Committed,
    Database,
    Event,
    database_files,
    open_database,
    rows,
)

__all__ = [
    "Archive",
    "Committed",
    "Database",
    "Event",
    "database_files",
    "open_database",
    "rows",
]
