"""When a recurring task is due: cron expressions in a time zone (Q-12).

Owns their validation and the next occurrence. Not in here: the task that waits for it (``recur`` in
store/queries.sql), the timer (schedules).
"""

from __future__ import annotations

import zoneinfo
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from goclaw.core import limits
from goclaw.core.errors import InvalidParams

__all__ = ["MISFIRES", "Recurrence"]

MISFIRES: Final = ("skip", "once", "all")
"""What becomes of occurrences that nobody was there for: none runs, one runs, each runs."""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A checked cron expression of five fields, as Debian's cron reads it, daylight saving too: a
    skipped time runs right after the gap, a repeated one runs once."""

    cron: str
    zone: str
    misfire: str

    @classmethod
    def checked(cls, cron: str, zone: str, misfire: str) -> Recurrence:
        """InvalidParams names the part that is wrong."""
        found = cls(cron, zone, misfire)
        if misfire not in MISFIRES:
            raise InvalidParams(
                f"misfire must be {' or '.join(MISFIRES)}.", param="schedule.misfire"
            )
        try:
            zoneinfo.ZoneInfo(zone)
        except (ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError of its own
            raise _zone(zone) from None
        except zoneinfo.ZoneInfoNotFoundError:
            raise _zone(zone) from None
        if len(cron.split()) != 5:
            raise _cron(cron, "it has not five fields")
        found.after(0)
        return found

    def after(self, wall_ms: int) -> int:
        """The first occurrence later than that moment, in milliseconds since the epoch.

        InvalidParams when there is none in the next fifty years.
        """
        from cronsim import CronSim, CronSimError

        begin = datetime.fromtimestamp(wall_ms / 1000, zoneinfo.ZoneInfo(self.zone))
        try:
            following = next(CronSim(self.cron, begin))
        except CronSimError as error:
            raise _cron(self.cron, str(error)) from None
        except StopIteration:
            raise _cron(self.cron, "it is never due") from None
        return int(following.timestamp() * 1000)


def _cron(cron: str, why: str) -> InvalidParams:
    return InvalidParams(
        f"The cron expression {cron[: limits.KEY_CHARS_MAX]!r} is not valid: {why}.",
        hint="Write minute, hour, day of month, month and day of week, as in 30 7 * * 1-5.",
        param="schedule.cron",
    )


def _zone(zone: str) -> InvalidParams:
    return InvalidParams(
        f"There is no time zone {zone[: limits.KEY_CHARS_MAX]!r}.",
        hint="Use a name of the IANA database, as Europe/Vienna or UTC.",
        param="schedule.timeZone",
    )
