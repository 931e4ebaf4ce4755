"""kill -9 of the daemon at random moments of a scripted run: at `goclaw acp` it is one run.

Each round is a bridge of its own and one prompt of twenty tool calls, with one or two kills in it.
GOCLAW_KILL_ROUNDS sets how many rounds; the seed of a round is printed when it fails.
"""

from __future__ import annotations

import os
import random
import select
import signal
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import CLOCK, Bridge, World, script_file, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROUNDS = int(os.environ.get("GOCLAW_KILL_ROUNDS", "5"))
STEPS = 20
RUN_MS = 900  # about what the run takes: kills are spread over it and a little beyond


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        yield made


def steps(folder: Path) -> list[dict[str, Any]]:
    file = folder / "file.txt"
    file.write_text("one two\n", "utf-8")
    found: list[dict[str, Any]] = []
    for number in range(STEPS):
        found.append({"say": f"Step {number}: {'x' * 40}", "chunks": 4, "delayMs": 3})
        found.append({"call": "word-count", "args": {"file": str(file)}})
    return [*found, {"say": "The end."}]


@pytest.mark.req("W-13", "U-3", "I-3", "I-4", "Q-6")
@pytest.mark.timeout(60 + 30 * ROUNDS)
def test_the_editor_sees_one_run(place: World) -> None:
    brain = script_file(place.cwd, steps(place.cwd))
    first = int(os.environ.get("GOCLAW_KILL_SEED", "1"))
    tally: Counter[str] = Counter()
    for seed in range(first, first + ROUNDS):
        try:
            one_round(place, brain, random.Random(seed), tally)
        except BaseException:
            print(f"\nGOCLAW_KILL_SEED={seed} GOCLAW_KILL_ROUNDS=1 repeats the round")
            raise
    print(f"\nrounds: {ROUNDS}, {dict(tally)}")
    assert tally["kills"] >= ROUNDS


def one_round(place: World, brain: str, chance: random.Random, tally: Counter[str]) -> None:
    bridge = Bridge(place, "--brain", brain)
    try:
        bridge.greet()
        session = bridge.session(place.cwd)
        turn = bridge.prompt(session, "go")
        for _ in range(chance.choice((1, 1, 2))):
            listen(bridge, turn, chance.randrange(RUN_MS))
            if not is_answered(bridge, turn):
                tally["kills in the run"] += place.end(signal.SIGKILL)
            else:
                tally["kills after the run"] += place.end(signal.SIGKILL)
            tally["kills"] += 1
        assert bridge.answer(turn)["result"]["stopReason"] == "end_turn"
        judge(bridge, turn)
        # a daemon that came back knows the run too, and goes on
        again = bridge.prompt(session, "again")
        assert bridge.answer(again)["result"]["stopReason"] == "end_turn"
        judge_log(place, session)
    finally:
        assert bridge.close() == 0
    assert place.end()


def listen(bridge: Bridge, turn: int, wait_ms: int) -> None:
    """Read for a while, as an editor does; the clock runs from the first update."""
    bridge.wait(lambda message: message.get("method") == "session/update")
    until = CLOCK.mono_ms() + wait_ms
    assert bridge.process.stdout is not None
    while (left := until - CLOCK.mono_ms()) > 0 and not is_answered(bridge, turn):
        if select.select([bridge.process.stdout], [], [], left / 1000)[0]:
            bridge.read()


def is_answered(bridge: Bridge, turn: int) -> bool:
    return any(m.get("id") == turn and "method" not in m for m in bridge.received)


def judge(bridge: Bridge, turn: int) -> None:
    """Every update once, in order, before the answer; each tool announced and finished once."""
    ids = bridge.event_ids()
    assert ids == sorted(set(ids))
    answers = [n for n, m in enumerate(bridge.received) if m.get("id") == turn]
    assert len(answers) == 1
    assert all(m.get("method") != "session/update" for m in bridge.received[answers[0] + 1 :])
    assert not [m for m in bridge.received if m.get("method", "").startswith("_goclaw/")]
    tools = [u for u in bridge.updates() if u["sessionUpdate"].startswith("tool_call")]
    told = Counter((u["toolCallId"], u.get("status")) for u in tools)
    assert set(told.values()) == {1}, told
    assert sum(status == "completed" for _, status in told) == STEPS
    said: dict[str, str] = {}
    for update in bridge.updates("agent_message_chunk"):
        name = update["messageId"]
        said[name] = said.get(name, "") + update["content"]["text"]
    whole = [text for text in said.values() if text == "The end." or text.endswith("x" * 40)]
    wanted = [f"Step {number}: {'x' * 40}" for number in range(STEPS)]
    assert whole == [*wanted, "The end."]


def judge_log(place: World, session: str) -> None:
    """What the daemon has on disk: dense ids, and every effect of the run settled once."""
    events = place.lines("events", session)
    assert [event["eventId"] for event in events] == list(range(1, len(events) + 1))
    run = next(event["runId"] for event in events if event["type"] == "run.accepted")
    results = Counter(
        event["ordinal"]
        for event in events
        if event["type"] == "effect.result"
        and event["runId"] == run
        and event["name"] == "word-count"
    )
    assert len(results) == STEPS
    assert set(results.values()) == {1}
