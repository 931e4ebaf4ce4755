"""Script files: what each step means, and the sentence for each way to get one wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.brains.answers import Answer, Failure, Intent, Turn
from goclaw.brains.deltas import Deltas
from goclaw.brains.script import ScriptBrain, load_script, parse_script
from goclaw.core import limits
from goclaw.core.errors import ConfigRefused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from goclaw.core.records import Cleaner


class Sent:
    """A stream that keeps what was sent, batch by batch."""

    message_id = "m"
    cleaner: Cleaner | None = None
    paced = True

    def __init__(self) -> None:
        self.batches: list[Sequence[dict[str, Any]]] = []

    async def send(self, updates: Sequence[dict[str, Any]]) -> None:
        self.batches.append(updates)


def brain(*entries: Any) -> ScriptBrain:
    return ScriptBrain(parse_script(json.dumps(entries).encode(), "s.json"))


def answers(script: ScriptBrain, prompt: str = "go") -> list[tuple[Answer, list[dict[str, Any]]]]:
    """Every answer up to the one that ends the run, with the updates of its record."""

    async def body() -> list[tuple[Answer, list[dict[str, Any]]]]:
        found: list[tuple[Answer, list[dict[str, Any]]]] = []
        while not found or found[-1][0].stop is None:
            deltas = Deltas(Sent())
            answer = await script.answer(Turn(prompt, len(found), ()), deltas)
            found.append((answer, await deltas.rest()))
        return found

    return asyncio.run(body())


def entry(*steps: Any, match: str = "") -> dict[str, Any]:
    return {"match": match, "steps": list(steps)}


@pytest.mark.req("B-2")
def test_the_first_match_wins_and_no_match_says_the_prompt_back() -> None:
    script = brain(
        entry({"say": "one"}, match="^a"), entry({"say": "two"}, match="b"), entry(match="^empty$")
    )
    for prompt, text in {"ab": "one", "cb": "two", "xyz": "xyz", "empty": ""}.items():
        ((found, _),) = answers(script, prompt)
        assert found == Answer(text, stop="end_turn")


@pytest.mark.req("B-2", "E-1")
def test_an_answer_is_the_steps_up_to_what_must_be_waited_for() -> None:
    script = brain(
        entry(
            {"say": "a"}, {"think": "hm"}, {"call": "sleep", "args": {"seconds": 0}},
            {"call": "x"}, {"ask": "Really?"}, {"say": "b"}, {"sleepMs": 5},
            {"fail": "busy", "retryable": True, "onAttempts": [1, 2]}, {"say": "end"},
        )
    )  # fmt: skip
    found = answers(script)
    assert [answer for answer, _ in found] == [
        Answer("a", intents=(Intent("sleep", {"seconds": 0}),)),
        Answer(intents=(Intent("x", {}),)),
        Answer(ask="Really?"),
        Answer("b", sleep_ms=5),
        Answer(fail=Failure("busy", True, (1, 2))),
        Answer("end", stop="end_turn"),
    ]
    assert [update["sessionUpdate"] for update in found[0][1]] == [
        "agent_message_chunk", "agent_thought_chunk",
    ]  # fmt: skip
    assert [update["messageId"] for update in found[0][1]] == ["m", "m.thought"]


def test_the_last_step_ends_the_run_also_when_it_is_a_call() -> None:
    ((found, _),) = answers(brain(entry({"call": "x"})))
    assert (found.stop, found.intents) == ("end_turn", (Intent("x", {}),))


def test_an_answer_survives_its_record() -> None:
    for found, _ in answers(
        brain(
            entry(
                {"say": "a"}, {"call": "x", "args": {"n": 1}}, {"ask": "?"}, {"sleepMs": 0},
                {"fail": "e"}, {"fail": "e", "retryable": True, "onAttempts": [3]},
            )
        )
    ):  # fmt: skip
        assert Answer.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_plan_is_shown_as_acp_has_it() -> None:
    full = {"content": "b", "priority": "high", "status": "completed"}
    ((_, updates),) = answers(brain(entry({"plan": ["a", full]})))
    plain = {"content": "a", "priority": "medium", "status": "pending"}
    assert updates == [{"sessionUpdate": "plan", "entries": [plain, full]}]


@pytest.mark.req("B-3")
@pytest.mark.parametrize(
    "step", [{"say": "abcdefghij", "chunks": 4}, {"say": "abcdefghij", "chunks": 5, "delayMs": 40}]
)
def test_chunks_and_delays_stream(step: dict[str, Any]) -> None:
    async def body() -> None:
        stream = Sent()
        deltas = Deltas(stream)
        answer = await brain(entry(step)).answer(Turn("", 0, ()), deltas)
        sent = [update for batch in [*stream.batches, await deltas.rest()] for update in batch]
        assert answer.text == "".join(update["content"]["text"] for update in sent) == step["say"]
        assert len(stream.batches) >= (1 if "delayMs" not in step else 3)
        assert {update["messageId"] for update in sent} == {"m"}

    asyncio.run(body())


@pytest.mark.req("U-1")
@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "no JSON"),
        ("{}", "a list of entries"),
        ("[1]", "entry 1 must be an object with `match` and `steps`"),
        ('[{"match": "", "steps": [], "more": 1}]', "entry 1 must be"),
        ('[{"match": 1, "steps": []}]', "entry 1: `match`"),
        ('[{"match": "(", "steps": []}]', "entry 1: `match` is no regular expression"),
        ('[{"match": "", "steps": []}, {"match": "", "steps": {}}]', "entry 2: `steps`"),
    ],
)
def test_a_malformed_file_is_named_with_the_entry(text: str, where: str) -> None:
    with pytest.raises(ConfigRefused) as caught:
        parse_script(text.encode(), "dir/s.json")
    assert "dir/s.json" in caught.value.message
    assert where in caught.value.message
    assert caught.value.hint


@pytest.mark.req("U-1")
@pytest.mark.parametrize(
    ("step", "why"),
    [
        (1, "a step is an object"),
        ({}, "a step has exactly one of say, think, plan, call, ask, sleepMs, fail"),
        ({"say": "a", "think": "b"}, "a step has exactly one of"),
        ({"say": "a", "delay": 1}, "`delay` is not known beside `say`"),
        ({"think": "a", "chunks": 1}, "`chunks` is not known beside `think`"),
        ({"say": 1}, "`say` must be a text"),
        ({"say": "a", "chunks": 0}, "`chunks` must be a whole number from 1"),
        ({"say": "a", "chunks": True}, "`chunks` must be a whole number"),
        ({"say": "a", "delayMs": -1}, "`delayMs` must be"),
        ({"think": ""}, "`think` must be a text"),
        ({"plan": "a"}, "`plan` must be a list"),
        ({"plan": [1]}, "an entry of `plan`"),
        ({"plan": [{"content": "a", "status": "done"}]}, "an entry of `plan` has"),
        ({"call": ""}, "`call` must be a text"),
        ({"call": "x", "args": []}, "`args` must be an object"),
        ({"ask": 1}, "`ask` must be a text"),
        ({"sleepMs": 1.5}, "`sleepMs` must be a whole number"),
        ({"sleepMs": limits.SLEEP_MS_MAX + 1}, "`sleepMs` must be"),
        ({"fail": "x", "retryable": 1}, "`retryable` must be true or false"),
        ({"fail": "x", "onAttempts": [0]}, "`onAttempts` must be a list"),
    ],
)
def test_a_malformed_step_is_named_with_its_number(step: Any, why: str) -> None:
    text = json.dumps([entry(), entry({"say": "ok"}, step)])
    with pytest.raises(ConfigRefused) as caught:
        parse_script(text.encode(), "s.json")
    assert f"entry 2, step 2: {why}" in caught.value.message


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["match", "steps", "say", "call", "args", "plan", "fail", "ask"]),
        inner, max_size=3,
    )
), max_leaves=8))  # fmt: skip
def test_any_document_is_a_script_or_refused(document: Any) -> None:
    with contextlib.suppress(ConfigRefused):
        parse_script(json.dumps(document).encode(), "s.json")


def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigRefused, match="cannot be read"):
        load_script(tmp_path / "none.json")
    path = tmp_path / "s.json"
    path.write_text("[]")
    assert answers(load_script(path), "back")[0][0].text == "back"
    monkeypatch.setattr(limits, "SCRIPT_BYTES_MAX", 1)
    with pytest.raises(ConfigRefused, match="larger than 1 bytes"):
        load_script(path)
