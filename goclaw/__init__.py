"""goclaw: a durable runtime for agents on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goclaw.client import Client, SyncClient

__all__ = ["Client", "SyncClient", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on first use: `import goclaw` is part of every start.
    if name in ("Client", "SyncClient"):
        from goclaw import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
