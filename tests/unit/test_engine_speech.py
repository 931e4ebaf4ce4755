"""Secrets in what a worker says piece by piece (A-6)."""

from __future__ import annotations

from typing import Any

import pytest

from goclaw.core import limits
from goclaw.engine.speech import Speech
from goclaw.policy.redact import Redactor, Registered

pytestmark = pytest.mark.req("A-6", "I-7")

VALUE = "hunter2-But-Longer"
CLEANER = Redactor([Registered("k", "0123456789ab", VALUE)])
REFERENCE = "secret:k#0123456789ab"


def piece(text: str, kind: str = "agent_message_chunk", **more: Any) -> dict[str, Any]:
    return {"sessionUpdate": kind, "content": {"type": "text", "text": text}, **more}


def told(speech: Speech, token: bytes, *updates: dict[str, Any]) -> str:
    passed = [speech.passed(token, update, CLEANER)[0] for update in updates]
    return "".join(one["content"]["text"] for one in [*passed, *speech.rest(token)])


@pytest.mark.parametrize("at", range(1, len(VALUE)))
def test_a_secret_in_two_pieces_is_found(at: int) -> None:
    said = told(Speech(), b"t", piece(f"it is {VALUE[:at]}"), piece(f"{VALUE[at:]}, yes"))
    assert said == f"it is {REFERENCE}, yes"


def test_a_secret_letter_by_letter_is_found_with_thoughts_between_them() -> None:
    speech = Speech()
    updates = [
        one for letter in VALUE for one in (piece(letter), piece("hm ", "agent_thought_chunk"))
    ]
    passed = [speech.passed(b"t", update, CLEANER)[0] for update in [*updates, piece(".")]]
    spoken = [one for one in passed if one["sessionUpdate"] == "agent_message_chunk"]
    assert "".join(one["content"]["text"] for one in spoken) == f"{REFERENCE}."


def test_what_is_held_back_is_told_and_comes_at_the_end() -> None:
    speech = Speech()
    begun = VALUE[:8]
    passed, waiting = speech.passed(b"t", piece(f"say {begun}", messageId="m"), CLEANER)
    assert (passed["content"]["text"], passed["messageId"], waiting) == ("say ", "m", len(begun))
    assert speech.rest(b"t") == [piece(begun, messageId="m")]
    assert speech.rest(b"t") == []
    assert speech.passed(b"t", piece("no more"), CLEANER) == (piece("no more"), 0)


def test_attempts_are_kept_apart() -> None:
    speech = Speech()
    speech.passed(b"one", piece(VALUE[:8]), CLEANER)
    passed, _ = speech.passed(b"two", piece(VALUE[8:]), CLEANER)
    assert passed["content"]["text"] == VALUE[8:]
    assert speech.rest(b"two") == []
    assert speech.rest(b"one") == [piece(VALUE[:8])]


def test_another_secret_counts_from_its_registration() -> None:
    speech = Speech()
    speech.passed(b"t", piece(VALUE[:8]), CLEANER)
    both = Redactor([*CLEANER.registered, Registered("n", "ba9876543210", "another-Value-77")])
    passed, _ = speech.passed(b"t", piece(f"{VALUE[8:]} and another-Value-77"), both)
    assert passed["content"]["text"] == f"{REFERENCE} and secret:n#ba9876543210"


@pytest.mark.parametrize(
    "update",
    [
        {"sessionUpdate": "plan", "entries": []},
        {"sessionUpdate": "agent_message_chunk", "content": {"type": "image", "data": ""}},
        {"sessionUpdate": "tool_call", "content": []},
    ],
)
def test_what_is_no_text_goes_on_as_it_is(update: dict[str, Any]) -> None:
    assert Speech().passed(b"t", update, CLEANER) == (update, 0)
    assert Speech().passed(b"t", piece("x"), None) == (piece("x"), 0)


@pytest.mark.req("I-5")
def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WORKER_TASKS_MAX", 2)
    speech = Speech()
    for number in range(5):
        speech.passed(b"%d" % number, piece(VALUE[:8]), CLEANER)
    assert [bool(speech.rest(b"%d" % number)) for number in range(5)] == [False] * 3 + [True] * 2
