"""A daemon with a fault put in on purpose: ``storm_planted.py FAULT serve ...`` runs goclaw so.

Owns the faults. Each is one that a queue could really have; the storm and the simulator have to
notice each of them.
"""

from __future__ import annotations

import functools
import sys
import time
import zlib
from importlib import resources
from typing import Any

from goclaw.store import queries

__all__ = ["FAULTS", "plant"]


def _sql(*changes: tuple[str, str]) -> None:
    """The queue's own SQL, changed."""
    text = resources.files("goclaw.store").joinpath("queries.sql").read_text("utf-8")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    changed = queries.parse(text)
    queries.load = functools.cache(lambda: changed)


def no_fence() -> None:
    """Whoever had the task once may still speak for it."""
    _sql(
        (" t.lease_token = :token AND t.state = 'RUNNING'", " t.state = 'RUNNING'"),
        (" AND lease_token = :token AND state = 'RUNNING'", " AND state = 'RUNNING'"),
    )


def claim_not_atomic() -> None:
    """The head stays in the ready index: the next claim finds it again."""
    _sql(
        ("DELETE FROM heads WHERE sid = :sid AND line = :line;\n-- step: run\nUPDATE tasks\n   SET "
         "state = 'RUNNING'", "SELECT 1;\n-- step: run\nUPDATE tasks\n   SET state = 'RUNNING'"),
        (" WHERE t.tid = :tid AND t.state = 'QUEUED';\n-- step: run\nSELECT 1;",
         " WHERE t.tid = :tid;\n-- step: run\nSELECT 1;"),
    )  # fmt: skip


def event_dropped() -> None:
    """One event in 500 never reaches anybody who follows live."""
    from goclaw.engine import hub

    read = hub.Hub.read_warm

    def losing(self: Any, *where: Any, lines: bool) -> tuple[bytes, int] | None:
        # Behind the ring, which takes no hole; drawn from what they say, as no daemon lives long.
        found = read(self, *where, lines=lines)
        if found is None or not lines:
            return found
        kept = [line for line in found[0].splitlines(keepends=True) if zlib.crc32(line) % 500]
        return b"".join(kept), found[1]

    hub.Hub.read_warm = losing  # type: ignore[assignment, method-assign]


def flush_skipped() -> None:
    """Submissions are acknowledged before their COMMIT, which comes a moment later."""
    from goclaw import _fast
    from goclaw._pure import writer
    from goclaw.store.queries import load

    enqueue = list(load().programs).index("enqueue")

    class Hasty(writer.Writer):
        """Leaves the transaction open until the answers are out."""

        hasty = owed = False

        def _run_batch(self, batch: Any) -> Any:
            self.hasty = any(parts[0][0] == enqueue for _, _, parts in batch.early + batch.late)
            return super()._run_batch(batch)

        def _checkpoint(self, *, idle: bool) -> None:
            if self.owed:
                time.sleep(0.05)
                self.owed = self.hasty = False
                self._execute("COMMIT")
            super()._checkpoint(idle=idle)

        @property
        def _execute(self) -> Any:
            return self._run_sql

        @_execute.setter
        def _execute(self, real: Any) -> None:
            self._real = real

        def _run_sql(self, sql: str, *rest: Any) -> Any:
            if sql == "COMMIT" and self.hasty:
                self.owed = True
                return ()
            return self._real(sql, *rest)

    _fast.open_writer = lambda *arguments, **options: Hasty(*arguments, **options)


def effect_repeated() -> None:
    """An intent without a result is taken for one that was never sent."""
    _sql(
        ("iif(class IN ('pure', 'keyed')", "iif(class <> 'pure'"),
    )


def recovery_forgets() -> None:
    """The report of a lost lease never comes: its task stays RUNNING for ever."""
    _sql(("SELECT tid, lease_token FROM tasks WHERE state = 'RUNNING' AND lease_until_mono < "
          ":now_mono", "SELECT tid, lease_token FROM tasks WHERE state = 'RUNNING' AND tid % 3 "
          "AND lease_until_mono < :now_mono"))  # fmt: skip


def audit_hole() -> None:
    """A daemon that comes after a kill goes on at the head of the chain, not at the file's end."""
    from goclaw.engine import audit

    start = audit.Audit.start

    async def hasty(self: Any) -> None:
        await start(self)
        self._copied = (await self._database.read("audit_head"))[0][0]

    audit.Audit.start = hasty  # type: ignore[method-assign]


FAULTS = {
    fault.__name__: fault
    for fault in (
        no_fence, claim_not_atomic, event_dropped, flush_skipped, effect_repeated, recovery_forgets,
        audit_hole,
    )
}  # fmt: skip


def plant(name: str) -> None:
    """Put the fault in; before anything is opened."""
    FAULTS[name]()


if __name__ == "__main__":
    plant(sys.argv[1])
    from goclaw.cli import main

    sys.exit(main(sys.argv[2:]))
