"""Models over real HTTP: runs with tools, every fault of a server, budgets, the session's past.

The server is a process of its own that speaks both protocols; nothing is stubbed on our side.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from brains_support import call, configure, model_server
from effects_support import World, sink_process

from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from brains_support import Server

KINDS = ("openai", "anthropic")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_KEY", "sk-very-secret-0123456789")


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


def result_of(task: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(task["result"])
    return found


def ask(
    home: Path,
    replies: list[Any],
    *lines: str,
    kind: str = "openai",
    sink: Path | None = None,
    prompts: tuple[str, ...] = ("hello",),
    **queue: Any,
) -> tuple[list[dict[str, Any]], list[tuple[str, dict[str, Any]]], list[dict[str, Any]]]:
    """Prompts of one session, one after the other: their tasks, the events, the requests."""

    async def run(server: Server) -> tuple[list[dict[str, Any]], Any]:
        key = 'key_env = "MODEL_KEY"'
        configure(home, server.url, *(lines or (key,)), kind=kind)
        async with World(home, sink or home / "none", brain="model", **queue) as world:
            tasks = []
            for number, prompt in enumerate(prompts):
                accepted = await world.prompt(prompt, key=f"k{number}")
                tasks.append(await world.until(accepted.task_id))
            return tasks, await world.events()

    with model_server(replies) as server:
        tasks, events = asyncio.run(run(server))
        return tasks, events, server.report()["requests"]


def error_of(task: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(task["error"])
    return found


# -- a run -----------------------------------------------------------------------------------------


@pytest.mark.req("B-1", "B-2", "A-5")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_with_two_calls_in_one_answer(kind: str, home: Path, sink: Path) -> None:
    replies = [
        {"think": "hm", "text": "I do it.", "calls": [call("keyed", n=1), call("pure", n=2)]},
        {"text": "Done.", "chunks": 2},
    ]
    (task,), events, requests = ask(
        home, replies, 'key_env = "MODEL_KEY"', "input_price = 1.0", kind=kind, sink=sink
    )
    assert (task["state"], task["stop_reason"]) == ("SUCCEEDED", "end_turn")
    result = result_of(task)
    assert result["text"] == "I do it.Done."
    assert [(one["name"], one["status"]) for one in result["tools"]] == [
        ("keyed", "completed"), ("pure", "completed"),
    ]  # fmt: skip
    header = {"openai": ("authorization", "Bearer "), "anthropic": ("x-api-key", "")}[kind]
    assert requests[0]["headers"][header[0]] == f"{header[1]}sk-very-secret-0123456789"
    names = [one.get("name") or one["function"]["name"] for one in requests[0]["body"]["tools"]]
    assert {"keyed", "sleep", "delegate"} <= set(names)
    # every intent of the answer is on disk before the first result (E-1)
    order = [
        (name, payload["ordinal"])
        for name, payload in events
        if name in ("effect.intent", "effect.result") and payload["ordinal"] in (1, 2)
    ]
    assert [name for name, _ in order] == ["effect.intent"] * 2 + ["effect.result"] * 2
    assert [ordinal for _, ordinal in order[:2]] == [1, 2]
    usage = [payload for _, payload in events if payload.get("sessionUpdate") == "usage_update"]
    assert [one["used"] for one in usage] == [110, 110]
    assert usage[1]["cost"] == {"amount": pytest.approx(0.0002), "currency": "USD"}
    thoughts = [p for _, p in events if p.get("sessionUpdate") == "agent_thought_chunk"]
    assert thoughts[0]["content"]["text"] == "hm"


@pytest.mark.req("A-11")
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_tool_returned_is_shown_as_data(kind: str, home: Path, sink: Path) -> None:
    _, _, requests = ask(
        home, [{"calls": [call("pure", n=1)]}, {"text": "ok"}], kind=kind, sink=sink
    )
    message = requests[1]["body"]["messages"][-1]
    text = message["content"] if kind == "openai" else message["content"][0]["content"]
    first, *_, last = text.splitlines()
    assert first.startswith('<tool-output tool="pure" status="completed" mark="')
    mark = first.split('mark="')[1][:16]
    assert last == f'</tool-output mark="{mark}">'


@pytest.mark.req("B-4")
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_remembers_the_session(kind: str, home: Path, sink: Path) -> None:
    replies = [{"text": "I call.", "calls": [call("pure", n=7)]}, {"text": "It is done."}]
    _, _, requests = ask(home, replies, kind=kind, sink=sink, prompts=("first", "second"))
    messages = requests[2]["body"]["messages"]
    told = orjson.dumps(messages).decode()
    roles = [one["role"] for one in messages if one["role"] != "system"]
    last = ["tool", "assistant", "user"] if kind == "openai" else ["user", "assistant", "user"]
    assert roles == ["user", "assistant", *last]
    for text in ("first", "I call.", "It is done.", "second"):
        assert told.count(text) == 1
    assert told.count("tool-output tool=") == 1


@pytest.mark.req("B-4")
def test_what_does_not_fit_stays_out_by_name(home: Path) -> None:
    """The log keeps everything; the model is told which events it was not shown, and so is the
    journal."""
    long = "x" * 6_000

    async def run(server: Server) -> None:
        configure(home, server.url, "context_tokens = 8000")
        async with World(home, home / "none", brain="model") as world:
            accepted = await world.prompt(f"0 {long}", key="0")
            assert (await world.until(accepted.task_id))["state"] == "SUCCEEDED"
            for number in range(1, 4):
                accepted = await world.prompt(f"{number} {long}", key=str(number))
                task = await world.until(accepted.task_id)
                assert task["state"] == "SUCCEEDED", task["error"]
            (effect,) = await world.effects(accepted.tid)
            omitted = orjson.loads(effect["result"])["omitted"]
            first, last = omitted
            rows = await world.database.read(
                "events_after", sid=(await world.session()).sid, cursor=0, limit=1_000
            )
            kept = {row[0]: row[8] for row in rows}
            assert b"0 xxx" in b"".join(kept[at] for at in range(first, last + 1))
            assert b"3 xxx" not in b"".join(kept[at] for at in range(first, last + 1))
            messages = server.body()["messages"]
            assert f"events {first} to {last}" in messages[0]["content"]
            assert messages[1]["content"].startswith(("1 xxx", "2 xxx"))
            assert messages[-1]["content"].startswith("3 xxx")

    with model_server([{"text": "noted"}]) as server:
        asyncio.run(run(server))


@pytest.mark.req("B-3")
def test_deltas_are_durable_and_a_cut_message_is_closed(home: Path) -> None:
    cut = {"text": "a long story", "chunks": 6, "cutAfter": 3}
    replies = [[cut, cut, {"text": "a story"}]]
    (task,), events, _ = ask(home, replies)
    assert task["state"] == "SUCCEEDED"
    assert result_of(task)["text"] == "a story"
    chunks = [p for _, p in events if p.get("sessionUpdate") == "agent_message_chunk"]
    ids = list(dict.fromkeys(one["messageId"] for one in chunks))
    assert len(ids) == 3
    closed = [p["messageId"] for name, p in events if name == "message.interrupted"]
    assert closed == ids[:2]


# -- bad input -------------------------------------------------------------------------------------

LONG = {
    "error": {"message": "maximum context length is 8 tokens", "code": "context_length_exceeded"}
}
POOR = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
GONE = {"error": {"message": "The model `tiny` does not exist", "code": "model_not_found"}}
FINAL = [
    ({"status": 401, "body": {"error": {"message": "bad sk-very-secret-0123456789"}}},
     "brain_key_refused"),
    ({"status": 403}, "brain_key_refused"),
    ({"status": 404, "body": GONE}, "model_unknown"),
    ({"status": 404, "body": "<html>"}, "brain_failed"),
    ({"status": 400, "body": LONG}, "context_overflow"),
    ({"status": 429, "body": POOR}, "quota_exhausted"),
    ({"status": 402}, "quota_exhausted"),
    ({"status": 422, "body": {"detail": "no"}}, "brain_failed"),
    ({"status": 307, "headers": {"location": "http://elsewhere/"}}, "brain_failed"),
]  # fmt: skip


@pytest.mark.req("B-2", "I-7")
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_server_would_refuse_again_fails_at_once(kind: str, home: Path) -> None:
    """One attempt each, the right code, and no key in anything that is written."""

    async def run(server: Server) -> None:
        configure(home, server.url, 'key_env = "MODEL_KEY"', kind=kind)
        async with World(home, home / "none", brain="model") as world:
            for number, (_, code) in enumerate(FINAL):
                accepted = await world.prompt(f"case {number}!", key=str(number))
                task = await world.until(accepted.task_id)
                assert (task["state"], error_of(task)["code"]) == ("FAILED", code), number
                assert task["attempt"] == 1
            written = repr(await world.events())
            assert "sk-very" not in written
            assert "[key]" in written

    scenario = [{"match": f"case {n}!", "replies": [reply]} for n, (reply, _) in enumerate(FINAL)]
    with model_server([], scenario=scenario) as server:
        asyncio.run(run(server))


AGAIN = [
    ({"status": 500}, "server_error"),
    ({"text": "abc", "chunks": 3, "cutAfter": 2}, "stream_cut"),
    ({"text": "", "finish": "stop"}, "empty_answer"),
    ({"garbage": ["{not json"]}, "no_stream"),
    ({"garbage": ['{"choices": 7, "type": 7}', '"x"']}, "no_stream"),
    ({"text": "a", "error": {"message": "over", "type": "overloaded_error"}}, "server_error"),
]  # fmt: skip


@pytest.mark.req("Q-7")
@pytest.mark.parametrize("kind", KINDS)
def test_what_may_go_well_next_time_is_tried_again(kind: str, home: Path) -> None:
    """Every passing fault costs one failure; the next attempt's answer is the run's."""

    async def run(server: Server) -> None:
        configure(home, server.url, 'key_env = "MODEL_KEY"', kind=kind)
        async with World(home, home / "none", brain="model") as world:
            for number, (_, code) in enumerate(AGAIN):
                accepted = await world.prompt(f"case {number}!", key=str(number))
                task = await world.until(accepted.task_id)
                assert task["state"] == "SUCCEEDED", (number, task["error"])
                assert (task["failures"], task["attempt"]) == (1, 2)
                waits = [p for name, p in await world.events() if name == "task.retry_wait"]
                assert waits[-1]["code"] == code, number

    scenario = [
        {"match": f"case {n}!", "replies": [[reply, {"text": "well"}]]}
        for n, (reply, _) in enumerate(AGAIN)
    ]
    with model_server([], scenario=scenario) as server:
        asyncio.run(run(server))


@pytest.mark.req("Q-7")
def test_retry_after_is_honoured_and_is_no_poison(home: Path) -> None:
    slow = {"status": 429, "headers": {"retry-after": "0.05"}}
    (task,), events, _ = ask(home, [[slow, slow, slow, slow, {"text": "at last"}]])
    assert (task["state"], task["failures"]) == ("SUCCEEDED", 4)
    waits = [p for name, p in events if name == "task.retry_wait"]
    assert [one["code"] for one in waits] == ["rate_limited"] * 4


@pytest.mark.req("Q-7")
def test_a_server_that_is_not_there_is_poison_in_the_end(home: Path) -> None:
    async def run() -> dict[str, Any]:
        configure(home, "http://127.0.0.1:9/v1")
        async with World(home, home / "none", brain="model") as world:
            return await world.until((await world.prompt("hello")).task_id)

    task = asyncio.run(run())
    assert (task["state"], task["reason"]) == ("DEAD_LETTER", "poison")
    assert error_of(task)["code"] == "unreachable"


def test_without_a_key_nothing_is_sent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_KEY")
    (task,), _, requests = ask(home, [{"text": "x"}])
    assert error_of(task)["code"] == "brain_key_missing"
    assert "MODEL_KEY" in error_of(task)["message"]
    assert not requests


@pytest.mark.req("B-1")
@pytest.mark.parametrize("kind", KINDS)
def test_calls_that_cannot_be_made_are_told_and_nothing_runs(
    kind: str, home: Path, sink: Path
) -> None:
    replies = [
        {"calls": [
            {"name": "keyed", "arguments": '{"n": 1'},
            {"name": "keyed", "arguments": "[1]"},
            call("keyed", n="one"),
            call("no-such-tool", n=1),
            call("denied", n=1),
        ]},
        {"text": "I see."},
    ]  # fmt: skip
    (task,), _, requests = ask(home, replies, kind=kind, sink=sink)
    found = result_of(task)["tools"]
    assert [one["status"] for one in found] == ["failed"] * 4 + ["denied"]
    assert [one["output"]["code"] for one in found] == ["invalid_params"] * 4 + ["denied"]
    told = orjson.dumps(requests[1]["body"]["messages"]).decode()
    for text in ("no JSON:", "no JSON object", "There is no tool", "denied in this test"):
        assert text in told


@pytest.mark.req("I-5")
def test_the_same_failing_call_for_ever_ends_the_run(home: Path, sink: Path) -> None:
    replies = [{"calls": [call("keyed", n="one")]}] * 50
    (task,), _, requests = ask(home, replies, sink=sink)
    assert (task["state"], error_of(task)["code"]) == ("FAILED", "tool_loop")
    assert len(requests) == limits.SAME_FAILURES_MAX
    told = [orjson.dumps(one["body"]["messages"]).decode() for one in requests]
    notes = [text.count("This very call has failed") for text in told]
    assert notes == [0, 0, 0, 1, 2]


def test_a_model_that_never_ends_is_stopped(home: Path, sink: Path) -> None:
    replies = [{"calls": [call("pure", n=n)]} for n in range(8)]
    (task,), _, _ = ask(home, replies, "run_steps = 3", sink=sink)
    assert (task["state"], error_of(task)["code"]) == ("FAILED", "budget_steps")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("reply", "stop"),
    [
        ({"text": "abc", "finish": "length"}, "max_tokens"),
        ({"refusal": "I must not."}, "refusal"),
    ],
)
def test_ends_that_are_no_fault(kind: str, reply: Any, stop: str, home: Path) -> None:
    (task,), _, _ = ask(home, [reply], kind=kind)
    assert (task["state"], task["stop_reason"]) == ("SUCCEEDED", stop)
    result = result_of(task)
    assert result["text"] in ("abc", "I must not.")
    assert ("error" in result) == (stop == "refusal")


@pytest.mark.req("A-1", "A-2", "A-4")
@pytest.mark.parametrize("what", ["brain", "address"])
def test_a_model_needs_two_decisions(what: str, home: Path) -> None:
    async def run(server: Server) -> dict[str, Any]:
        name, url = "model", server.url
        if what == "brain":
            name = "other"
        else:
            url = url.replace("127.0.0.1", "127.0.0.2")
        configure(home, url, name=name)
        async with World(home, home / "none", brain=name) as world:
            return await world.until((await world.prompt("hello")).task_id)

    with model_server([{"text": "x"}]) as server:
        task = asyncio.run(run(server))
        assert server.calls == 0
    assert (task["state"], error_of(task)["code"]) == ("FAILED", "policy_denied")
    assert ("brain.call" if what == "brain" else "net.connect") in error_of(task)["message"]


# -- budgets ---------------------------------------------------------------------------------------


@pytest.mark.req("B-5")
def test_a_budget_is_reserved_before_and_settled_after(home: Path, sink: Path) -> None:
    """Each answer may take its question and 50 tokens; the run stops before it could exceed."""
    replies = [{"calls": [call("pure", n=n)], "usage": [700, 20]} for n in range(9)]
    (task,), events, requests = ask(
        home, replies, "answer_tokens = 50", "run_tokens = 4000", sink=sink
    )
    assert (task["state"], error_of(task)["code"]) == ("FAILED", "budget_tokens")
    told = [p["_meta"]["goclaw"] for _, p in events if p.get("sessionUpdate") == "usage_update"]
    reserved = [one["reserved"]["tokens"] for one in told if "reserved" in one]
    spent = [one["usage"]["inputTokens"] + one["usage"]["outputTokens"] for one in told
             if "usage" in one]  # fmt: skip
    assert spent == [720] * len(requests)
    assert len(reserved) == len(spent) >= 2
    assert sum(spent[:-1]) + reserved[-1] <= 4000
    assert sum(spent) <= 4000


@pytest.mark.req("B-5")
def test_a_cut_call_has_spent_what_it_reserved(home: Path) -> None:
    """The server may have charged for it: the next attempt has that much less."""
    cut = {"text": "abc", "chunks": 3, "cutAfter": 1}
    replies = [[cut, {"text": "x"}]]
    lines = ("answer_tokens = 1000", "input_price = 0.0", "output_price = 1000000.0")
    (task,), _, requests = ask(home, replies, *lines, "run_cost = 1999.0")
    assert error_of(task)["code"] == "budget_cost"
    assert len(requests) == 1
    (home / "again").mkdir()
    (task,), _, requests = ask(home / "again", replies, *lines, "run_cost = 2000.0")
    assert task["state"] == "SUCCEEDED"


@pytest.mark.req("B-5")
def test_a_refused_call_has_spent_nothing(home: Path) -> None:
    replies = [[{"status": 503, "body": "busy"}, {"text": "x"}]]
    lines = ("answer_tokens = 1000", "output_price = 1000000.0", "run_cost = 1000.0")
    (task,), _, _ = ask(home, replies, *lines)
    assert task["state"] == "SUCCEEDED"


@pytest.mark.req("B-5")
def test_a_run_waits_no_longer_than_it_may(home: Path) -> None:
    (task,), _, _ = ask(home, [{"text": "abcdef", "chunks": 6, "delayMs": 400}], "run_s = 1")
    assert error_of(task)["code"] == "budget_time"


# -- a context that is too long --------------------------------------------------------------------


@pytest.mark.req("B-4")
def test_a_context_that_the_server_finds_too_long_is_halved(home: Path) -> None:
    """Its own estimate was too kind: the same call is made again with less of the past."""

    async def run(server: Server) -> None:
        configure(home, server.url, "context_tokens = 32000")
        async with World(home, home / "none", brain="model") as world:
            for number in range(3):
                accepted = await world.prompt(f"{number} {'x' * 20_000}", key=str(number))
                assert (await world.until(accepted.task_id))["state"] == "SUCCEEDED"
            task = await world.until((await world.prompt("tight", key="t")).task_id)
            assert (task["state"], task["attempt"]) == ("SUCCEEDED", 1)
        sizes = [len(orjson.dumps(one["body"])) for one in server.report()["requests"][-2:]]
        assert sizes[1] < sizes[0]

    scenario = [
        {"match": "tight", "replies": [[{"status": 400, "body": LONG}, {"text": "fits"}]]},
        {"match": "", "replies": [{"text": "noted"}]},
    ]
    with model_server([], scenario=scenario) as server:
        asyncio.run(run(server))
