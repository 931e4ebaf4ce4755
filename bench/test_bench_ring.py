"""Frames and rings: native against the twin, in one run, on equal outputs.

Owns the floors of append, warm replay and cold rendering (P-2). Not in here: sockets, the store.
"""

from __future__ import annotations

import statistics
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from goclaw._pure import frame as pure_frame
from goclaw._pure import ring as pure_ring
from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

native_frame: Any = pytest.importorskip(
    "goclaw._fast.frame", reason="the native modules are not built", exc_type=ImportError
)
native_ring: Any = pytest.importorskip(
    "goclaw._fast.ring", reason="the native modules are not built", exc_type=ImportError
)

ROUNDS = 7  # interleaved, so that a slow moment of the machine meets both
EVENTS = 256
SESSION = b"ses_01k6zq3v8x2m4n6p8r0s2t4v6w"
RUN = "run_01k6zq3v8x2m4n6p8r0s2t4v6w"
TASK = "tsk_01k6zq3v8x2m4n6p8r0s2t4v6w"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
PAYLOAD = b'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":" lazy dog"}}'


def rows(count: int) -> list[tuple[Any, ...]]:
    """A stored session: three of four events are standard updates."""
    ids = ("update", 1_700_000_000_000, RUN, TASK, 1, TRACE, PAYLOAD)
    return [(number, int(number % 4 == 0), *ids) for number in range(1, count + 1)]


def slots(count: int) -> list[tuple[int, int, bytes]]:
    """The same events as the live path makes them."""
    return [(row[0], row[1], event(pure_frame, row)) for row in rows(count)]


def event(frame: Any, row: tuple[Any, ...]) -> bytes:
    """One slot."""
    number, kind, name, at_ms, run, task, attempt, trace, payload = row
    texts = [text.encode() for text in (name, run, task, trace)]
    slot: bytes = frame.event(
        SESSION, kind, number, texts[0], at_ms, texts[1], texts[2], attempt, texts[3], payload
    )
    return slot


def packed(stored: list[tuple[Any, ...]]) -> bytes:
    """Rows as the store's reader packs them."""
    data = b""
    for number, kind, name, at_ms, run, task, attempt, trace, payload in stored:
        texts = [*(text.encode() for text in (name, run, task, trace)), payload]
        data += struct.pack("=qqqq5i4x", number, at_ms, attempt, kind, *map(len, texts))
        data += b"".join(texts)
    return data


def filled(ring: Any, events: list[tuple[int, int, bytes]]) -> Any:
    """A ring that has seen all events."""
    held = ring(limits.RING_BYTES)
    for event_id, kind, slot in events:
        held.append(event_id, kind, slot)
    return held


def ratio(fast: Callable[[], object], slow: Callable[[], object], repeats: int) -> float:
    """How many times faster, by the medians of interleaved rounds."""
    measured: dict[Callable[[], object], list[float]] = {fast: [], slow: []}
    for _ in range(ROUNDS):
        for function, results in measured.items():
            begin = time.perf_counter_ns()
            for _ in range(repeats):
                function()
            results.append((time.perf_counter_ns() - begin) / repeats)
    return statistics.median(measured[slow]) / statistics.median(measured[fast])


def judge(
    benchmark: BenchmarkFixture,
    fast: Callable[[], object],
    slow: Callable[[], object],
    *,
    repeats: int,
    floor: float,
) -> None:
    """Equal outputs first, then the ratio, then the figures for the table."""
    assert fast() == slow()
    measured = ratio(fast, slow, repeats)
    benchmark.extra_info["native : pure"] = round(measured, 1)
    run: Any = benchmark.pedantic
    run(fast, rounds=ROUNDS, iterations=repeats, warmup_rounds=1)
    assert measured >= floor, f"native is {measured:.1f} times the twin, the floor is {floor}"


@pytest.mark.req("P-2", "P-7")
@pytest.mark.parametrize(
    ("mask", "lines"), [(0b111, False), (0b001, False), (0b001, True)],
    ids=["opted-in", "vanilla", "vanilla-lines"],
)  # fmt: skip
def test_warm_replay(benchmark: BenchmarkFixture, mask: int, lines: bool) -> None:
    events = slots(2_000)
    native, pure = filled(native_ring.Ring, events), filled(pure_ring.Ring, events)
    cursor = native.head - EVENTS
    judge(
        benchmark,
        lambda: native.read(cursor, limits.RING_BYTES, mask, lines),
        lambda: pure.read(cursor, limits.RING_BYTES, mask, lines),
        repeats=50,
        floor=10 if mask == 0b111 else 8,
    )


@pytest.mark.req("P-2", "P-7")
def test_append(benchmark: BenchmarkFixture) -> None:
    """Into a full ring: each append evicts."""
    slot = slots(1)[0][2]

    def feeder(ring: Any) -> Callable[[], object]:
        held = filled(ring, slots(2_000))

        def feed() -> tuple[int, int, int]:
            for event_id in range(held.head + 1, held.head + 1 + EVENTS):
                held.append(event_id, 0, slot)
            return held.head, held.oldest, held.held_bytes

        return feed

    judge(benchmark, feeder(native_ring.Ring), feeder(pure_ring.Ring), repeats=10, floor=8)
    median_ns = benchmark.stats.stats.median * 1e9  # type: ignore[union-attr]
    benchmark.extra_info["ns an append"] = round(median_ns / EVENTS)


@pytest.mark.req("P-2", "P-7")
def test_cold_rendering(benchmark: BenchmarkFixture) -> None:
    stored = packed(rows(EVENTS))
    judge(
        benchmark,
        lambda: native_frame.packed(SESSION, stored, 0b111, False),
        lambda: pure_frame.packed(SESSION, stored, 0b111, False),
        repeats=10,
        floor=10,
    )
    median_ns = benchmark.stats.stats.median * 1e9  # type: ignore[union-attr]
    benchmark.extra_info["ns a row"] = round(median_ns / EVENTS)


@pytest.mark.req("P-2", "P-7")
def test_frame_of_one_event(benchmark: BenchmarkFixture) -> None:
    texts = (RUN.encode(), TASK.encode(), 1, TRACE.encode(), PAYLOAD)
    values = (SESSION, 0, 41, b"update", 1_700_000_000_000, *texts)
    judge(
        benchmark,
        lambda: native_frame.event(*values),
        lambda: pure_frame.event(*values),
        repeats=500,
        floor=8,
    )
