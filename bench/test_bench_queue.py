"""The store's cycle and its latencies: native, twin and a bare loop in one run (P-1, P-7).

Owns the floors of native over pure, of the twin over the shortest hand-written apsw loop, of p99
with a busy event loop, and of a claim's cost by backlog. Not in here: peers (test_bench_engine.py).
Disks are noisy: ratios of interleaved rounds judge, and equal rows come first.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import uvloop

from goclaw import _fast
from goclaw._pure import writer as pure
from goclaw.core import limits
from goclaw.store import Database, open_database
from goclaw.store import database as module

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

native: Any = pytest.importorskip(
    "goclaw._fast.writer", reason="the native modules are not built", exc_type=ImportError
)
BUILDS = {"native": native.Writer, "pure": pure.Writer}

IN_FLIGHT = 64
CYCLES = 1_280
ROUNDS = 5
BUSY_S_MAX = 4.0  # of a build beside a busy loop: the twin may need minutes for its cycles
BACKLOG = int(os.environ.get("GOCLAW_BENCH_BACKLOG", "50000"))
NOW = 1_700_000_000_000


@contextlib.contextmanager
def opened(home: Path, build: str, **options: Any) -> Iterator[Database]:
    """A database over the writer of one build."""
    home.mkdir(exist_ok=True)
    before = _fast.open_writer
    _fast.open_writer = BUILDS[build]
    try:
        database = open_database(home, **options)
    finally:
        _fast.open_writer = before
    yield database
    database.close()


def session_part(database: Database, number: int) -> Any:
    return database.bind(
        "session_new", session_id=f"s{number}", stream_id="x", salt=b"s" * 16, cwd="/", roots="[]",
        brain="direct", interactive=0, now=NOW,
    )  # fmt: skip


def task_part(database: Database, sid: int, number: int, **special: Any) -> Any:
    plain: dict[str, Any] = {
        "sid": sid, "task_id": f"task_{number:026}", "run_id": f"run_{number:026}", "pool": "",
        "work": "tool:any", "kind": "tool", "parallel": 1, "rank": 4, "max_attempts": 5,
        "on_unknown": "suspend", "hash": b"", "policy_version": "p",
        "trace": f"00-{number:032x}-{number:016x}-01", "payload": b"x" * 200, "origin": "unix",
        "session_limit": limits.TASKS_MAX, "now": NOW,
    }  # fmt: skip
    return database.bind("enqueue", **plain | special)


def claim_arguments(token: bytes) -> dict[str, Any]:
    return {
        "pool": "", "owner": "bench", "token": token, "lease_until_mono": 30_000,
        "now_mono": 0, "policy_version": "p", "aging_factor": limits.AGING_FACTOR, "now": NOW,
    }  # fmt: skip


def complete_arguments(tid: int, token: bytes) -> dict[str, Any]:
    return {
        "tid": tid, "token": token, "hash": b"h" * 32, "result": b"null",
        "stop_reason": "end_turn", "now": NOW,
    }  # fmt: skip


# What cannot be claimed, however old: its gate is shut, its time has not come, another task has its
# session's turn.
BLOCKED: tuple[dict[str, Any], ...] = (
    {"work": "tool:shut"}, {"not_before": NOW + 10**9}, {"parallel": 0},
)  # fmt: skip


def fill(database: Database, tasks: int, sessions: int, blocked: int = 0) -> None:
    """Without a loop: ``sessions`` sessions, ``tasks`` parallel tasks over them in turn; the oldest
    ``blocked`` of them stand outside for each of the reasons in turn, in sessions of their own."""
    writer = database._writer
    parts = itertools.chain(
        (session_part(database, number) for number in range(sessions * (2 if blocked else 1))),
        [database.bind("gate_set", work="tool:shut", pool="", most=0)],
        (
            task_part(database, sessions + number % sessions + 1, number, **BLOCKED[number % 3])
            for number in range(blocked)
        ),
        (task_part(database, number % sessions + 1, number) for number in range(blocked, tasks)),
    )
    for group in iter(lambda: list(itertools.islice(parts, 2_000)), []):
        for part in group:
            assert writer.submit((part,))
        while writer.step():
            pass
        assert all(done[1] is None for done in writer.drain())


# -- cycles ---------------------------------------------------------------------------------------


def stepped(database: Database, cycles: int) -> tuple[list[float], list[Any]]:
    """Processor seconds of so many cycles on this thread, for each IN_FLIGHT of them, which are two
    batches; and the answers."""
    writer, numbers = database._writer, itertools.count()
    spent: list[float] = []
    answers: list[Any] = []

    def run(parts: list[Any]) -> list[Any]:
        began = time.thread_time()
        for part in parts:
            writer.submit((part,), True)
        while writer.step():
            pass
        done: list[Any] = writer.drain()
        spent.append(time.thread_time() - began)
        answers.extend((returns[0], events) for _, _, _, returns, events in done)
        return done

    for _ in range(cycles // IN_FLIGHT):
        tokens = [b"%016d" % next(numbers) for _ in range(IN_FLIGHT)]
        claimed = run([database.bind("claim", **claim_arguments(token)) for token in tokens])
        run(
            [
                database.bind("complete", **complete_arguments(done[3][0][0], token))
                for done, token in zip(claimed, tokens, strict=True)
            ]
        )
    return [a + b for a, b in zip(spent[::2], spent[1::2], strict=True)], answers


class BareLoop:
    """The same cycle written by hand over one apsw cursor: no queue, no futures, no refusals."""

    def __init__(self, path: Path) -> None:
        self.connection = apsw.Connection(
            str(path), apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOMUTEX
        )
        self.connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
        for _ in self.connection.execute(module._PRAGMAS.format(synchronous="FULL")):
            pass
        self.execute = self.connection.cursor().execute
        self.events: list[Any] = []

    def row(self, sql: str, *values: Any) -> Any:
        return self.execute(sql, values).fetchone()

    def event(
        self, sid: int, head: int, salt: bytes, link: bytes, task: tuple[Any, ...], text: str,
        payload: bytes,
    ) -> tuple[int, bytes]:  # fmt: skip
        tid, run_id, task_id, attempt, trace = task
        digest = hashlib.sha256(salt + payload).digest()
        head += 1
        words = f"{text}\0{run_id}\0{task_id}\0".encode()
        link = hashlib.sha256(
            link + head.to_bytes(8, "big") + NOW.to_bytes(8, "big") + words + digest
        ).digest()
        self.execute(
            "INSERT INTO events VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?)",
            (sid, head, text, NOW, tid, attempt, payload, digest),
        )
        self.events.append((sid, head, 1, text, NOW, run_id, task_id, attempt, trace, payload))
        return head, link

    def promote(self, sid: int, line: int) -> None:
        head = self.row(
            "SELECT t.tid, t.pool, t.rank, l.v, ifnull(f.finish, 0), ifnull(f.served_at + 1, 0),"
            " p.claims, l.passed, w.gated FROM sessions AS s JOIN tasks AS t ON t.tid ="
            " iif(?2 > 0 OR s.turn IS NULL, (SELECT q.tid FROM tasks AS q WHERE q.sid = s.sid"
            "   AND q.line = ?2 AND q.state = 'QUEUED' AND q.held = 0 ORDER BY q.seq LIMIT 1),"
            " (SELECT q.tid FROM tasks AS q WHERE q.tid = s.turn AND q.state = 'QUEUED'))"
            " JOIN works AS w ON w.wid = t.wid JOIN pools AS p ON p.pool = t.pool"
            " JOIN levels AS l ON l.pool = t.pool AND l.rank = t.rank"
            " LEFT JOIN flows AS f ON f.sid = s.sid AND f.pool = t.pool AND f.rank = t.rank"
            " WHERE s.sid = ?1 AND NOT EXISTS (SELECT 1 FROM heads WHERE sid = ?1 AND line = ?2)"
            " AND NOT EXISTS (SELECT 1 FROM stalled WHERE sid = ?1 AND line = ?2)",
            sid, line,
        )  # fmt: skip
        self.stand(sid, line, head)

    def next(self, sid: int, line: int) -> Any:
        return self.row(
            "SELECT t.tid, t.pool, t.rank, l.v, ifnull(f.finish, 0), ifnull(f.served_at + 1, 0),"
            " p.claims, l.passed, w.gated FROM tasks AS t"
            " JOIN works AS w ON w.wid = t.wid JOIN pools AS p ON p.pool = t.pool"
            " JOIN levels AS l ON l.pool = t.pool AND l.rank = t.rank"
            " LEFT JOIN flows AS f ON f.sid = ?1 AND f.pool = t.pool AND f.rank = t.rank"
            " WHERE t.tid = (SELECT q.tid FROM tasks AS q WHERE q.sid = ?1"
            "   AND q.line = ?2 AND q.state = 'QUEUED' AND q.held = 0 ORDER BY q.seq LIMIT 1)",
            sid, line,
        )  # fmt: skip

    def stand(self, sid: int, line: int, head: Any) -> None:
        if head is not None:
            tid, pool, rank, v, finish, tie, claims, passed, gated = head
            assert not gated
            start = max(v, finish + (tie > 0) * 1048576) - 1048576
            self.execute(
                "INSERT INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, NULL, 1)",
                (sid, line, tid, pool, rank, start, tie, claims, passed),
            )

    def move(self, sid: int, head: int, link: bytes) -> None:
        self.execute(
            "UPDATE sessions SET head = ?, link = ?, updated_at = ? WHERE sid = ?",
            (head, link, NOW, sid),
        )

    def claim(self, token: bytes) -> tuple[Any, ...]:
        """What the program ``claim`` returns."""
        sid, tid, rank, start, tie, last_due, claims, passed, waited, overtaken, stays = self.row(
            "SELECT h.sid, h.tid, h.rank, h.start, h.tie, p.last_due, p.claims, l.passed,"
            " p.claims - h.ready_at, l.passed - h.passed_at, h.stays"
            " FROM heads AS h JOIN pools AS p ON p.pool = h.pool"
            " JOIN levels AS l ON l.pool = h.pool AND l.rank = h.rank WHERE h.pool = ''"
            " ORDER BY h.rank, h.start, h.tie, h.ready_at, h.tid LIMIT 1"
        )
        due = self.row(
            "SELECT h.sid, h.tid, h.rank, h.start FROM levels AS l JOIN heads AS h ON"
            " (h.sid, h.line) = (SELECT a.sid, a.line FROM heads AS a"
            "  WHERE a.pool = l.pool AND a.rank = l.rank ORDER BY a.ready_at, a.tid LIMIT 1)"
            " WHERE ?1 = 0 AND l.pool = '' AND l.rank > ?2"
            " AND l.passed - h.passed_at >= ?3 * (l.rank - ?2) ORDER BY h.ready_at LIMIT 1",
            last_due, rank, limits.AGING_FACTOR,
        )  # fmt: skip
        assert due is None
        (
            task_id, run_id, attempt, crashes, kind, most, failures, unknown, trace, payload, key,
            client, origin, session_id, head, salt, link, weight, line,
        ) = self.row(
            "SELECT t.task_id, t.run_id, t.attempt + 1, t.crashes + 1, t.kind, t.max_attempts,"
            " t.failures, t.on_unknown, t.trace, y.payload, y.key, y.client, y.origin,"
            " s.session_id, s.head, s.salt, s.link, s.weight, t.line FROM tasks AS t"
            " JOIN task_payloads AS y ON y.tid = t.tid JOIN sessions AS s ON s.sid = t.sid"
            " WHERE t.tid = ? AND t.state = 'QUEUED'",
            tid,
        )  # fmt: skip
        execute = self.execute
        execute("DELETE FROM heads WHERE sid = ? AND line = ?", (sid, line))
        execute(
            "UPDATE tasks SET state = 'RUNNING', attempt = ?, crashes = ?, lease_owner = 'bench',"
            " lease_token = ?, lease_until_mono = 30000, due_mono = NULL, due_at = NULL,"
            " timeout_mono = NULL, policy_version = 'p', updated_at = ?, room = zeroblob(28)"
            " WHERE tid = ?",
            (attempt, crashes, token, NOW, tid),
        )
        task = (tid, run_id, task_id, attempt, trace)
        for text, words in (
            ("task.claimed", b'{"from":"QUEUED","to":"CLAIMED","reason":"claim"}'),
            ("task.running", b'{"from":"CLAIMED","to":"RUNNING","reason":"claim"}'),
        ):
            head, link = self.event(sid, head, salt, link, task, text, words)
        finish = start + (tie == 0) * 1048576 + 1048576 // weight
        execute("INSERT OR REPLACE INTO flows VALUES (?, '', ?, ?, ?)", (sid, rank, finish, claims))
        execute(
            "UPDATE heads SET start = max(start, ?1), tie = ?2, stays = 1, ready_at = ?2,"
            " passed_at = ?3 WHERE sid = ?4 AND pool = '' AND rank = ?5",
            (finish, claims + 1, passed, sid, rank),
        )
        execute(
            "UPDATE levels SET passed = passed + (rank > ?2), v = iif(rank = ?2, max(v, ?1), v)"
            " WHERE pool = '' AND rank >= ?2",
            (start, rank),
        )
        execute("UPDATE pools SET claims = claims + 1, last_due = 0 WHERE pool = ''")
        self.promote(sid, line)
        self.move(sid, head, link)
        return (
            tid, sid, session_id, task_id, run_id, kind, attempt, most, unknown, trace, head,
            payload, key, client, origin, failures, claims, rank, weight, waited, overtaken, stays,
        )  # fmt: skip

    def complete(self, tid: int, token: bytes) -> tuple[Any, ...]:
        """What the program ``complete`` returns."""
        sid, line, run_id, task_id, attempt, trace, head, salt, link, gated = self.row(
            "SELECT t.sid, t.line, t.run_id, t.task_id, t.attempt, t.trace, s.head, s.salt, s.link,"
            " w.gated FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid"
            " JOIN works AS w ON w.wid = t.wid"
            " WHERE t.tid = ? AND t.lease_token = ? AND t.state = 'RUNNING'",
            tid, token,
        )  # fmt: skip
        assert not gated
        execute = self.execute
        execute("INSERT OR REPLACE INTO task_results (tid, result) VALUES (?, ?)", (tid, b"null"))
        head, link = self.event(
            sid, head, salt, link, (tid, run_id, task_id, attempt, trace), "task.succeeded",
            b'{"from":"RUNNING","to":"SUCCEEDED","reason":"finished"}',
        )  # fmt: skip
        execute(
            "UPDATE tasks SET state = 'SUCCEEDED', lease_owner = NULL, lease_token = NULL,"
            " lease_until_mono = NULL, timeout_mono = NULL, deadline_at = NULL,"
            " crashes = crashes - 1, ended_token = ?2, ended_hash = ?3,"
            " ended_state = 'SUCCEEDED', stop_reason = 'end_turn', end_event = ?4,"
            " reason = 'finished', updated_at = ?5, room = NULL"
            " WHERE tid = ?1 AND lease_token = ?2 AND state = 'RUNNING'",
            (tid, token, b"h" * 32, head, NOW),
        )
        execute(
            "UPDATE sessions SET open = open - 1, turn = iif(turn = ?2, NULL, turn) WHERE sid = ?1",
            (sid, tid),
        )
        execute("DELETE FROM uniques WHERE tid = ?", (tid,))
        self.promote(sid, line)
        self.move(sid, head, link)
        return "SUCCEEDED", head

    def cycles(self, count: int) -> tuple[list[float], list[Any]]:
        """As ``stepped``: IN_FLIGHT a transaction, as the writers have them."""
        numbers = itertools.count()
        spent: list[float] = []
        answers: list[Any] = []

        def told(returns: tuple[Any, ...]) -> int:
            answers.append((returns, self.events))
            self.events = []
            tid: int = returns[0]
            return tid

        for _ in range(count // IN_FLIGHT):
            tokens = [b"%016d" % next(numbers) for _ in range(IN_FLIGHT)]
            began = time.thread_time()
            self.execute("BEGIN IMMEDIATE")
            tids = [told(self.claim(token)) for token in tokens]
            self.execute("UPDATE writer SET batches = batches + 1")
            self.execute("COMMIT")
            self.execute("BEGIN IMMEDIATE")
            for tid, token in zip(tids, tokens, strict=True):
                told(self.complete(tid, token))
            self.execute("UPDATE writer SET batches = batches + 1")
            self.execute("COMMIT")
            spent.append(time.thread_time() - began)
        return spent, answers


def rows_of(path: Path) -> dict[str, list[Any]]:
    """All rows of all tables."""
    connection = apsw.Connection(str(path), apsw.SQLITE_OPEN_READONLY)
    try:
        tables = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table'"
        ).fetchall()
        return {
            str(name): sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for (name,) in tables
        }
    finally:
        connection.close()


@pytest.mark.req("P-1", "P-7")
@pytest.mark.timeout(300)
def test_the_twin_is_as_short_as_a_bare_loop(benchmark: Any, tmp_path: Path) -> None:
    """Else native : pure means nothing (P-7). The least processor time that each needed for the
    same IN_FLIGHT cycles: neither flushes, which are the same for all, nor the machine's other
    work."""
    seconds: dict[str, list[list[float]]] = {"native": [], "pure": [], "bare": []}

    def one_round(number: int) -> None:
        rows, told = [], []
        for build in seconds:
            home = tmp_path / f"{build}-{number}"
            with opened(home, "native" if build == "bare" else build, threaded=False) as database:
                fill(database, CYCLES + IN_FLIGHT, 8)
                if build != "bare":
                    spent, answers = stepped(database, CYCLES)
                    seconds[build].append(spent)
                    told.append(answers)
            if build == "bare":
                loop = BareLoop(database.path)
                spent, answers = loop.cycles(CYCLES)
                loop.connection.close()
                seconds[build].append(spent)
                told.append(answers)
            rows.append(rows_of(database.path))
        assert rows[0] == rows[1] == rows[2]
        assert told[0] == told[1] == told[2]

    numbers = itertools.count()
    benchmark.pedantic(lambda: one_round(next(numbers)), rounds=ROUNDS, iterations=1)
    least = {name: sum(map(min, zip(*v, strict=True))) for name, v in seconds.items()}
    cycle_us = {name: value / CYCLES * 1e6 for name, value in least.items()}
    benchmark.extra_info["us a cycle"] = {name: round(value, 1) for name, value in cycle_us.items()}
    benchmark.extra_info["pure : bare"] = round(cycle_us["pure"] / cycle_us["bare"], 2)
    benchmark.extra_info["pure : native"] = round(cycle_us["pure"] / cycle_us["native"], 1)
    print(benchmark.extra_info)
    assert cycle_us["pure"] <= 1.5 * cycle_us["bare"]
    assert cycle_us["pure"] >= 1.5 * cycle_us["native"]


async def through_write(
    database: Database, workers: int, cycles: int, seconds_max: float = math.inf
) -> list[float]:
    """Claim + complete through the public calls; the latency of each call in seconds. No cycle is
    begun after ``seconds_max``."""
    latencies: list[float] = []
    numbers = itertools.count()
    ends = time.perf_counter() + seconds_max

    async def timed(call: Awaitable[Any]) -> Any:
        began = time.perf_counter()
        answer = await call
        latencies.append(time.perf_counter() - began)
        return answer

    async def worker() -> None:
        while (number := next(numbers)) < cycles and time.perf_counter() < ends:
            token = b"%016d" % number
            claimed = await timed(database.write("claim", **claim_arguments(token)))
            tid = claimed.parts[0][0]
            await timed(
                database.write(
                    "heartbeat", live=True, tid=tid, token=token, lease_until_mono=40_000
                )
            )
            await timed(database.write("complete", live=True, **complete_arguments(tid, token)))

    await asyncio.gather(*(worker() for _ in range(workers)))
    return latencies


async def fill_on_loop(database: Database, tasks: int) -> None:
    database.start(lambda events: None)
    await asyncio.gather(*(database.apply(session_part(database, n)) for n in range(8)))
    for start in range(0, tasks, 1_000):
        await asyncio.gather(
            *(
                database.apply(task_part(database, number % 8 + 1, number))
                for number in range(start, min(tasks, start + 1_000))
            )
        )


@pytest.mark.req("P-1")
@pytest.mark.timeout(300)
def test_cycles_through_the_public_calls(benchmark: Any, tmp_path: Path) -> None:
    """64 in flight, FULL: claim, heartbeat and complete, native against the twin."""
    rates: dict[str, list[float]] = {build: [] for build in BUILDS}

    async def run(database: Database) -> float:
        await fill_on_loop(database, CYCLES)
        began = time.perf_counter()
        await through_write(database, IN_FLIGHT, CYCLES)
        return CYCLES / (time.perf_counter() - began)

    def one_round(number: int) -> None:
        for build in BUILDS:
            with opened(tmp_path / f"{build}-{number}", build) as database:
                rates[build].append(uvloop.run(run(database)))

    numbers = itertools.count()
    benchmark.pedantic(lambda: one_round(next(numbers)), rounds=ROUNDS, iterations=1)
    medians = {build: statistics.median(values) for build, values in rates.items()}
    benchmark.extra_info["cycles a second"] = {name: round(v) for name, v in medians.items()}
    benchmark.extra_info["native : pure"] = round(medians["native"] / medians["pure"], 2)
    print(benchmark.extra_info)
    assert medians["native"] >= medians["pure"]  # a slow flush hides the rest


# -- latencies ------------------------------------------------------------------------------------


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def beside_a_busy_loop(database: Database, cycles: int) -> tuple[list[float], list[float]]:
    """(latencies, flushes) in seconds while the loop computes, a millisecond a turn."""
    await fill_on_loop(database, cycles)
    flushes: list[float] = []
    done = False

    async def busy() -> None:
        while not done:
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
            flushes.append(database.stats()[3] / 1e9)
            await asyncio.sleep(0)

    spinning = asyncio.ensure_future(busy())
    latencies = await through_write(database, IN_FLIGHT, cycles, BUSY_S_MAX)
    done = True
    await spinning
    return latencies, flushes


@pytest.mark.req("P-1", "I-8")
@pytest.mark.timeout(300)
def test_p99_with_a_busy_loop(benchmark: Any, tmp_path: Path) -> None:
    """Claim, heartbeat, complete at 64 in flight: p99 <= max(30 ms, 20 flush p99) on the disk.

    The twin stands beside it, on the disk and where a flush costs nothing. Each time apsw calls
    SQLite it lets go of the GIL, and as often as the loop takes it first, the twin waits out a
    slice: 2 to 90 times as slow as the native writer, for a minute or two where that is the rule.
    What it has not begun after BUSY_S_MAX is left out, which flatters it.
    """
    memory = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    p99s: dict[str, list[float]] = {}
    flushes: list[float] = []

    def one_round(number: int) -> None:
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            for build, (place, home) in itertools.product(
                BUILDS, {"disk": tmp_path, "memory": Path(folder)}.items()
            ):
                with opened(home / f"{build}-{number}", build) as database:
                    waited, flushed = uvloop.run(beside_a_busy_loop(database, CYCLES))
                p99s.setdefault(f"{build}, {place}", []).append(percentile(waited, 0.99))
                if (build, place) == ("native", "disk"):
                    flushes.extend(flushed)

    numbers = itertools.count()
    benchmark.pedantic(lambda: one_round(next(numbers)), rounds=ROUNDS, iterations=1)
    p99 = {name: statistics.median(values) * 1e3 for name, values in p99s.items()}
    flush_p99 = percentile(flushes, 0.99) * 1e3
    benchmark.extra_info["p99 ms"] = {name: round(value, 1) for name, value in p99.items()}
    benchmark.extra_info["flush p99 ms"] = round(flush_p99, 1)
    print(benchmark.extra_info)
    assert p99["native, disk"] <= max(30, 20 * flush_p99)
    assert p99["native, disk"] <= p99["pure, disk"] / 5
    assert p99["native, memory"] <= p99["pure, memory"] / 5


@pytest.mark.req("P-1", "Q-17")
@pytest.mark.timeout(1_200)
def test_a_claim_costs_the_same_whatever_waits(benchmark: Any, tmp_path: Path) -> None:
    """1 thousand against BACKLOG queued, of 1 and of 10 thousand sessions, and behind as many that
    are older and blocked; FULL. Whole claims are judged, and once more without their flush, which
    would hide the backlog. .ci/soak asks with a million."""
    backlogs = {
        "1,000": (1_000, 1, 0),
        "many": (BACKLOG, 1, 0),
        "many, of 10,000 sessions": (BACKLOG, 10_000, 0),
        "many, the older half blocked": (BACKLOG, 100, BACKLOG // 2),
    }
    whole: dict[str, list[float]] = {name: [] for name in backlogs}
    unflushed: dict[str, list[float]] = {name: [] for name in backlogs}
    with contextlib.ExitStack() as stack:
        databases = {}
        for number, (name, backlog) in enumerate(backlogs.items()):
            home = tmp_path / str(number)
            with opened(home, "native", threaded=False, synchronous="off") as database:
                fill(database, *backlog)
            databases[name] = stack.enter_context(opened(home, "native", threaded=False))
        tokens: Iterator[int] = itertools.count()

        def claim(name: str) -> None:
            """One claim, a batch of its own; microseconds."""
            database = databases[name]
            writer, flushed = database._writer, database.stats()[4]
            part = database.bind("claim", **claim_arguments(b"%016d" % next(tokens)))
            writer.submit((part,), True)
            began = time.perf_counter_ns()
            writer.step()
            spent = time.perf_counter_ns() - began
            assert writer.drain()[0][3][0][0] is not None
            whole[name].append(spent / 1e3)
            unflushed[name].append((spent - (database.stats()[4] - flushed)) / 1e3)

        def one_round() -> None:
            for _ in range(40):
                for name in databases:
                    claim(name)

        one_round()  # warm caches
        for values in (*whole.values(), *unflushed.values()):
            values.clear()
        benchmark.pedantic(one_round, rounds=3 * ROUNDS, iterations=1)
    figures = {
        "us a claim": {name: statistics.median(values) for name, values in whole.items()},
        "without its flush": {name: statistics.median(v) for name, v in unflushed.items()},
    }
    benchmark.extra_info["queued"] = BACKLOG
    for key, medians in figures.items():
        benchmark.extra_info[key] = {name: round(value, 1) for name, value in medians.items()}
    print(benchmark.extra_info)
    for medians in figures.values():
        assert all(value <= 1.3 * medians["1,000"] for value in medians.values())
