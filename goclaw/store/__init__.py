"""Floor 2: the disk. The only floor that names the database files or knows SQL."""

from goclaw.store.copies import check_copy, copy_database, database_state, replace_database
from goclaw.store.database import (
    Archive,
    Committed,
    Database,
    Event,
    open_database,
    rows,
)
from goclaw.store.fence import Note, fence_file
from goclaw.store.schema import database_files
from goclaw.store.secrets import Secret, Secrets, kept_secrets

__all__ = [
    "Archive",
    "Committed",
    "Database",
    "Event",
    "Note",
    "Secret",
    "Secrets",
    "check_copy",
    "copy_database",
    "database_files",
    "database_state",
    "fence_file",
    "kept_secrets",
    "open_database",
    "replace_database",
    "rows",
]
