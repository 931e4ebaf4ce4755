"""Durable questions to a person: listed, answered once, expired (A-7).

Owns who may still answer. Not in here: asking (effects opens them), showing (gateway).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits
from goclaw.core.errors import AlreadyResolved, InvalidParams, UnknownId
from goclaw.core.records import Approval
from goclaw.store import rows

if TYPE_CHECKING:
    from goclaw.core.clock import Clock
    from goclaw.core.decisions import Decision
    from goclaw.store import Database

__all__ = ["Approvals"]


class Approvals:
    """The approvals of this home."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    async def listed(self, sid: int | None = None) -> list[Approval]:
        """Open approvals, oldest first, of one session or of all."""
        found = await self._database.read("approvals_listed", sid=sid, limit=limits.EVENTS_PAGE_MAX)
        return [_approval(row) for row in rows("approvals_listed", found)]

    async def get(self, approval_id: str) -> Approval:
        """One approval in any state; UnknownId."""
        found = await self._database.read("approval_by_id", approval_id=approval_id)
        if not found:
            raise UnknownId(
                f"There is no approval {approval_id[:80]}.",
                hint="`goclaw approvals list` names those that wait.",
                what="approval",
                id=approval_id[:80],
            )
        return _approval(rows("approval_by_id", found)[0])

    async def resolve(
        self, approval_id: str, option_id: str, by: str, *, decision: Decision | None = None
    ) -> str:
        """Answer it; the outcome. AlreadyResolved carries the answer that came first.

        ``decision`` let this client answer; its audit record commits with the answer. A yes for the
        session also leaves a grant, which is listed and can be taken back as any other.
        """
        approval = await self.get(approval_id)
        request = orjson.loads(approval.request)
        options = {option["optionId"]: option["kind"] for option in request["options"]}
        if option_id not in options:
            raise InvalidParams(
                f"The approval has no option {option_id[:80]!r}.",
                hint=f"Its options are {', '.join(options)}.",
            )
        granted = request.get("_meta", {}).get("goclaw", {}).get("grant")
        always = options[option_id] == "allow_always" and granted is not None
        return await self._close(
            approval_id, "resolved", option_id, allowed=options[option_id].startswith("allow"),
            by=by, decision=decision,
            grant=self._for_session(approval, granted, by) if always else None,
        )  # fmt: skip

    def _for_session(
        self, approval: Approval, granted: dict[str, Any], by: str
    ) -> tuple[int, tuple[Any, ...]]:
        """The part that says yes to more of the same in its session; it commits with the answer."""
        now = self._clock.wall_ms()
        return self._database.bind(
            "grant_put", grant_id=self._clock.new_id("grant"), sid=approval.sid,
            tool=granted["tool"], resources=orjson.dumps(granted["resources"]).decode(),
            digests=orjson.dumps(granted["digests"]).decode(), uses=limits.GRANT_USES_MAX,
            until_at=now + limits.GRANT_MS_MAX, by=by, now=now,
        )  # fmt: skip

    @property
    async def away(self) -> bool:
        """Nobody is there to answer: questions wait on instead of expiring."""
        return bool(await self._database.read("meta_get", key="away"))

    async def go_away(self, away: bool, *, decision: Decision) -> None:
        """From now on, also after a restart, questions wait on; or expire again. Whatever a person
        says when back, the call is decided about anew before it is sent."""
        now, bind = self._clock.wall_ms(), self._database.bind
        await self._database.apply(
            bind("audit", record=orjson.dumps(decision.to_record()), now=now),
            bind("meta_put", key="away", value="1") if away else bind("meta_drop", key="away"),
        )

    async def expire(self, approval_id: str) -> str:
        """Nobody answered in time: a reject with its own reason; in away mode it waits on."""
        if await self.away:
            await self._database.write(
                "approval_park", approval_id=approval_id,
                expires_at=self._clock.wall_ms() + limits.APPROVAL_MS,
            )  # fmt: skip
            return "parked"
        return await self._close(approval_id, "expired", "expired", allowed=False, by="clock")

    async def _close(
        self,
        approval_id: str,
        state: str,
        option_id: str,
        *,
        allowed: bool,
        by: str,
        decision: Decision | None = None,
        grant: tuple[int, tuple[Any, ...]] | None = None,
    ) -> str:
        now, bind = self._clock.wall_ms(), self._database.bind
        parts = [
            bind(
                "approval_resolve", approval_id=approval_id, option_id=option_id, state=state,
                allowed=int(allowed), by=by, now=now,
            )
        ]  # fmt: skip
        if decision is not None:
            parts.append(bind("audit", record=orjson.dumps(decision.to_record()), now=now))
        if grant is not None:
            parts.append(grant)
        try:
            await self._database.apply(*parts)
        except AlreadyResolved as error:
            approval = await self.get(approval_id)
            outcome = approval.option_id or approval.state
            raise AlreadyResolved(
                f"Approval {approval_id} has been answered: {outcome}.",
                hint="The first answer counts; `goclaw approvals list` names those that wait.",
                approvalId=approval_id,
                outcome=outcome,
            ) from error
        return option_id


def _approval(row: dict[str, object]) -> Approval:
    names = Approval.__dataclass_fields__
    return Approval(**{name: row[name] for name in names})  # type: ignore[arg-type]
