"""writer: its bounds, its end, its thread, its process; and that nothing is left behind."""

from __future__ import annotations

import gc
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import store_support as support

from goclaw.store import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(params=support.BUILDS)
def build(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return support.fresh(tmp_path)


@pytest.fixture
def store(path: Path, build: str) -> Iterator[support.Store]:
    store = support.Store(path, build, pending_max=4)
    yield store
    store.close()


def note(store: support.Store, value: str = "v") -> tuple[int, tuple[Any, ...]]:
    return store.part("meta_put", key="k", value=value)


def wait(store: support.Store, count: int) -> list[tuple[Any, ...]]:
    """Drain a threaded writer until ``count`` operations are done."""
    done: list[tuple[Any, ...]] = []
    while len(done) < count:
        assert select.select([store.writer.wake_fd], [], [], 20)[0], "the writer is silent"
        done += store.writer.drain()
    return done


# -- bounds ---------------------------------------------------------------------------------------


@pytest.mark.req("I-5", "Q-10")
def test_new_work_is_refused_at_the_bound_and_live_attempts_have_room(store: support.Store) -> None:
    part = note(store)
    assert [store.writer.submit((part,)) for _ in range(6)] == [1, 2, 3, 4, 0, 0]
    live = [store.writer.submit((part,), True) for _ in range(6)]
    assert live == [5, 6, 7, 8, 0, 0]
    assert store.writer.stats()[2] == 8
    while store.writer.step():
        pass
    # answered and not yet fetched: that takes memory too
    assert store.writer.submit((part,), True) == 0
    assert [done[0] for done in store.writer.drain()] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert store.writer.stats()[2] == 0
    assert store.writer.submit((part,)) == 9


@pytest.mark.req("I-5")
def test_one_queue_for_new_work_and_live_attempts(store: support.Store) -> None:
    for value, live in (("1", False), ("2", True), ("3", False), ("4", True)):
        store.submit(note(store, value), live=live)
    assert [answer.ticket for answer in store.flush()] == [1, 2, 3, 4]
    assert support.rows(store.path, "SELECT value FROM meta WHERE key = 'k'") == [("4",)]


@pytest.mark.req("S-2")
def test_a_batch_is_one_transaction_and_bounded(path: Path, build: str) -> None:
    store = support.Store(path, build, batch_max=5)
    for number in range(12):
        store.submit(note(store, str(number)))
    steps = []
    while store.writer.step():
        steps.append(len(store.writer.drain()))
    assert steps == [5, 5, 2]
    assert support.rows(path, "SELECT batches FROM writer") == [(3,)]
    assert store.writer.stats()[:3] == (3, 12, 0)
    store.close()


@pytest.mark.req("S-2")
def test_stats_count_flushes(store: support.Store) -> None:
    store.must("meta_put", key="k", value="v")
    batches, operations, pending, flush_ns, all_flushes_ns, pages = store.writer.stats()
    assert (batches, operations, pending) == (1, 1, 0)
    assert 0 < flush_ns <= all_flushes_ns
    assert pages > 0


# -- wrong use ------------------------------------------------------------------------------------

WRONG: list[tuple[type[Exception], Callable[[support.Store], Any]]] = [
    (TypeError, lambda store: [note(store)]),
    (TypeError, lambda store: None),
    (TypeError, lambda store: (5,)),
    (ValueError, lambda store: ((1, 2, 3),)),
    (TypeError, lambda store: (("meta_put", ("k", "v")),)),
    (IndexError, lambda store: ((len(support.PROGRAMS), ()),)),
    (IndexError, lambda store: ((-1, ()),)),
    (TypeError, lambda store: ((support.INDEX["meta_put"], ("k",)),)),
    (TypeError, lambda store: ((support.INDEX["meta_put"], ("k", "v", "w")),)),
    (TypeError, lambda store: ((support.INDEX["meta_put"], None),)),
    (TypeError, lambda store: (store.part("meta_put", key=["k"], value="v"),)),
    (TypeError, lambda store: (store.part("meta_put", key=bytearray(b"k"), value="v"),)),
    (TypeError, lambda store: (note(store), store.part("meta_put", key=object(), value="v"))),
    (OverflowError, lambda store: (store.part("meta_put", key="k", value=1 << 63),)),
    (OverflowError, lambda store: (store.part("meta_put", key="k", value=-(1 << 63) - 1),)),
    (UnicodeEncodeError, lambda store: (store.part("meta_put", key="k", value="\ud800"),)),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_operation_is_refused_before_it_is_queued(
    store: support.Store, number: int
) -> None:
    kind, parts = WRONG[number]
    with pytest.raises(kind):
        store.writer.submit(parts(store))
    assert store.writer.stats()[2] == 0
    assert not store.writer.step()
    assert store.must("meta_put", key="k", value="v").ticket == 1


def test_bind_puts_arguments_where_the_program_takes_them(store: support.Store) -> None:
    bind = store.writer.bind
    part = bind("heartbeat", {"lease_until_mono": 5, "tid": 7})
    assert part == (support.INDEX["heartbeat"], (7, None, 5))
    assert bind("heartbeat", {}) == (support.INDEX["heartbeat"], (None, None, None))
    with pytest.raises(KeyError, match="'lease'"):
        bind("heartbeat", {"tid": 7, "lease": 5})
    with pytest.raises(KeyError, match="'heart'"):
        bind("heart", {})


def test_every_kind_of_value_comes_back_as_it_went(path: Path, build: str) -> None:
    catalogue = queries.parse(
        "-- program: echo a b c d e f\n-- returns: a b c d e f g\n-- step: run\n"
        "SELECT :a || '' AS g, :b AS b;\n"
    )
    writer = support.writer(path, build, list(catalogue.programs.values()), support.QUICK)
    values = ("wörd\0behind", -(1 << 63), 1.5, None, b"\0\xff", True)
    writer.submit(((0, values),))
    writer.submit(((0, ("", (1 << 63) - 1, float("-inf"), None, b"", False)),))
    assert writer.step()
    one, other = writer.drain()
    assert one[3] == [(*values, "wörd\0behind")]
    assert other[3] == [("", (1 << 63) - 1, float("-inf"), None, b"", False, "")]
    writer.close()


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("-- step: run\nSELECT :b;", "nothing sets :b"),
        ("-- returns: c\n-- step: run\nSELECT :a AS b;", "nothing sets the returned c"),
        ("-- step: emit\nSELECT 1 AS kind;", "an event is kind, type and payload"),
        ("-- step: emit\nSELECT 1 AS kind, 'x' AS type, 'y' AS payload;", "an event needs"),
    ],
)
def test_a_program_that_does_not_fit_is_named(
    path: Path, build: str, steps: str, words: str
) -> None:
    catalogue = queries.parse(f"-- program: p a\n{steps}")
    gc.collect()
    fds = len(os.listdir("/dev/fd"))
    with pytest.raises(ValueError, match=f"p(, step 1)?: {words}"):
        support.writer(path, build, list(catalogue.programs.values()), support.QUICK)
    gc.collect()
    assert len(os.listdir("/dev/fd")) == fds, "a handle is left open"


@pytest.mark.req("S-3")
def test_a_file_that_does_not_open_is_refused(tmp_path: Path, build: str) -> None:
    with pytest.raises(RuntimeError, match="unable to open"):
        support.Store(tmp_path / "nowhere" / "x.db", build)
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(RuntimeError, match="no such table"):
        support.Store(empty, build)
    assert empty.stat().st_size == 0
    assert not (tmp_path / "x.db").exists(), "a writer never makes a file"


def test_step_is_for_a_writer_without_a_thread(path: Path, build: str) -> None:
    store = support.Store(path, build, threaded=True)
    with pytest.raises(RuntimeError, match="without a thread"):
        store.writer.step()
    store.close()


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.req("I-3")
@pytest.mark.parametrize("threaded", [True, False], ids=["thread", "step"])
def test_close_runs_what_is_queued(path: Path, build: str, threaded: bool) -> None:
    store = support.Store(path, build, threaded=threaded, batch_max=16)
    for number in range(500):
        assert store.writer.submit((note(store, str(number)),))
    store.close()
    assert support.rows(path, "SELECT value FROM meta WHERE key = 'k'") == [("499",)]
    done = store.writer.drain()
    assert [(ticket, code) for ticket, code, *_ in done] == [(n + 1, None) for n in range(500)]
    assert store.writer.drain() == []


@pytest.mark.parametrize("undrained", [True, False])
def test_after_close_only_drain_works(path: Path, build: str, undrained: bool) -> None:
    store = support.Store(path, build)
    if undrained:
        store.writer.submit((note(store),))
    store.close()
    store.close()
    for call in (
        lambda: store.writer.submit((note(store),)),
        store.writer.step,
        store.writer.stats,
        lambda: store.writer.fail_next_commit(True),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert len(store.writer.drain()) == undrained
    with pytest.raises(RuntimeError, match="closed"):
        store.writer.submit((note(store),))
    store.close()


@LINUX
@pytest.mark.parametrize("forgotten", [True, False], ids=["forgotten", "closed"])
def test_no_thread_no_descriptor_no_lock_is_left(path: Path, build: str, forgotten: bool) -> None:
    gc.collect()
    before = (len(os.listdir("/proc/self/task")), len(os.listdir("/dev/fd")))
    store = support.Store(path, build, threaded=True)
    assert len(os.listdir("/proc/self/task")) == before[0] + 1
    store.writer.submit((note(store),))
    wait(store, 1)
    if build == "pure" and forgotten:
        store.close()  # its thread holds a reference: nobody can forget it
    if not forgotten:
        store.close()
    del store
    gc.collect()
    assert (len(os.listdir("/proc/self/task")), len(os.listdir("/dev/fd"))) == before
    assert not path.with_name(path.name + "-wal").exists(), "the last handle was closed"


@LINUX
@pytest.mark.req("R-3")
def test_the_native_thread_takes_no_signals_and_needs_no_gil(path: Path) -> None:
    before = set(os.listdir("/proc/self/task"))
    store = support.Store(path, "native", threaded=True)
    (thread,) = set(os.listdir("/proc/self/task")) - before
    status = Path(f"/proc/self/task/{thread}/status").read_text("ascii")
    (blocked,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    # all but SIGKILL, SIGSTOP and the two that libc keeps for itself
    assert int(blocked, 16) | 1 << 8 | 1 << 18 | 3 << 31 == (1 << 64) - 1
    assert threading.active_count() == 1 or "goclaw-writer" not in {
        thread.name for thread in threading.enumerate()
    }
    ticket = store.writer.submit((note(store),))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody else gets the GIL while this thread computes
    try:
        while not select.select([store.writer.wake_fd], [], [], 0)[0]:
            pass  # select() gives up the GIL only when asked to wait
    finally:
        sys.setswitchinterval(interval)
    assert [done[0] for done in store.writer.drain()] == [ticket]
    store.close()


@pytest.mark.req("I-3")
def test_the_pipe_tells_of_every_commit_once(path: Path, build: str) -> None:
    store = support.Store(path, build, threaded=True)
    for _ in range(50):
        store.writer.submit((note(store),))
        wait(store, 1)
        assert not select.select([store.writer.wake_fd], [], [], 0)[0]
        assert store.writer.drain() == []
    store.close()


FORKED = """
import os, sys
from pathlib import Path
import store_support as support

from goclaw.store import queries
store = support.Store(Path(sys.argv[1]), sys.argv[2], threaded=sys.argv[3] == "thread")
part = store.part("meta_put", key="k", value="v")
store.writer.submit((part,))
if sys.argv[3] == "step":
    assert store.writer.step()
pid = os.fork()
if pid == 0:
    refused = 0
    calls = [
        lambda: store.writer.submit((part,)), store.writer.drain, store.writer.step,
        store.writer.stats, lambda: store.writer.fail_next_commit(True),
    ]
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            refused += "fork" in str(error)
    store.close()
    del store
    os._exit(refused)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 5, status
store.writer.submit((part,))
store.close()
assert [done[1] for done in store.writer.drain()] == [None, None]
"""


@pytest.mark.parametrize("way", ["thread", "step"])
def test_use_after_a_fork_is_refused(path: Path, build: str, way: str) -> None:
    run_child(FORKED, str(path), build, way)


ENDING = """
import sys
from pathlib import Path
import store_support as support

from goclaw.store import queries
store = support.Store(Path(sys.argv[1]), sys.argv[2], threaded=True)
for number in range(300):
    store.writer.submit((store.part("meta_put", key="k", value=str(number)),))
"""


def test_an_interpreter_that_ends_without_close_ends_well(path: Path, build: str) -> None:
    run_child(ENDING, str(path), build)
    support.obey(path)


def run_child(script: str, *arguments: str) -> None:
    """Run a script of its own process; it must end with 0 and say nothing."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(support.__file__).parent), str(Path(support.__file__).parents[1])]
        ),
    }
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        env=environment,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# -- leaks ----------------------------------------------------------------------------------------


def resident_kib() -> int:
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def grows(call: Callable[[], None], calls: int = 100_000) -> int:
    """KiB that ``calls`` calls leave behind, after as many as fill caches and pools."""
    for _ in range(calls // 4):
        call()
    gc.collect()
    before = resident_kib()
    for _ in range(calls):
        call()
    gc.collect()
    return resident_kib() - before


@LINUX
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "entry", ["bind", "submit", "refused", "failed", "emit", "stats", "sha256", "open"]
)
def test_no_entry_leaks(path: Path, entry: str) -> None:
    store = support.Store(path, "native", wal_bytes_max=1 << 20)
    writer = store.writer
    sid = store.session()
    payload = b"x" * 8_000  # more than the arena that an operation begins with
    good = (store.part("meta_put", key="k", value="v"),)
    wrong = (store.part("meta_put", key="k" * 500, value=object()),)
    failing = (
        store.part("session_event", sid=sid, kind=0, type="update", payload=payload),
        store.part("heartbeat", tid=1, token=b"stale", lease_until_mono=1),
    )
    telling = (store.part("session_event", sid=sid, kind=0, type="update", payload=payload),)

    def many(parts: Any) -> Callable[[], None]:
        def call() -> None:
            for _ in range(100):
                writer.submit(parts)
            writer.step()
            writer.drain()

        return call

    def refuse() -> None:
        try:
            writer.submit(wrong)
        except TypeError:
            return
        raise AssertionError

    def reopen() -> None:
        support.Store(path, "native", threaded=True).close()

    calls: dict[str, tuple[Callable[[], object], int]] = {
        "bind": (lambda: writer.bind("meta_put", {"key": "k"}), 100_000),
        "submit": (many(good), 1000),
        "refused": (refuse, 100_000),
        "failed": (many(failing), 60),
        "emit": (many(telling), 60),
        "stats": (writer.stats, 100_000),
        "sha256": (lambda: support.writer_of("native").sha256(payload), 100_000),
        "open": (reopen, 100),
    }
    call, times = calls[entry]
    counts = [sys.getrefcount(value) for value in (payload, good, wrong, failing, telling)]
    left = grows(call, times)  # type: ignore[arg-type]
    assert counts == [sys.getrefcount(value) for value in (payload, good, wrong, failing, telling)]
    # one lost operation is over 6 KiB, one lost handle over 500
    assert left < 4_000, f"{left} KiB are left of {times} calls"
    store.close()
