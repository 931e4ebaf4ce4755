"""core/states.py: every pair of states against the table of the contract."""

from __future__ import annotations

import itertools

import pytest

from goclaw.core.states import TERMINAL, TRANSITIONS, EffectClass, EffectState, Outcome, State, may

# The table of SPEC 2, written a second time and in another shape.
CONTRACT: dict[State | None, str] = {
    None: "QUEUED",
    State.QUEUED: "CLAIMED FAILED CANCELED",
    State.CLAIMED: "RUNNING QUEUED DEAD_LETTER SUSPENDED FAILED CANCELED",
    State.RUNNING: "QUEUED DEAD_LETTER SUSPENDED SUCCEEDED FAILED RETRY_WAIT CANCELED",
    State.RETRY_WAIT: "QUEUED FAILED CANCELED",
    State.SUSPENDED: "QUEUED FAILED CANCELED",
    State.SUCCEEDED: "",
    State.FAILED: "QUEUED",
    State.CANCELED: "",
    State.DEAD_LETTER: "QUEUED",
}


@pytest.mark.req("Q-1")
@pytest.mark.parametrize(
    ("source", "target"), list(itertools.product([None, *State], State)), ids=str
)
def test_every_pair_is_as_the_contract_says(source: State | None, target: State) -> None:
    assert may(source, target) is (target in CONTRACT[source].split())


@pytest.mark.req("Q-1")
def test_each_row_stands_once_and_says_when() -> None:
    pairs = [(row.source, row.target) for row in TRANSITIONS]
    assert len(set(pairs)) == len(pairs)
    assert all(row.when for row in TRANSITIONS)


@pytest.mark.req("Q-7")
def test_only_a_redrive_leaves_a_terminal_state() -> None:
    assert set(State) - TERMINAL == {state for state in State if may(state, State.CANCELED)}
    leaving = {row.when for row in TRANSITIONS if row.source in TERMINAL}
    assert leaving == {"operator redrive"}


def test_every_state_can_be_reached_from_the_start() -> None:
    reached: set[State | None] = {None}
    for _ in State:
        reached |= {row.target for row in TRANSITIONS if row.source in reached}
    assert reached == {None, *State}


def test_the_words_on_the_wire_are_fixed() -> None:
    assert [str(state) for state in State] == [state.name for state in State]
    assert {str(kind) for kind in EffectClass} == {"pure", "keyed", "probeable", "irreversible"}
    assert {str(kind) for kind in EffectState} == {"intent", "retryable", "result", "unknown"}
    assert {str(kind) for kind in Outcome} == {
        "end_turn",
        "max_tokens",
        "max_turn_requests",
        "refusal",
        "cancelled",
    }
