"""Stories drawn from seeds: whatever happens, the laws hold, and in the end everything has ended.

Owns the short range that every run plays; .ci/soak plays ten thousand. Not in here: what a story is
(sim_story.py), the laws (sim_laws.py), the proof that they notice anything (test_sim_planted.py).
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import simulate

from goclaw import _fast
from goclaw.core.states import TERMINAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sim_story import Story

SEEDS = int(os.environ.get("GOCLAW_SIM_SEEDS", "75"))
FEW = 15
FOUND = (779, 876, 937, 1668, 1817, 3561, 3677, 7472)
"""Seeds that the soak found something with, once mended."""
BUILD = "native" if _fast.NATIVE else "pure"


WANTED = {
    "KILLED at", "SIGTERM", "REBOOT", "the disk fails", "the faults stop", "complete", "fail",
    "suspend", "wake", "reclaim", "heartbeat", "cancel", "signal", "effect_settle",
    "effect_adopt", "approval_resolve", "task.dead_letter", "task.retry_wait", "task.failed",
    "schedule.due", "expire", "recur", "redrive", "drop", "gate_open", "gate_pass",
    "breaker.opened", "claim_interactive", "message.interrupted", "effect.unknown",
    "recovery.report", "refused lease_lost",
    "refused idempotency_conflict", "refused queue_full", "refused storage_failed",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    """The collector would look at pytest's own objects again and again."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.req(
    "I-1", "I-2", "I-3", "I-4", "Q-1", "Q-2", "Q-3", "Q-4", "Q-5", "Q-6", "Q-7", "Q-9", "Q-10",
    "Q-11", "E-1", "E-2", "E-3", "E-5", "E-6", "E-9", "A-7", "R-2", "R-3", "S-7", "G-1", "G-3",
    "G-4",
)  # fmt: skip
def test_the_laws_hold_and_everything_ends_and_the_range_tells_of_everything() -> None:
    """Laws that are never tried prove nothing."""
    told: Counter[str] = Counter()
    for seed in range(SEEDS):
        story = simulate.play(seed, BUILD)
        assert all(task.state in TERMINAL for task in story.laws.tasks.values())
        told += all_told(story)
    assert not WANTED - set(told), WANTED - set(told)


@pytest.mark.req("I-1", "I-2", "I-3", "I-4")
def test_the_laws_hold_while_the_faults_never_stop() -> None:
    for seed in range(FEW):
        simulate.play(seed, BUILD, calm=False)


@pytest.mark.req("Q-11", "Q-13")
@pytest.mark.parametrize("seed", FOUND)
def test_what_the_soak_once_found_stays_mended(seed: int) -> None:
    simulate.play(seed, BUILD)


@pytest.mark.req("R-6", "I-8")
@pytest.mark.parametrize("seed", [2, 3, 5, 7, 11])
def test_a_seed_tells_the_same_story_twice(seed: int) -> None:
    """Else a failure that a seed found could not be looked at."""
    first, second = (simulate.play(seed, BUILD) for _ in range(2))
    assert simulate.tale(first) == simulate.tale(second)
    assert len(first.trace) > 10


def all_told(story: Story) -> Counter[str]:
    """What happened in a story: operations, events, refusals, strokes of fate."""
    told: Counter[str] = Counter()
    for _, kind, *words in story.trace:
        if kind != "op":
            told[str(kind).split(",")[0]] += 1
            continue
        parts, code, _, events = words
        told.update(part.program for part in parts if code is None)
        told.update(f"refused {code}" for _ in parts[:1] if code is not None)
        told.update(event[3] for event in events)
    return told
