"""The clients of the wire: async and blocking, over a socket or /ws, riding out daemon crashes.

Owns the package's face; a name is imported when it is first used, so that a verb which needs one
of them loads one of them. Not in here: what people see (cli, tui), what editors see (bridges).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goclaw.client.aio import Client
    from goclaw.client.blocking import SyncClient
    from goclaw.client.records import (
        Approval,
        Because,
        EffectInfo,
        Event,
        EventPage,
        Explained,
        Moved,
        PromptResult,
        Receipt,
        SessionInfo,
        Status,
        TaskInfo,
        ToolUse,
    )

__all__ = [
    "Approval",
    "Because",
    "Client",
    "EffectInfo",
    "Event",
    "EventPage",
    "Explained",
    "Moved",
    "PromptResult",
    "Receipt",
    "SessionInfo",
    "Status",
    "SyncClient",
    "TaskInfo",
    "ToolUse",
]

_PLACES = {"Client": "goclaw.client.aio", "SyncClient": "goclaw.client.blocking"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES.get(name, "goclaw.client.records")), name)
