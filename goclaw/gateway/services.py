"""What the gateway needs of the rest of the house, handed over by the composition root.

Owns that one record. Not in here: who fulfils it (``daemon``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from goclaw.core.config import Config
    from goclaw.core.decisions import Context, Decision, Subject
    from goclaw.core.records import Session
    from goclaw.engine import Engine
    from goclaw.engine.audit import Audit
    from goclaw.engine.policies import Policies
    from goclaw.gateway.access import BearerToken
    from goclaw.store import Secrets

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """Everything is called on the loop; nothing here may block it."""

    engine: Engine
    config: Config
    decide: Callable[[Subject, str, str, Context], Decision]
    """The policy in force: subject, action, resource, context."""
    check_brain: Callable[[str], None]
    """ConfigRefused when no brain has that name."""
    daemon_id: str
    boot_id: str
    version: str
    commands: Callable[[Session], list[dict[str, Any]]]
    """The slash commands of a session, as ACP's AvailableCommand objects."""
    status: Callable[[], Awaitable[dict[str, Any]]]
    policies: Policies
    audit: Audit
    system_sid: int
    """The session of the daemon's own events."""
    secrets: Secrets
    skills: Callable[[], list[dict[str, Any]]]
    replay: Callable[[str], Awaitable[dict[str, Any]]]
    """By run: the object of `goclaw replay --json`."""
    timeline: Callable[[str], Awaitable[dict[str, Any]]]
    """By run: the object of `goclaw timeline --json`."""
    metrics: Callable[[int], Awaitable[bytes]]
    """The page of /metrics; given how many events wait for the clients who watch."""
    is_ready: Callable[[], bool]
    """False before the start is over and from the beginning of a stop on."""
    backup: Callable[[], Awaitable[dict[str, Any]]]
    """Makes one: a line of `goclaw backup list --json`."""
    request_stop: Callable[[], None]
    on_session: Callable[[int], None]
    """Called with the sid of every session that a client makes or attaches to."""
    token: BearerToken
    """Of the network port."""
