"""When a question offers a yes for the whole session, and when it must not (A-7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest
from engine_support import Home, World, passes

from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.records import Call, Done, Succeeded
from goclaw.core.states import EffectClass

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from goclaw.core.records import Attempt, Outcome

pytestmark = pytest.mark.req("A-7")


async def nothing(_key: str, _cancelled: asyncio.Event) -> Done:
    return Done(b"null")


def asks(resource: str, rule: str = "rule") -> Decision:
    return Decision(
        "decision_1", 0, Subject(SubjectKind.RUN, "direct", Origin.UNIX), "net.connect", resource,
        Context(), Verdict.ASK, rule, "a person decides", "p1", (),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("resources", "question", "offered"),
    [
        (["https://a.example/"], False, True),
        (["https://a.example/", "https://b.example/"], False, True),
        (["https://a.example/*"], False, False),  # in a grant a star is no letter
        (["https://a.example/", "https://b.example/*"], False, False),
        (["https://a.example/"], True, False),  # the brain itself wants to know
        ([], True, False),
    ],
)
def test_who_is_offered_a_yes_for_the_session(
    resources: list[str], question: bool, offered: bool, home: Path
) -> None:
    house = Home(home)

    async def play(attempt: Attempt) -> Outcome:
        call = Call(
            "tool", "reach", b"{}", EffectClass.IRREVERSIBLE, nothing, question=question,
            decisions=tuple(asks(one) for one in resources),
        )  # fmt: skip
        await attempt.perform([call])
        return Succeeded()

    house.plays["play"] = play

    async def main(world: World) -> None:
        await world.prompt(await world.session(), "play")
        await passes(1_000)
        (approval,) = await world.engine.approvals.listed()
        request = orjson.loads(approval.request)
        kinds = [one["kind"] for one in request["options"]]
        always = ["allow_always"] if offered else []
        assert kinds == ["allow_once", *always, "reject_once"]
        grant = request["_meta"]["goclaw"].get("grant")
        if offered:
            assert (grant["tool"], grant["resources"]) == ("reach", resources)
        else:
            assert grant is None
        await world.stop()

    house.live(main)


@pytest.mark.req("A-7", "A-11")
@pytest.mark.parametrize(
    ("rule", "effect_class", "answered"),
    [
        ("rule", EffectClass.IRREVERSIBLE, True),
        ("ask-when-data-could-leak", EffectClass.IRREVERSIBLE, False),
        ("rule", EffectClass.PURE, False),
    ],
)
def test_it_answers_the_same_question_only(
    rule: str, effect_class: EffectClass, answered: bool, home: Path
) -> None:
    house = Home(home)
    asked = [("rule", EffectClass.IRREVERSIBLE), (rule, effect_class)]

    async def play(attempt: Attempt) -> Outcome:
        for n, (by, kind) in enumerate(asked):
            decision = asks("https://a.example/", by)
            call = Call("tool", "reach", b"%d" % n, kind, nothing, decisions=(decision,))
            await attempt.perform([call])
        return Succeeded()

    house.plays["play"] = play

    async def main(world: World) -> None:
        task = await world.prompt(await world.session(), "play")
        await passes(1_000)
        (approval,) = await world.engine.approvals.listed()
        await world.engine.approvals.resolve(approval.approval_id, "allow_session", "me")
        await passes(1_000)
        assert len(await world.engine.approvals.listed()) == (0 if answered else 1)
        assert (await world.engine.task(task.task_id))["state"] == (
            "SUCCEEDED" if answered else "SUSPENDED"
        )
        await world.stop()

    house.live(main)
