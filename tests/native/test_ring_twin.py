"""ring: the native module and its twin hold, evict, read and count alike, and both rightly."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from goclaw._pure import frame
from goclaw._pure import ring as pure
from goclaw.core import limits

native: Any = pytest.importorskip(
    "goclaw._fast.ring", reason="the native modules are not built", exc_type=ImportError
)
TWINS = pytest.mark.parametrize("ring", [native.Ring, pure.Ring], ids=["native", "pure"])


def slot(event_id: int, size: int) -> bytes:
    """A frame whose bytes differ from event to event."""
    return frame.text(bytes((event_id * 31 + at) % 251 for at in range(size)))


def outcome(function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError as error:
        return type(error)


class RingTwins(RuleBasedStateMachine):
    """Any sequence of calls on both."""

    @initialize(capacity=st.sampled_from([1024, 1500, 5000, 20_000]), first=st.integers(1, 100_000))
    def make(self, capacity: int, first: int) -> None:
        self.capacity = capacity
        self.next_id = first
        self.rings = (native.Ring(capacity), pure.Ring(capacity))

    def same(self, name: str, *arguments: Any) -> Any:
        results = [outcome(getattr(ring, name), *arguments) for ring in self.rings]
        assert results[0] == results[1]
        return results[0]

    @rule(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=12), data=st.data())
    def append(self, sizes: list[int], data: st.DataObject) -> None:
        for size in sizes:
            kind = data.draw(st.integers(0, 2))
            assert self.same("append", self.next_id, kind, slot(self.next_id, size)) is None
            self.next_id += 1

    @rule(over=st.integers(-2, 2), kind=st.integers(0, 2))
    def append_near_a_quarter(self, over: int, kind: int) -> None:
        size = self.capacity // 4 - 4 + over
        assert self.same("append", self.next_id, kind, slot(self.next_id, size)) is None
        self.next_id += 1

    @rule(offset=st.integers(-3, 3).filter(bool), kind=st.integers(-1, 3), junk=st.binary())
    def append_wrongly(self, offset: int, kind: int, junk: bytes) -> None:
        head = self.rings[0].head
        if head:
            assert self.same("append", head + 1 + offset, 0, slot(1, 5)) is ValueError
        if not 0 <= kind <= 2:
            assert self.same("append", self.next_id, kind, slot(1, 5)) is ValueError
        if self.same("append", self.next_id, 0, junk) is None:
            self.next_id += 1

    @rule(
        back=st.integers(-2, 120),
        bytes_max=st.one_of(st.integers(0, 2000), st.just(-5), st.just(1 << 30)),
        mask=st.integers(0, 7),
        lines=st.booleans(),
    )
    def read(self, back: int, bytes_max: int, mask: int, lines: bool) -> None:
        cursor = self.rings[0].head - back
        self.same("read", cursor, bytes_max, mask, lines)
        self.same("read", cursor, bytes_max, 7, False)
        self.same("covers", cursor)
        self.same("span", cursor)

    @rule()
    def clear(self) -> None:
        self.same("clear")

    @invariant()
    def the_faces_agree_and_the_bound_holds(self) -> None:
        one, other = self.rings
        assert (one.head, one.oldest, one.held_bytes) == (
            other.head,
            other.oldest,
            other.held_bytes,
        )
        assert one.held_bytes <= self.capacity


TestRingTwins = pytest.mark.req("P-2", "I-5", "W-4")(RingTwins.TestCase)


@TWINS
@pytest.mark.req("W-4")
@given(
    sizes=st.lists(st.integers(0, 400), max_size=60),
    kinds=st.lists(st.integers(0, 2), min_size=60, max_size=60),
    bytes_max=st.integers(1, 3000),
    mask=st.integers(1, 7),
    lines=st.booleans(),
)
def test_a_reader_gets_each_wanted_event_once_in_order(
    ring: Any, sizes: list[int], kinds: list[int], bytes_max: int, mask: int, lines: bool
) -> None:
    held = ring(4096)
    slots = [slot(number, size) for number, size in enumerate(sizes, 1)]
    for number, (kind, data) in enumerate(zip(kinds, slots, strict=False), 1):
        held.append(number, kind, data)
    cursor = max(held.oldest - 1, 0)
    wanted = [
        frame_of(data, lines)
        for kind, data in list(zip(kinds, slots, strict=False))[cursor:]
        if mask >> kind & 1
    ]
    got = b""
    while held.head and cursor < held.head:
        chunk, after = held.read(cursor, bytes_max, mask, lines)
        assert after > cursor
        assert len(chunk) <= bytes_max or chunk in wanted
        got, cursor = got + chunk, after
    assert got == b"".join(wanted)


def frame_of(data: bytes, lines: bool) -> bytes:
    return data[2 if data[1] < 126 else 4 :] if lines else data


@TWINS
@pytest.mark.req("W-4")
def test_a_new_ring_knows_nothing(ring: Any) -> None:
    empty = ring(1024)
    assert (empty.head, empty.oldest, empty.held_bytes) == (0, 0, 0)
    assert not empty.covers(0)
    assert empty.read(0, 1000, 7, False) is None
    assert empty.span(0) == (0, 0)
    with pytest.raises(ValueError, match="from 0 to head"):
        empty.span(1)
    empty.append(500, 0, slot(1, 10))
    assert (empty.head, empty.oldest) == (500, 500)
    assert empty.covers(499)
    assert not empty.covers(498)
    assert not empty.covers(501)
    assert empty.read(500, 1000, 7, False) == (b"", 500)


@TWINS
@pytest.mark.req("W-4", "I-5")
def test_the_oldest_slots_make_room(ring: Any) -> None:
    held = ring(1024)
    for number in range(1, 12):
        held.append(number, 0, slot(number, 98))
    assert (held.oldest, held.held_bytes) == (2, 1000)
    assert held.read(0, 5000, 7, False) is None
    assert held.read(1, 5000, 7, False) == (b"".join(slot(n, 98) for n in range(2, 12)), 11)


@TWINS
@pytest.mark.req("W-9")
def test_a_read_takes_what_fits_to_the_byte_and_at_least_one(ring: Any) -> None:
    held = ring(1024)
    for number in range(1, 4):
        held.append(number, 0, slot(number, 98))
    for bytes_max, count in ((-1, 1), (0, 1), (1, 1), (199, 1), (200, 2), (299, 2), (300, 3)):
        assert held.read(0, bytes_max, 7, False)[1] == count
    for bytes_max, count in ((-1, 1), (0, 1), (195, 1), (196, 2), (293, 2), (294, 3)):
        assert held.read(0, bytes_max, 1, True)[1] == count


@TWINS
@pytest.mark.req("W-4", "I-5")
def test_a_frame_over_a_quarter_stays_in_the_store(ring: Any) -> None:
    held = ring(1024)
    held.append(1, 0, slot(1, 50))
    held.append(2, 1, slot(2, 253))
    held.append(3, 0, slot(3, 50))
    assert held.held_bytes == 104
    assert held.covers(0)
    assert held.read(0, 5000, 7, False) == (slot(1, 50), 1)
    assert held.read(1, 5000, 7, False) is None
    assert held.read(2, 5000, 7, False) == (slot(3, 50), 3)
    # Who does not want its kind passes it.
    assert held.read(0, 5000, 1, False) == (slot(1, 50) + slot(3, 50), 3)
    assert held.span(0) == (3, 52 + 257 + 52)
    held.append(4, 0, slot(4, 252))
    assert held.read(3, 5000, 7, False) == (slot(4, 252), 4)


@TWINS
@pytest.mark.req("W-9")
def test_spans_stay_exact_when_the_slots_are_gone(ring: Any) -> None:
    held = ring(1024)
    sizes = [number % 700 for number in range(3_000)]
    for number, size in enumerate(sizes, 1):
        held.append(number, 0, frame.text(b"x" * size))
    frames = [size + (2 if size < 126 else 4) for size in sizes]
    for cursor in range(0, 3_001, 17):
        assert held.span(cursor) == (3_000 - cursor, sum(frames[cursor:]))
    held.clear()
    assert (held.head, held.oldest, held.held_bytes) == (3_000, 0, 0)
    assert held.span(17) == (2_983, sum(frames[17:]))
    assert held.read(3_000, 100, 7, False) == (b"", 3_000)
    assert held.read(2_999, 100, 7, False) is None
    held.append(3_001, 0, slot(1, 5))
    assert held.read(3_000, 100, 7, False) == (slot(1, 5), 3_001)
    assert held.span(3_000) == (1, 7)


@pytest.mark.req("W-9", "I-5")
def test_the_history_of_spans_is_bounded_and_outlasts_the_lag_rule() -> None:
    assert native.HISTORY_EVENTS == pure.HISTORY_EVENTS > limits.LAG_EVENTS_MAX + 1
    rings: list[Any] = [native.Ring(1 << 20), pure.Ring(1 << 20)]
    last = 2 * pure.HISTORY_EVENTS + 100
    tiny = frame.text(b"")
    for number in range(7, last + 1):
        for ring in rings:
            ring.append(number, number % 3, tiny)
    first = last - pure.HISTORY_EVENTS + 1
    for ring in rings:
        assert ring.oldest == first + 1
        assert ring.held_bytes == 2 * (pure.HISTORY_EVENTS - 1)
        assert ring.span(first) == (pure.HISTORY_EVENTS - 1, 2 * (pure.HISTORY_EVENTS - 1))
        assert ring.span(first - 1) == (pure.HISTORY_EVENTS, 2 * (pure.HISTORY_EVENTS - 1))
        joined, after = ring.read(first, 1 << 30, 7, False)
        assert (len(joined), after) == (2 * (pure.HISTORY_EVENTS - 1), last)
    one, other = (ring.read(first, 1 << 30, 2, False) for ring in rings)
    assert (len(one[0]), one[1]) == (len(other[0]), other[1])


@TWINS
@pytest.mark.req("I-5")
@pytest.mark.parametrize("capacity", [-1, 0, 1023, (1 << 30) + 1, 1 << 70])
def test_capacity_has_bounds(ring: Any, capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity_bytes"):
        ring(capacity)


@TWINS
@pytest.mark.req("W-4")
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\x81",
        b"\x82\x00",  # binary
        b"\x01\x00",  # a fragment
        b"\x81\x80\x00\x00\x00\x00",  # masked
        b"\x81\x01",
        b"\x81\x00x",
        b"\x81\x7e",
        b"\x81\x7e\x00",
        b"\x81\x7e\x00\x01",
        b"\x81\x7f" + bytes(7),
        b"\x81\x7f" + bytes(7) + b"\x01",
        b"\x81\x7f" + b"\xff" * 8,
        b"\x81\x00\x81\x00",
    ],
)
def test_a_slot_is_one_text_frame(ring: Any, bad: bytes) -> None:
    held = ring(1024)
    held.append(1, 0, slot(1, 5))
    with pytest.raises(ValueError, match="one unmasked"):
        held.append(2, 0, bad)
    assert (held.head, held.held_bytes, held.span(0)) == (1, 7, (1, 7))


@pytest.mark.req("I-5")
def test_native_keeps_no_reference_and_is_made_once() -> None:
    data = slot(1, 100)
    before = sys.getrefcount(data)
    held = native.Ring(4096)
    for number in range(1, 1_000):
        held.append(number, 0, data)
        held.read(number - 1, 1, 7, False)
    assert sys.getrefcount(data) == before
    with pytest.raises(ValueError, match="made once"):
        held.__init__(4096)
    with pytest.raises(TypeError):
        held.append(1_000, 0, None)


def test_a_large_ring_keeps_as_many_small_events_as_it_has_bytes_for() -> None:
    """100,000 events must be replayable warm from a ring that has the bytes (P-2)."""
    slot = b"\x81\x7e\x01\x00" + b"x" * 255 + b"\n"
    count = 3 * pure.HISTORY_EVENTS
    for twin in (native, pure):
        ring = twin.Ring(16 << 20)
        for event_id in range(1, count + 1):
            ring.append(event_id, 0, slot)
        assert ring.covers(0)
        assert ring.span(0) == (count, count * len(slot))
