"""engine/replay.py: an attempt that answers from its record and has no way to anything else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from goclaw.core.records import Call, Done, Session, Succeeded, Task
from goclaw.core.states import EffectClass
from goclaw.engine.effects import request_hash, sleep_call
from goclaw.engine.replay import Divergence, Recorded, Unrecorded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from goclaw.core.records import Stream

pytestmark = pytest.mark.req("E-11")

TASK = Task(
    tid=1, sid=1, session_id="session_1", task_id="task_1", run_id="run_1", kind="prompt",
    attempt=1, max_attempts=5, on_unknown="suspend", trace="", payload=b"{}", key=None,
    client=None, origin="unix", policy_version="",
)  # fmt: skip
SESSION = Session(
    sid=1, session_id="session_1", stream_id="stream_1", cwd="/", roots=("/",), brain="b",
    interactive=True, title=None, head=0, oldest=1, created_at=0, updated_at=0, closed=False,
    deleted=False,
)  # fmt: skip


def row(ordinal: int, kind: str, name: str, request: bytes, /, **changes: Any) -> dict[str, Any]:
    made = {
        "ordinal": ordinal, "kind": kind, "name": name, "request": request, "state": "result",
        "hash": request_hash(kind, name, request), "result": b"{}", "failed": 0, "call_id": "c",
    }  # fmt: skip
    return made | changes


def call(name: str, request: bytes = b"{}") -> Call:
    async def dispatch(_key: str, _cancelled: asyncio.Event) -> Done:
        raise AssertionError("a replay dispatched")

    return Call("tool", name, request, EffectClass.IRREVERSIBLE, dispatch)


def recorded(*rows: dict[str, Any]) -> Recorded:
    return Recorded(TASK, SESSION, effects=rows, repeatable={"sure"})


def answering(said: dict[str, Any]) -> Callable[[Stream], Awaitable[dict[str, Any]]]:
    async def answer(stream: Stream) -> dict[str, Any]:
        assert not stream.paced
        await stream.send([{"sessionUpdate": "agent_message_chunk"}])
        return {**said, "updates": [{"more": 1}]}

    return answer


async def forbidden(_stream: Stream) -> dict[str, Any]:
    raise AssertionError("a model was asked")


def test_calls_are_answered_in_order_and_nothing_is_dispatched() -> None:
    attempt = recorded(
        row(0, "tool", "a", b"{}", result=b"1"), row(1, "tool", "b", b"{}", failed=4)
    )
    first, second = asyncio.run(attempt.perform([call("a"), call("b")]))
    assert (first.output, first.status, first.failed, first.replayed) == (
        b"1", "completed", False, True,
    )  # fmt: skip
    assert (second.status, second.failed) == ("unknown", True)
    assert attempt.asked == 2


def test_another_call_is_named_with_both_hashes() -> None:
    for changed in (call("b"), call("a", b'{"n":1}')):
        with pytest.raises(Divergence) as caught:
            asyncio.run(recorded(row(0, "tool", "a", b"{}")).perform([changed]))
        found = caught.value
        assert found.ordinal == 0
        assert found.recorded == {
            "kind": "tool", "name": "a", "hash": request_hash("tool", "a", b"{}").hex(),
        }  # fmt: skip
        assert found.requested is not None
        assert found.requested["hash"] != found.recorded["hash"]


def test_a_record_that_was_altered_is_no_record() -> None:
    with pytest.raises(Divergence, match="does not have its own hash"):
        asyncio.run(recorded(row(0, "tool", "a", b"{}", request=b'{"n":2}')).perform([call("a")]))


@pytest.mark.parametrize("state", ["intent", "retryable", "unknown"])
def test_what_has_no_end_is_unrecorded(state: str) -> None:
    for rows in ([row(0, "tool", "a", b"{}", state=state)], []):
        with pytest.raises(Unrecorded) as caught:
            asyncio.run(recorded(*rows).perform([call("a")]))
        assert (caught.value.ordinal, caught.value.requested["name"]) == (0, "a")


def thought(said: dict[str, Any]) -> dict[str, Any]:
    return row(0, "brain", "sure", b'{"step":0}', result=orjson.dumps(said))


def test_a_repeatable_brain_is_asked_again() -> None:
    attempt = recorded(thought({"text": "a"}))
    again = attempt.think("sure", {"step": 0}, answering({"text": "a"}))
    assert asyncio.run(again) == {"text": "a"}
    with pytest.raises(Divergence, match="answers something else") as caught:
        asyncio.run(
            recorded(thought({"text": "a"})).think("sure", {"step": 0}, answering({"text": "b"}))
        )
    assert caught.value.recorded == {"answer": {"text": "a"}}
    assert caught.value.requested == {"answer": {"text": "b"}}


def test_a_model_is_never_asked() -> None:
    model = row(0, "brain", "model", b'{"step":0}', result=b'{"text":"x"}')
    attempt = recorded(model)
    assert asyncio.run(attempt.think("model", {"step": 0}, forbidden)) == {"text": "x"}


def test_sleeps_and_signals_are_over_at_once() -> None:
    sleep = sleep_call(86_400_000)
    attempt = recorded(
        row(0, sleep.kind, sleep.name, sleep.request), row(1, "signal", "go", b"{}", result=b"1")
    )

    async def waits() -> bytes:
        await attempt.sleep(86_400_000)
        return await attempt.wait_signal("go")

    assert asyncio.run(waits()) == b"1"
    with pytest.raises(Unrecorded):
        asyncio.run(recorded().wait_signal("go"))


def test_an_end_is_an_end() -> None:
    class Runner:
        async def run_attempt(self, attempt: Any) -> Succeeded:
            await attempt.perform([call("a")])
            return Succeeded()

    assert asyncio.run(recorded(row(0, "tool", "a", b"{}")).run(Runner())) == Succeeded()
