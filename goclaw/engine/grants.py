"""A yes before the question: these calls, this long, at most so many (A-7).

Owns what a grant covers. Not in here: its use, which commits as the answer to an approval of that
very call (``grant_use`` in store/queries.sql), and asking (effects).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import InvalidParams, UnknownId
from goclaw.store import rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from goclaw.core.clock import Clock
    from goclaw.core.decisions import Decision
    from goclaw.store import Database

__all__ = ["Grant", "Grants", "covers"]


@dataclass(frozen=True, slots=True)
class Grant:
    """Calls of ``tool``; ``session_id`` None: of every session. Each of the resources that are
    asked about fits one of ``resources`` (globs), unless there are none; the digest of the call,
    or of its question, is among ``digests``, unless there are none."""

    grant_id: str
    session_id: str | None
    tool: str
    resources: tuple[str, ...]
    digests: tuple[str, ...]
    uses_left: int
    until_at: int
    by: str
    created_at: int

    def to_json(self) -> dict[str, Any]:
        """As clients see it."""
        return {
            "grantId": self.grant_id, "sessionId": self.session_id, "tool": self.tool,
            "resources": list(self.resources), "digests": list(self.digests),
            "usesLeft": self.uses_left, "until": rfc3339(self.until_at), "by": self.by,
            "createdAt": rfc3339(self.created_at),
        }  # fmt: skip


def covers(grant: Grant, resources: Iterable[str], *digests: bytes) -> bool:
    """Is that call of its tool one of those? ``resources``: all that a person would be asked
    about, in canonical form; ``digests``: the call's own, and that of its question (effects). In a
    glob ``*`` is any run without ``/``, ``**`` any run."""
    if grant.digests and not any(digest.hex() in grant.digests for digest in digests):
        return False
    patterns = [_pattern(glob) for glob in grant.resources]
    return not patterns or all(
        any(pattern.fullmatch(resource) for pattern in patterns) for resource in resources
    )


def _pattern(glob: str) -> re.Pattern[str]:
    stars = {"**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*|\*)", glob)
    return re.compile("".join(stars.get(part, re.escape(part)) for part in parts), re.DOTALL)


class Grants:
    """The grants of a home."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def give(
        self,
        tool: str,
        *,
        sid: int | None,
        resources: Sequence[str],
        digests: Sequence[str],
        uses: int,
        span_ms: int,
        by: str,
        decision: Decision,
    ) -> str:
        """Say yes beforehand; the grant's id. InvalidParams for what is no glob or digest."""
        for glob in resources:
            if len(re.findall(r"\*+", glob)) > limits.GLOB_STARS_MAX or "***" in glob:
                raise InvalidParams(
                    f"A glob has at most {limits.GLOB_STARS_MAX} stars, in runs of one or two.",
                    param="resources",
                )
        for digest in digests:
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise InvalidParams("A digest is 64 hexadecimal digits.", param="digests")
        grant_id, now = self._clock.new_id("grant"), self._clock.wall_ms()
        bind = self._database.bind
        await self._database.apply(
            bind("audit", record=orjson.dumps(decision.to_record()), now=now),
            bind(
                "grant_put", grant_id=grant_id, sid=sid, tool=tool,
                resources=orjson.dumps(list(resources)).decode(),
                digests=orjson.dumps(list(digests)).decode(), uses=uses, until_at=now + span_ms,
                by=by, now=now,
            ),
        )  # fmt: skip
        return grant_id

    async def listed(self) -> list[Grant]:
        """Those that still hold, by tool; what ends first comes first."""
        found = await self._database.read(
            "grants_listed", now=self._clock.wall_ms(), limit=limits.EVENTS_PAGE_MAX
        )
        return [_grant(row) for row in rows("grants_listed", found)]

    async def revoke(self, grant_id: str, *, decision: Decision) -> None:
        """Take it back at once; UnknownId when there is none that holds."""
        now, bind = self._clock.wall_ms(), self._database.bind
        try:
            await self._database.apply(
                bind("grant_revoke", grant_id=grant_id, now=now),
                bind("audit", record=orjson.dumps(decision.to_record()), now=now),
            )
        except UnknownId:
            raise UnknownId(
                f"There is no grant {grant_id[:80]} that holds.",
                hint="`goclaw approvals grants` names them.",
                what="grant", id=grant_id[:80],
            ) from None  # fmt: skip

    async def for_call(
        self, tool: str, sid: int, resources: Sequence[str], *digests: bytes
    ) -> list[str]:
        """The grants that cover a call, the one that ends first first."""
        found = await self._database.read(
            "grants_of_tool", tool=tool, sid=sid, now=self._clock.wall_ms(),
            limit=limits.READ_ROWS_MAX,
        )  # fmt: skip
        known = [_grant(row) for row in rows("grants_of_tool", found)]
        return [grant.grant_id for grant in known if covers(grant, resources, *digests)]


def _grant(row: dict[str, Any]) -> Grant:
    row["resources"] = tuple(orjson.loads(row["resources"]))
    row["digests"] = tuple(orjson.loads(row["digests"]))
    return Grant(**{name: row[name] for name in Grant.__dataclass_fields__})
