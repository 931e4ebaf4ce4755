"""A run goes on with what its record says: answers and outputs without secrets (A-6, E-2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from engine_support import Home, World

from goclaw.core.records import Call, Done, Retryable, Succeeded
from goclaw.core.states import EffectClass
from goclaw.policy.redact import Redactor, Registered

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome, Stream

pytestmark = pytest.mark.req("A-6", "E-2", "I-7")

VALUE = "hunter2-But-Longer"
CLEANER = Redactor([Registered("k", "0123456789ab", VALUE)])


async def leaky(_key: str, _cancelled: asyncio.Event) -> Done:
    return Done(orjson.dumps({"said": VALUE}))


def test_the_first_attempt_sees_what_the_next_one_will(home: Path) -> None:
    house = Home(home, backoff_ms_min=1)
    seen: list[tuple[Any, bytes]] = []

    async def play(attempt: Attempt) -> Outcome:
        async def answer(_stream: Stream) -> dict[str, Any]:
            return {"text": f"it is {VALUE}", "updates": []}

        thought = await attempt.think("brain", {"step": 0}, answer)
        call = Call("tool", "leaky", b"{}", EffectClass.KEYED, leaky)
        (result,) = await attempt.perform([call])
        seen.append((thought, result.output))
        if len(seen) == 1:
            raise Retryable("again", "so that the journal answers")
        return Succeeded()

    house.plays["play"] = play

    async def main(world: World) -> None:
        world.database.cleaner = CLEANER
        assert await world.ended(await world.prompt(await world.session(), "play")) == "SUCCEEDED"
        await world.stop()

    house.live(main)
    first, again = seen
    assert first == again
    assert first == ({"text": "it is secret:k#0123456789ab"}, b'{"said":"secret:k#0123456789ab"}')
