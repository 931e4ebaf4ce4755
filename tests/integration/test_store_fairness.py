"""Fair sharing of lanes, measured in claims over seeded histories (Q-8)."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import store_support as support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("Q-8")

AGING = 4


@dataclass(frozen=True)
class Claim:
    """One claim: whose, of which level, how many claims its head had waited and was overtaken."""

    sid: int
    rank: int
    waited: int
    overtaken: int
    due: bool
    due_before: int


@dataclass
class Head:
    """What the test knows of a ready head, counted by itself and not read from the index."""

    rank: int
    ready_at: int
    overtaken: int = 0
    due_at: int | None = None


class Lanes:
    """So many lanes over a store; tasks last a number of ticks each."""

    def __init__(self, store: support.Store, lanes: int, seed: int = 0) -> None:
        self.store, self.lanes = store, lanes
        self.random = random.Random(seed)
        self.reader = support.connect(store.path)
        self.heads: dict[tuple[int, int], Head] = {}  # by session and line
        self.live: list[tuple[int, int, int, bytes]] = []
        self.tick = 0
        self.claims: list[Claim] = []
        self.enqueued = 0

    def bring(
        self, sid: int, count: int = 1, *, rank: int = 4, parallel: int = 0, work: str = "any"
    ) -> None:
        for _ in range(count):
            self.enqueued += 1
            part = self.store.task(
                sid, rank=rank, parallel=parallel, kind="tool", work=f"tool:{work}"
            )
            self.store.submit(part)
        assert all(answer.code is None for answer in self.store.flush())
        self.look()

    def look(self) -> None:
        """Heads that have come since the last look."""
        found = {
            (sid, line): rank
            for sid, line, rank in self.reader.execute("SELECT sid, line, rank FROM heads")
        }
        for key, rank in found.items():
            if key not in self.heads:
                self.heads[key] = Head(rank, len(self.claims))
        self.heads = {key: head for key, head in self.heads.items() if key in found}
        self.judge_due()

    def judge_due(self) -> None:
        """Q-8 (c), word for word."""
        top = min((head.rank for head in self.heads.values()), default=0)
        for head in self.heads.values():
            if head.due_at is None and head.overtaken >= AGING * (head.rank - top) > 0:
                head.due_at = len(self.claims)

    def claim(self, lasts: int) -> bool:
        """Claim for a free lane; False when there is nothing to claim."""
        token = b"%016d" % len(self.claims)
        answer = self.store.claim(token, aging_factor=AGING)
        if answer["tid"] is None:
            assert not self.heads
            return False
        sid = answer["sid"]
        ((line,),) = self.reader.execute("SELECT line FROM tasks WHERE tid = ?", (answer["tid"],))
        head = self.heads.pop((sid, line))
        top = min((other.rank for other in self.heads.values()), default=head.rank)
        due = head.rank > top
        before = 0
        if due:
            assert head.due_at is not None, "a head goes out of turn before it is due"
            others = [other for other in self.heads.values() if other.due_at is not None]
            assert all(head.ready_at <= other.ready_at for other in others), "not the oldest"
        if head.due_at is not None:
            before = sum(claim.due for claim in self.claims[head.due_at - 1 :])
        waited = len(self.claims) - head.ready_at
        assert (answer["waited"], answer["overtaken"]) == (waited, head.overtaken)
        assert (answer["rank"], answer["claims"]) == (head.rank, len(self.claims))
        self.claims.append(Claim(sid, head.rank, waited, head.overtaken, due, before))
        for (owner, _), other in self.heads.items():
            other.overtaken += other.rank > head.rank
            if (owner, other.rank) == (sid, head.rank):  # its session was served: it waits anew
                other.ready_at, other.overtaken, other.due_at = len(self.claims), 0, None
        self.live.append((self.tick + lasts, answer["tid"], sid, token))
        self.look()
        return True

    def end_one(self) -> None:
        self.live.sort()
        self.tick, tid, _sid, token = self.live.pop(0)
        self.store.must("complete", tid=tid, token=token, hash=b"h", result=b"", stop_reason=None)
        self.look()

    def run(self, claims: int, lasts: Callable[[], int] = lambda: 10) -> None:
        """Keep all lanes busy for so many claims."""
        end = len(self.claims) + claims
        while len(self.claims) < end:
            if len(self.live) == self.lanes or not self.claim(lasts()):
                if not self.live:
                    return
                self.end_one()


@pytest.fixture(params=support.BUILDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[support.Store]:
    store = support.Store(support.fresh(tmp_path), request.param)
    yield store
    store.close()


def skew(claims: list[Claim], sids: list[int]) -> int:
    """The most by which tasks started ever differ."""
    started = Counter(dict.fromkeys(sids, 0))
    worst = 0
    for claim in claims:
        started[claim.sid] += 1
        worst = max(worst, max(started.values()) - min(started.values()))
    return worst


@pytest.mark.parametrize("parallel", [0, 1], ids=["serial", "parallel"])
@pytest.mark.parametrize(("sessions", "lanes"), [(2, 1), (3, 4), (7, 4), (20, 4), (20, 16)])
def test_equal_sessions_that_stay_backlogged_are_served_alike(
    store: support.Store, sessions: int, lanes: int, parallel: int
) -> None:
    """(a): service_skew at most 2; waits of ready heads differ by at most lanes + 2."""
    sids = [store.session() for _ in range(sessions)]
    lane = Lanes(store, lanes)
    for sid in sids:
        lane.bring(sid, 12, parallel=parallel)
    lane.run(10 * sessions)
    assert len(lane.claims) == 10 * sessions
    assert skew(lane.claims, sids) <= 2
    waits = [claim.waited for claim in lane.claims[2 * sessions :]]
    assert max(waits) - min(waits) <= lanes + 2
    lane.reader.close()
    support.obey(store.path)


@pytest.mark.parametrize("seed", range(3))
def test_a_backlog_however_deep_buys_nothing(store: support.Store, seed: int) -> None:
    """Parallel tasks of any length; sessions that are deep, shallow, early and late."""
    lanes = 4
    lane = Lanes(store, lanes, seed)
    sids = [store.session() for _ in range(8)]
    for sid in sids:
        lane.bring(sid, lane.random.choice([20, 40, 60]), parallel=1)
    lane.run(8 * 18, lambda: lane.random.choice([1, 5, 30]))
    assert skew(lane.claims, sids) <= 2
    lane.reader.close()


@pytest.mark.parametrize("sessions", [1, 5, 20])
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("parallel", [0, 1], ids=["serial", "parallel"])
def test_a_newcomer_starts_within_lanes_plus_two_claims(
    store: support.Store, sessions: int, lanes: int, parallel: int
) -> None:
    """(b): at the highest waiting priority, having started none in the last round."""
    lane = Lanes(store, lanes, sessions)
    crowd = [store.session() for _ in range(sessions)]
    for sid in crowd:
        lane.bring(sid, 40, parallel=parallel)
    lane.run(3 * sessions + 1)
    regular = store.session()
    for _ in range(6):
        lane.run(sessions + lane.random.randrange(5))  # a round without it
        before = len(lane.claims)
        lane.bring(regular)
        lane.run(lanes + 3)
        served = [n for n, claim in enumerate(lane.claims[before:], 1) if claim.sid == regular]
        assert served, "the newcomer waits"
        assert served[0] <= lanes + 2
    lane.reader.close()


def test_a_newcomer_goes_before_those_whose_long_tasks_end(store: support.Store) -> None:
    """Sessions that their own tasks kept back have a claim of credit, due heads take every second
    claim: a newcomer waits for none of it."""
    lanes = 8
    lane = Lanes(store, lanes)
    slow = [store.session() for _ in range(lanes - 1)]
    for sid in slow:
        lane.bring(sid, 5)
    lane.run(lanes - 1, lambda: 1000)
    lane.bring(store.session(), 60, parallel=1)
    for _ in range(6):
        lane.bring(store.session(), 10, rank=5, parallel=1)
    lane.run(50, lambda: 1)
    newcomer, before = store.session(), len(lane.claims)
    lane.bring(newcomer)
    lane.live = [
        (0, tid, sid, token) for _, tid, sid, token in lane.live
    ]  # all long tasks end at once
    lane.run(lanes + 2, lambda: 1)
    assert sum(claim.due for claim in lane.claims[-lanes:]) >= lanes // 2, "due heads go as well"
    assert newcomer in {claim.sid for claim in lane.claims[before:]}
    lane.reader.close()


def test_a_session_that_sat_out_a_round_is_a_newcomer(store: support.Store) -> None:
    """However long the round before was: others have left meanwhile."""
    lane = Lanes(store, 2)
    sids = [store.session() for _ in range(20)]
    for sid in sids[:8]:
        lane.bring(sid, 20, parallel=1)
    for sid in sids[8:]:
        lane.bring(sid, 4, parallel=1)
    lane.run(4 * 20)  # here twelve leave
    lane.run(2)  # of a round of eight
    before = len(lane.claims)
    lane.bring(sids[8], parallel=1)  # its last claim is more than eight ago
    lane.run(2 + 2)
    assert sids[8] in {claim.sid for claim in lane.claims[before:]}
    lane.reader.close()


def test_a_session_that_comes_back_at_once_is_no_newcomer(store: support.Store) -> None:
    """One task at a time, sent as soon as the last has ended, earns no more than a backlog."""
    lane = Lanes(store, 1)
    crowd = [store.session() for _ in range(5)]
    greedy = store.session()
    for sid in crowd:
        lane.bring(sid, 30)
    for _ in range(100):
        if (greedy, 0) not in lane.heads and greedy not in {sid for _, _, sid, _ in lane.live}:
            lane.bring(greedy)
        lane.run(1)
    started = Counter(claim.sid for claim in lane.claims)
    assert started[greedy] <= min(started[sid] for sid in crowd) + 2
    lane.reader.close()


# -- several lines of one session ------------------------------------------------------------------


@pytest.mark.req("Q-8", "Q-9")
@pytest.mark.parametrize("urgent", [0, 3], ids=["one-level", "due-heads"])
def test_kinds_of_work_give_a_session_no_second_share(store: support.Store, urgent: int) -> None:
    """Parallel tasks of five kinds and serial ones: five lines and a sixth, and one share. So it is
    where all of them are due, in the shade of a more urgent level."""
    lane = Lanes(store, 3)
    sids = [store.session() for _ in range(6)]
    for sid in sids[::2]:
        lane.bring(sid, 12, parallel=1)
    for sid in sids[1::2]:
        for kind in "abcde":
            lane.bring(sid, 12, parallel=1, work=kind)
        lane.bring(sid, 12)
    for _ in range(urgent):
        lane.bring(store.session(), 60, rank=0, parallel=1)
    lane.run(150 if urgent else 48, lambda: lane.random.choice([1, 10, 40]))
    low = [claim for claim in lane.claims if claim.rank == 4]
    assert len(low) >= 30
    assert all(claim.due for claim in low) == bool(urgent)
    assert skew(low, sids) <= 2
    lane.reader.close()
    support.obey(store.path)


@pytest.mark.req("Q-9")
@pytest.mark.parametrize("urgent", [0, 1], ids=["one-level", "due-heads"])
def test_parallel_tasks_of_one_session_start_in_their_order(
    store: support.Store, urgent: int
) -> None:
    """Whatever kinds they are of: no line of a session starves another."""
    lane = Lanes(store, 1)
    other, sid = store.session(), store.session()
    for number in range(24):
        lane.bring(sid, parallel=1, work="cab"[number % 3])
        lane.bring(other, parallel=1)
    for _ in range(urgent):
        lane.bring(store.session(), 60, rank=3, parallel=1)
    lane.run(60)
    started = lane.reader.execute(
        "SELECT tid FROM events WHERE sid = ? AND type = 'task.running' ORDER BY event_id", (sid,)
    ).fetchall()
    assert len(started) >= 10
    assert started == sorted(started)
    lane.reader.close()


@pytest.mark.parametrize(("weights", "claims"), [((1, 1, 2), 120), ((1, 3, 5), 180)])
def test_service_follows_the_weights(
    store: support.Store, weights: tuple[int, ...], claims: int
) -> None:
    lane = Lanes(store, 1)
    sids = [store.session(weight) for weight in weights]
    for sid in sids:
        lane.bring(sid, 120)
    lane.run(claims)
    started = Counter(claim.sid for claim in lane.claims)
    for sid, weight in zip(sids, weights, strict=True):
        assert abs(started[sid] - claims * weight / sum(weights)) <= 2
    lane.reader.close()


# -- between levels -------------------------------------------------------------------------------


def judge_aging(lane: Lanes) -> None:
    """(c): overtaken at most aging_factor x difference and twice the due heads before; never two
    due heads in a row."""
    for claim, following in zip(lane.claims, lane.claims[1:], strict=False):
        assert not (claim.due and following.due), "two due heads in a row"
    for claim in lane.claims:
        assert claim.overtaken <= AGING * claim.rank + 2 * claim.due_before, claim


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("low", [1, 4, 9])
def test_a_low_head_is_overtaken_so_often_and_no_more(
    store: support.Store, lanes: int, low: int
) -> None:
    lane = Lanes(store, lanes)
    urgent = [store.session() for _ in range(6)]
    patient = store.session()
    for sid in urgent:
        lane.bring(sid, 40, rank=0)
    lane.bring(patient, 3, rank=low)
    lane.run(200)
    judge_aging(lane)
    served = [claim for claim in lane.claims if claim.sid == patient]
    assert len(served) == 3
    assert all(claim.overtaken == AGING * low for claim in served)
    assert skew([claim for claim in lane.claims if claim.sid != patient], urgent) <= 2
    lane.reader.close()
    support.obey(store.path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parallel", [0, 1], ids=["serial", "parallel"])
def test_many_levels_with_comings_and_goings(
    store: support.Store, seed: int, parallel: int
) -> None:
    lane = Lanes(store, 4, seed)
    pick = lane.random
    sids = [store.session() for _ in range(12)]
    for sid in sids[:6]:
        lane.bring(sid, 30, rank=0, parallel=parallel)
    for _ in range(60):
        sid = pick.choice(sids[6:])
        lane.bring(sid, pick.choice([1, 1, 3]), rank=pick.choice([1, 2, 5, 9]), parallel=parallel)
        lane.run(pick.randrange(6), lambda: pick.choice([1, 10, 40]))
    judge_aging(lane)
    lane.run(10_000)
    assert len(lane.claims) == lane.enqueued, "nobody is forgotten"
    assert not lane.heads
    lane.reader.close()
    support.obey(store.path)


def test_a_level_served_as_due_keeps_its_virtual_time(store: support.Store) -> None:
    """Who joins it then is one of them, and makes up for nothing when it comes to the top."""
    lane = Lanes(store, 1)
    urgent = [store.session() for _ in range(2)]
    for sid in urgent:
        lane.bring(sid, 60, rank=0, parallel=1)
    low = [store.session() for _ in range(3)]
    for sid in low:
        lane.bring(sid, 60, rank=1, parallel=1)
    lane.run(80)
    assert sum(claim.due for claim in lane.claims) >= 30
    low.append(store.session())
    lane.bring(low[-1], 60, rank=1, parallel=1)
    before = len(lane.claims)
    lane.run(220)
    assert not any(claim.due for claim in lane.claims[-20:]), "the urgent ones are done"
    assert skew([claim for claim in lane.claims[before:] if claim.rank], low) <= 2
    lane.reader.close()


def test_a_newcomer_is_served_soon_while_due_heads_wait(store: support.Store) -> None:
    """With due heads taking every second claim, a newcomer still starts within lanes + 2."""
    lane = Lanes(store, 1)
    for _ in range(4):
        lane.bring(store.session(), 40, rank=0)
    for _ in range(10):
        lane.bring(store.session(), 10, rank=1)
    lane.run(30)
    due = deque(claim.due for claim in lane.claims[-10:])
    assert sum(due) >= 4, "due heads are on their way"
    newcomer = store.session()
    before = len(lane.claims)
    lane.bring(newcomer, rank=0)
    lane.run(3)
    assert newcomer in {claim.sid for claim in lane.claims[before:]}
    lane.reader.close()


@pytest.mark.req("Q-9", "Q-12", "Q-17")
@pytest.mark.parametrize("parallel", [0, 1])
def test_a_claim_brings_the_next_of_its_line(store: support.Store, parallel: int) -> None:
    """Of a parallel line the next whose time has come; of a serial one nothing until the end."""
    sid = store.session()
    later = {"not_before": 10**15}
    first, _, third = (
        store.enqueue(sid, kind="tool", parallel=parallel, **special) for special in ({}, later, {})
    )
    other = store.enqueue(store.session(), kind="tool", parallel=parallel)
    assert store.claim(b"1" * 16)["tid"] == first
    assert store.claim(b"2" * 16)["tid"] == other
    if not parallel:
        assert store.claim(b"3" * 16)["tid"] is None
        store.must("complete", tid=first, token=b"1" * 16, hash=b"", result=b"1")
    assert store.claim(b"4" * 16)["tid"] == third
    assert store.claim(b"5" * 16)["tid"] is None
    support.obey(store.path)
