"""effects.log by itself: what is noted is there, whatever a crash or the disk did to the file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

import orjson
import pytest

from goclaw.core import limits
from goclaw.core.errors import DatabaseRefused, StorageFailed
from goclaw.store.fence import Fence, Note, fence_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("E-8")

HASH = bytes(range(32))


def a_note(number: int, key: str = "k", epoch: int = 1, at_ms: int = 1_000) -> Note:
    return Note(number, epoch, f"{key}{number}", HASH, at_ms)


@contextlib.contextmanager
def opened(path: Path, number: int = 0, *, threaded: bool = True) -> Iterator[Fence]:
    fence = Fence(path, threaded=threaded)
    fence.open(number)
    try:
        yield fence
    finally:
        fence.close()


def put(fence: Fence, *notes: Note) -> None:
    async def body() -> None:
        await fence.note(notes)

    asyncio.run(body())


def numbers(fence: Fence, beyond: int = 0) -> list[int]:
    return [note.number for page in fence.beyond(beyond) for note in page]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return fence_file(tmp_path)


# -- what is there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [True, False])
def test_what_was_noted_is_read_again(path: Path, threaded: bool) -> None:
    with opened(path, threaded=threaded) as fence:
        put(fence, a_note(1), a_note(2))
        put(fence, a_note(3, key="tool:ä\n\u2028"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with opened(path, 3) as fence:
        assert [note for page in fence.beyond(0) for note in page] == [
            a_note(1), a_note(2), a_note(3, key="tool:ä\n\u2028"),
        ]  # fmt: skip
        assert numbers(fence, 2) == [3]
        assert numbers(fence, 3) == []
    found = Fence(path).open(3)
    assert (found.number, found.epoch, found.begins, found.missing) == (3, 1, 1, False)


def test_a_line_says_key_hash_and_epoch(path: Path) -> None:
    with opened(path) as fence:
        put(fence, a_note(1, epoch=4))
    head, line = path.read_bytes().splitlines()
    assert orjson.loads(head) == {"fence": 1, "from": 1}
    assert orjson.loads(line) == {
        "n": 1, "epoch": 4, "key": "k1", "hash": HASH.hex(), "at": 1_000
    }  # fmt: skip


def test_a_file_says_that_it_began_because_there_was_none(path: Path) -> None:
    for _ in range(2):  # whoever was killed before he could report it
        found = Fence(path).open(7)
        assert (found.missing, found.begins, found.number) == (True, 8, 0)
    path.unlink()
    assert Fence(path).open(0).missing is False  # nothing was ever sent


def test_others_cannot_read_it(path: Path) -> None:
    path.touch(0o644)
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_what_is_no_file_of_ours_is_refused(path: Path, kind: str) -> None:
    if kind == "link":
        path.symlink_to(path.parent / "elsewhere")
    else:
        path.mkdir()
    with pytest.raises(DatabaseRefused) as caught:
        Fence(path).open(0)
    assert str(path) in str(caught.value)


# -- what a crash leaves ---------------------------------------------------------------------------


def test_a_cut_tail_is_left_out_at_every_byte(path: Path) -> None:
    with opened(path) as fence:
        put(fence, *(a_note(n) for n in range(1, 4)))
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with opened(path, 9) as fence:
            kept = max(sum(end <= size for end in ends) - 1, 0)
            assert numbers(fence) == [1, 2, 3][:kept]
            put(fence, a_note(10))
            assert numbers(fence) == [*[1, 2, 3][:kept], 10]


@pytest.mark.parametrize("damage", [b"\0" * 40, b"\xff{]", b"[]", b'{"n":1}', b'{"n":"x"}'])
def test_a_damaged_line_hides_no_other(path: Path, damage: bytes) -> None:
    with opened(path) as fence:
        put(fence, a_note(1), a_note(2), a_note(3))
    head, first, _second, third = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join((head, first, damage, third, b"")))
    found = Fence(path).open(1)
    assert (found.number, found.begins) == (3, 1)
    with opened(path, 1) as fence:
        assert numbers(fence) == [1, 3]


def test_a_damaged_head_is_not_taken_for_a_gap(path: Path) -> None:
    with opened(path) as fence:
        put(fence, a_note(1))
    path.write_bytes(b"??\n" + path.read_bytes().split(b"\n", 1)[1])
    assert Fence(path).open(0) == (1, 1, 0, False)


def test_numbers_out_of_order_are_all_found(path: Path) -> None:
    """Attempts race between their commit and their note."""
    with opened(path) as fence:
        put(fence, a_note(1), a_note(4))
        put(fence, a_note(3), a_note(2))
    assert Fence(path).open(2).number == 4
    with opened(path, 2) as fence:
        assert sorted(numbers(fence, 2)) == [3, 4]


# -- one flush for many ----------------------------------------------------------------------------


def test_what_waits_together_shares_one_flush(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, first, calls = threading.Event(), threading.Event(), []
    flush = os.fdatasync

    def slow(file: int) -> None:
        calls.append(threading.current_thread().name)
        first.set()
        assert gate.wait(10)
        flush(file)

    async def body(fence: Fence) -> None:
        monkeypatch.setattr(os, "fdatasync", slow)
        waiting = [fence.note([a_note(1)])]
        await asyncio.get_running_loop().run_in_executor(None, first.wait, 10)
        waiting += [fence.note([a_note(n), a_note(n + 100)]) for n in range(2, 60)]
        assert not any(future.done() for future in waiting)
        gate.set()
        await asyncio.gather(*waiting)

    with opened(path) as fence:
        asyncio.run(body(fence))
        assert fence.flushes == 2
        assert len(numbers(fence)) == 1 + 2 * 58
    assert set(calls) == {"goclaw-fence"}  # never on the loop


def test_the_order_of_notes_is_kept(path: Path) -> None:
    async def body(fence: Fence) -> None:
        await asyncio.gather(*(fence.note([a_note(n)]) for n in range(1, 300)))

    with opened(path) as fence:
        asyncio.run(body(fence))
        assert numbers(fence) == [*range(1, 300)]


def test_close_writes_what_waits(path: Path) -> None:
    async def body(fence: Fence) -> None:
        waiting = [fence.note([a_note(n)]) for n in range(1, 50)]
        fence.close()
        fence.close()
        await asyncio.gather(*waiting)

    fence = Fence(path)
    fence.open(0)
    asyncio.run(body(fence))
    assert Fence(path).open(99).number == 49


# -- a disk that refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "threaded"), [("fdatasync", True), ("pwrite", True), ("pwrite", False)]
)
def test_a_refused_note_is_an_error_and_the_next_one_stands(
    path: Path, call: str, threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, call)

    def refusing(*arguments: object) -> object:
        if call == "pwrite":
            file, data, at = arguments
            real(file, bytes(data)[:5], at)  # type: ignore[call-overload]
        raise OSError(errno.ENOSPC, "no space left")

    with opened(path, threaded=threaded) as fence:
        put(fence, a_note(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refusing)
            with pytest.raises(StorageFailed) as caught:
                put(fence, a_note(2), a_note(3))
            assert "nothing was sent" in str(caught.value)
        put(fence, a_note(4))
        assert numbers(fence) == [1, 4]
    assert len(path.read_bytes().splitlines()) == 3


# -- its bound -------------------------------------------------------------------------------------

DAY = limits.DAY_MS


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FENCE_TRIM_BYTES", 4_000)
    monkeypatch.setattr(limits, "FENCE_BYTES_MAX", 20_000)
    monkeypatch.setattr("goclaw.store.fence._PAGE", 300)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("old", "new", "kept"), [(60, 20, 20), (20, 60, 80), (80, 0, 0)])
def test_what_is_older_than_effects_is_dropped_when_it_is_half(
    path: Path, old: int, new: int, kept: int
) -> None:
    now = 100 * DAY
    with opened(path) as fence:
        put(fence, *(a_note(n, at_ms=now - 31 * DAY) for n in range(1, old + 1)))
        if new:
            put(fence, *(a_note(n, at_ms=now) for n in range(old + 1, old + new + 1)))
    with opened(path, old + new) as fence:
        fence.trim(now)
        found = numbers(fence)
        # Up to a page of old ones stays.
        assert kept <= len(found) <= kept + 4
        assert found == [*range(old + new - len(found) + 1, old + new + 1)]
        put(fence, a_note(999, at_ms=now))
    found_again = Fence(path).open(old + new)
    assert found_again.number == 999
    assert found_again.begins == (found[0] if found else old + new + 1)
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("size", ["small", "page"])
def test_a_small_file_keeps_nothing_a_day_over_its_time(
    path: Path, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == "page":
        monkeypatch.setattr("goclaw.store.fence._PAGE", 300)
    half, kept_ms = DAY // 2, limits.EVENT_RETENTION_MS
    with opened(path) as fence:
        put(fence, *(a_note(n, at_ms=n * half) for n in range(1, 60)))
    with opened(path, 59) as fence:
        fence.trim(kept_ms + 3 * half)  # the first is a day over, and no more
        assert numbers(fence) == [*range(1, 60)]
        fence.trim(kept_ms + 20 * half)
        assert numbers(fence) == [*range(20, 60)]
        fence.trim(kept_ms + 22 * half)
        assert numbers(fence) == [*range(20, 60)]
        put(fence, a_note(60, at_ms=kept_ms + 24 * half))
    with opened(path, 60) as fence:
        assert numbers(fence) == [*range(24, 61)]
    found = Fence(path).open(60)
    assert (found.number, found.begins, found.missing) == (60, 24, False)


@pytest.mark.parametrize("threaded", [True, False])
def test_a_file_that_nobody_writes_to_ages_too(path: Path, threaded: bool) -> None:
    with opened(path, threaded=threaded) as fence:
        put(fence, a_note(1, at_ms=0), a_note(2, at_ms=20 * DAY))

        async def days() -> None:
            for day in (1, 32):
                fence.tend(day * DAY)
            await fence.note([a_note(3, at_ms=32 * DAY)])  # behind it, so it has been done

        asyncio.run(days())
    with opened(path, 3) as again:
        assert numbers(again) == [2, 3]
    assert fence.flushes == 2


def test_a_file_that_is_not_open_is_not_tended(path: Path) -> None:
    Fence(path).tend(100 * DAY)
    assert not path.exists()


@pytest.mark.usefixtures("small")
def test_it_stays_within_its_bound_while_it_is_written(path: Path) -> None:
    """Young notes, too: the older half goes, and the file says from where on it knows all."""
    with opened(path) as fence:
        for n in range(1, 1_000):
            put(fence, a_note(n, at_ms=n))
            assert path.stat().st_size < limits.FENCE_BYTES_MAX + 200  # it is cut behind a note
        found = numbers(fence)
        assert found == [*range(found[0], 1_000)]
        assert len(found) > 60
    assert Fence(path).open(999).begins == found[0]


@pytest.mark.usefixtures("small")
def test_racing_numbers_at_the_cut_are_said_to_be_incomplete(path: Path) -> None:
    with opened(path) as fence:
        order = [n ^ 1 for n in range(2, 102)]  # 3 2 5 4 7 6 ...
        for n in order:
            put(fence, a_note(n, at_ms=0 if n < 80 else 100 * DAY))
    with opened(path, 200) as fence:
        fence.trim(100 * DAY)
        kept = numbers(fence)
    begins = Fence(path).open(200).begins
    assert {n for n in order if n >= begins} <= set(kept)


@pytest.mark.usefixtures("small")
def test_a_disk_that_refuses_the_new_file_leaves_the_old_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with opened(path) as fence:
        put(fence, *(a_note(n, at_ms=0) for n in range(1, 100)))
    with opened(path, 99) as fence:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refusing)
            fence.trim(100 * DAY)
        assert len(numbers(fence)) == 99
        put(fence, a_note(100))
    assert Fence(path).open(100).number == 100
