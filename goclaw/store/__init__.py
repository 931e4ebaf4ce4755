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
from goclaw.store.fence import Note, fence_file

__all__ = [
    "Archive",
    "Committed",
    "Database",
    "Event",
    "Note",
    "database_files",
    "fence_file",
    "open_database",
    "rows",
]
