"""A store under a test's hand: either writer run step by step, and the laws its file must obey.

Owns the reading of a database from outside (dumps, folds, chains). Not in here: any test.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import orjson

from goclaw.core import limits
from goclaw.core.states import TERMINAL, may
from goclaw.store import database, queries, schema

CATALOGUE = queries.load()
PROGRAMS = list(CATALOGUE.programs.values())
INDEX = {program.name: index for index, program in enumerate(PROGRAMS)}
OPEN = ("QUEUED", "RUNNING", "RETRY_WAIT", "SUSPENDED")
BUILDS = ("native", "pure")

PROMISED = database._PRAGMAS.format(synchronous="FULL")
# What is on disk is looked at through SQLite: most tests need no flush.
QUICK = "PRAGMA synchronous=OFF; PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY"


def writer_of(build: str) -> Any:
    """The writer's module of a build: native or pure."""
    return importlib.import_module(f"goclaw._{'fast' if build == 'native' else 'pure'}.writer")


@functools.cache
def _template() -> bytes:
    """A migrated file, made once: its flushes are the slow part of a small test."""
    with tempfile.TemporaryDirectory() as folder:
        database.open_database(Path(folder)).close()
        return (Path(folder) / schema.NAME).read_bytes()


def fresh(folder: Path) -> Path:
    """A migrated database file that nobody holds."""
    path = folder / schema.NAME
    path.write_bytes(_template())
    return path


def writer(
    path: Path, build: str, programs: list[Any], pragmas: str = QUICK, **options: Any
) -> Any:
    """A writer with the bounds that the daemon gives it, but for ``options``; without a thread."""
    settings: dict[str, Any] = {
        "batch_max": limits.BATCH_OPERATIONS_MAX,
        "pending_max": limits.PENDING_OPERATIONS_MAX,
        "busy_ms_max": limits.BUSY_MS_MAX,
        "wal_bytes_max": limits.WAL_BYTES_MAX,
        "checkpoint_bytes": limits.CHECKPOINT_BYTES,
        "checkpoint_wait_ms": limits.CHECKPOINT_WAIT_MS,
        "threaded": False,
    }
    return writer_of(build).Writer(
        str(path), programs, CATALOGUE.statements, pragmas, **{**settings, **options}
    )


class Answer:
    """What one operation came to."""

    def __init__(self, done: tuple[Any, ...], program: str) -> None:
        self.ticket, self.code, self.message, self.parts, self.events = done
        self.program = program

    def __getitem__(self, name: str) -> Any:
        """A returned value of the first part by the name it has in queries.sql."""
        return self.parts[0][CATALOGUE.programs[self.program].returns.index(name)]


class Store:
    """One writer without a thread. ``now`` and ``mono`` are the caller's to move."""

    def __init__(self, path: Path, build: str, *, pragmas: str = QUICK, **options: Any) -> None:
        self.path, self.build = path, build
        self.writer = writer(path, build, PROGRAMS, pragmas, **options)
        self.now = 1_000
        self._names: dict[int, str] = {}
        self._ids = 0

    def part(self, program: str, **arguments: Any) -> tuple[int, tuple[Any, ...]]:
        """A part of an operation; ``now`` is added where it is taken and not given."""
        parameters = CATALOGUE.programs[program].parameters
        assert set(arguments) <= set(parameters), set(arguments) - set(parameters)
        values = {"now": self.now, **arguments}
        return INDEX[program], tuple(values.get(name) for name in parameters)

    def submit(self, *parts: tuple[int, tuple[Any, ...]], live: bool = False) -> int:
        """Queue an operation; its ticket."""
        ticket: int = self.writer.submit(parts, live)
        self._names[ticket] = PROGRAMS[parts[0][0]].name if parts else ""
        return ticket

    def flush(self) -> list[Answer]:
        """Run all that is queued; the answers in commit order."""
        while self.writer.step():
            pass
        return [Answer(done, self._names.pop(done[0])) for done in self.writer.drain()]

    def run(self, program: str, **arguments: Any) -> Answer:
        """One operation, alone in its batch."""
        self.submit(self.part(program, **arguments))
        (answer,) = self.flush()
        return answer

    def must(self, program: str, **arguments: Any) -> Answer:
        """``run``, and it went well."""
        answer = self.run(program, **arguments)
        assert answer.code is None, (program, answer.code, answer.message)
        return answer

    # -- short forms of what most tests need -----------------------------------------------------

    def session(self, weight: int = 1) -> int:
        """A new session; its sid."""
        self._ids += 1
        name = f"session_{self._ids}"
        answer = self.must(
            "session_new", session_id=name, stream_id=f"stream_{self._ids}",
            salt=name.encode().ljust(16, b"."), cwd="/", roots='["/"]', brain="direct",
            interactive=0,
        )  # fmt: skip
        sid: int = answer["sid"]
        if weight != 1:
            with apsw.Connection(str(self.path)) as connection:
                connection.execute("UPDATE sessions SET weight = ? WHERE sid = ?", (weight, sid))
        return sid

    def task(self, sid: int, **changes: Any) -> tuple[int, tuple[Any, ...]]:
        """The part that enqueues a task with a name of its own."""
        self._ids += 1
        arguments = {
            "sid": sid, "task_id": f"task_{self._ids}", "run_id": f"run_{self._ids}", "pool": "",
            "kind": "prompt", "parallel": 0, "rank": 4, "max_attempts": 3, "hash": b"h",
            "on_unknown": "suspend", "policy_version": "p0", "trace": f"00-{self._ids:032x}-01",
            "payload": b"{}", "origin": "unix", "session_limit": 1000,
        }  # fmt: skip
        arguments |= changes
        arguments.setdefault("work", f"{arguments['kind']}:{arguments['pool'] or 'any'}")
        return self.part("enqueue", **arguments)

    def enqueue(self, sid: int, **changes: Any) -> int:
        """Accept a task; its tid."""
        self.submit(self.task(sid, **changes))
        (answer,) = self.flush()
        assert answer.code is None, answer.code
        tid: int = answer["tid"]
        return tid

    def claim(self, token: bytes, **changes: Any) -> Answer:
        """Claim from goclaw's own pool."""
        arguments = {
            "pool": "", "owner": "lane", "token": token, "lease_until_mono": 30_000,
            "now_mono": 0, "policy_version": "p1", "aging_factor": 16,
        }  # fmt: skip
        return self.must("claim", **{**arguments, **changes})

    def close(self) -> None:
        self.writer.close()


# -- looking from outside -------------------------------------------------------------------------


def connect(path: Path) -> apsw.Connection:
    """A reader, of the same SQLite as both writers."""
    return apsw.Connection(str(path), apsw.SQLITE_OPEN_READONLY)


def rows(path: Path, sql: str, *bindings: Any) -> list[tuple[Any, ...]]:
    """Run a query of the test's own."""
    connection = connect(path)
    try:
        return connection.execute(sql, bindings).fetchall()
    finally:
        connection.close()


def dump(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, in the order of its columns."""
    connection = connect(path)
    try:
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
            )
        ]
        return {
            name: sorted(connection.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr)
            for name in tables
        }
    finally:
        connection.close()


def changed(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> set[str]:
    """Names of the tables that differ, apart from the count of batches."""
    return {name for name in before if name != "writer" and before[name] != after[name]}


def link(
    before: bytes, event_id: int, at: int, texts: tuple[str | None, ...], digest: bytes
) -> bytes:
    """The chain's rule, said a third time."""
    words = b"".join((text or "").encode() + b"\0" for text in texts)
    return hashlib.sha256(
        before + event_id.to_bytes(8, "big") + at.to_bytes(8, "big") + words + digest
    ).digest()


def obey(path: Path) -> None:
    """Assert every law that holds between operations."""
    connection = connect(path)
    try:
        with connection:  # one snapshot
            _events(connection)
            _tasks(connection)
            _sessions(connection)
            _ready(connection)
            _counts(connection)
    finally:
        connection.close()


def _counts(connection: apsw.Connection) -> None:
    """What a start counts by indexes is what there is."""
    by_indexes = connection.execute(CATALOGUE.queries["task_counts"].sql)
    by_rows = connection.execute("SELECT state, count(*) FROM tasks GROUP BY state")
    assert {state: count for state, count in by_indexes if count} == dict(by_rows)


def _events(connection: apsw.Connection) -> None:
    """Ids are dense from 1 (I-2), the chain verifies (O-4)."""
    for sid, head, salt, last in connection.execute("SELECT sid, head, salt, link FROM sessions"):
        cursor, tail = 0, bytes(32)
        sql = CATALOGUE.queries["chain_after"].sql
        found = connection.execute(sql, {"sid": sid, "cursor": 0, "limit": -1})
        for event_id, at, kind, run, task, payload, digest, _attempt in found:
            assert event_id == cursor + 1, (sid, cursor, event_id)
            assert digest == hashlib.sha256(salt + payload).digest()
            tail = link(tail, event_id, at, (kind, run, task), digest)
            cursor = event_id
        assert (head, last) == (cursor, tail), sid


def _tasks(connection: apsw.Connection) -> None:
    """State is the fold of the events; each step is in the table (Q-1, Q-2); leases (I-1)."""
    states: dict[int, str | None] = {}
    claims: Counter[int] = Counter()
    sql = (
        "SELECT tid, type, attempt, payload FROM events WHERE type LIKE 'task.%' "
        "ORDER BY sid, event_id"
    )
    for tid, kind, attempt, payload in connection.execute(sql):
        step = orjson.loads(payload)
        assert step["from"] == states.get(tid), (tid, step)
        assert may(step["from"], step["to"]), step
        assert step["reason"]
        named = {"task.requeued": "QUEUED"}.get(kind, kind.removeprefix("task.").upper())
        assert named == step["to"], (kind, step)
        states[tid] = step["to"]
        claims[tid] += step["to"] == "CLAIMED"
        assert attempt == claims[tid], (tid, attempt)
    tokens = []
    found = connection.execute(
        "SELECT tid, state, attempt, lease_token, lease_owner, lease_until_mono, crashes, failures,"
        " max_attempts, due_mono FROM tasks"
    )
    for tid, state, attempt, token, owner, until, crashes, failures, most, due in found:
        assert states.pop(tid) == state
        assert attempt == claims[tid]
        leased = [token is not None, owner is not None, until is not None]
        assert leased == [state == "RUNNING"] * 3, (tid, state, leased)
        assert due is None or state in ("RETRY_WAIT", "SUSPENDED")
        assert crashes >= (state == "RUNNING")
        assert 0 <= failures <= most
        tokens += [token] * (token is not None)
    assert not states
    assert len(tokens) == len(set(tokens))


def _sessions(connection: apsw.Connection) -> None:
    """Counts are counts; a serial turn is held by the one serial task that is under way (Q-9)."""
    open_tasks: Counter[int] = Counter()
    serial: dict[int, list[int]] = {}
    for sid, tid, state, line, attempt, redriven in connection.execute(
        "SELECT sid, tid, state, line, attempt, state = 'QUEUED' AND reason = 'redrive' FROM tasks "
        "ORDER BY seq"
    ):
        if state in TERMINAL:
            continue
        open_tasks[sid] += 1
        if not line and attempt and not redriven:
            serial.setdefault(sid, []).append(tid)
    for sid, turn, count in connection.execute("SELECT sid, turn, open FROM sessions"):
        assert count == open_tasks[sid], sid
        assert serial.get(sid, []) == ([] if turn is None else [turn]), sid


def claimable(connection: apsw.Connection) -> dict[tuple[int, int], set[int]]:
    """By brute force: which tasks of which line may be claimed now, gates aside (Q-9, Q-17)."""
    found: dict[tuple[int, int], set[int]] = {}
    turns = {row[0]: row[1] for row in connection.execute("SELECT sid, turn FROM sessions")}
    for sid, line, tid in connection.execute(
        "SELECT sid, line, tid FROM tasks WHERE state = 'QUEUED' AND held = 0 ORDER BY seq, tid"
    ):
        turn = turns[sid]
        if line == 0 and turn is not None:
            if tid == turn:
                found[sid, 0] = {tid}
        elif line == 0:
            found.setdefault((sid, 0), {tid})
        else:
            found.setdefault((sid, line), set()).add(tid)
    return found


def _ready(connection: apsw.Connection) -> None:
    """The ready index holds the claimable head of each line that has one, and nothing else; behind
    a gate it stands outside."""
    ready = claimable(connection)
    heads: list[tuple[Any, ...]] = connection.execute(
        "SELECT h.sid, h.line, h.tid, h.pool = t.pool, h.rank = t.rank, h.interactive = "
        "(t.kind = 'prompt'), h.gate IS NULL OR h.gate = t.wid FROM heads AS h "
        "JOIN tasks AS t ON t.tid = h.tid"
    ).fetchall()
    stalled: list[tuple[Any, ...]] = connection.execute(
        "SELECT g.sid, g.line, g.tid, g.wid = t.wid, w.gated = 1, 1, 1 FROM stalled AS g "
        "JOIN tasks AS t ON t.tid = g.tid JOIN works AS w ON w.wid = g.wid"
    ).fetchall()
    outside = {(sid, line) for sid, line, *_ in stalled}
    assert not outside & {(sid, line) for sid, line, *_ in heads}
    assert {(sid, line) for sid, line, *_ in heads} | outside == set(ready)
    for sid, line, tid, *fits in (*heads, *stalled):
        assert tid in ready[sid, line], (sid, line, tid, ready[sid, line])
        assert fits == [1, 1, 1, 1]
    for most, let_in, running in connection.execute(
        "SELECT most, (SELECT count(*) FROM heads AS h JOIN tasks AS t ON t.tid = h.tid "
        "WHERE t.wid = w.wid), (SELECT count(*) FROM tasks AS t WHERE t.wid = w.wid AND "
        "t.state = 'RUNNING') FROM works AS w WHERE most IS NOT NULL"
    ):
        assert not let_in or let_in + running <= most
    for pool, claims in connection.execute("SELECT pool, claims FROM pools").fetchall():
        ((made,),) = connection.execute(
            "SELECT ifnull(sum(attempt), 0) - (SELECT count(*) FROM events AS c "
            "JOIN tasks AS t ON t.tid = c.tid WHERE c.type = 'task.claimed' AND t.pool = ?1 "
            "AND EXISTS (SELECT 1 FROM events AS f WHERE f.sid = c.sid AND f.tid = c.tid "
            "AND f.event_id > c.event_id AND f.type = 'run.forked')) FROM tasks WHERE pool = ?1",
            (pool,),
        )  # a fork takes its parent's claims along
        assert claims == made
