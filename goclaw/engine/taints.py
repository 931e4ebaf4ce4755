"""What sessions have met: untrusted text, private data (A-13).

Owns the reading of the labels, which a session has from its ancestors, too. Not in here: which tool
brings which (the tool says so), what follows from them (the policy).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.core.decisions import Taint

if TYPE_CHECKING:
    from goclaw.store import Database

__all__ = ["Taints"]


class Taints:
    """The labels of all sessions. They commit with the result that brought them, and stay."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._are_any = True

    async def load(self) -> None:
        """Where no session has any, nobody is asked again before one has."""
        self._are_any = bool(await self._database.read("taints_any"))

    async def of(self, sid: int) -> tuple[Taint, ...]:
        """The labels of a session and of those it was branched off or begun by."""
        if not self._are_any:
            return ()
        found = {label for (label,) in await self._database.read("taints_of", sid=sid)}
        return tuple(label for label in Taint if label in found)

    def added(self) -> None:
        """One has committed."""
        self._are_any = True
