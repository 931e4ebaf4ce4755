"""`goclaw effects` as a person uses it, on a home where something was left unknown.

Owns nothing but the tests. Not in here: what each word does (test_effects_settle.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from effects_support import World, sink_process
from roof_support import World as Place
from roof_support import world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    with world(home) as made:
        made.goclaw("task", "list")  # makes the home
        yield made


def lost(place: Place, tool: str = "irreversible") -> str:
    """A task of another life that is SUSPENDED over a call that was sent and never answered."""

    async def body() -> str:
        async with World(place.home.root, sink, cwd=place.cwd) as made:
            made.tools.tells = False
            accepted = await made.tool(tool, {"n": 1, "mode": "reset"})
            await made.until(accepted.task_id, "SUSPENDED")
            return accepted.task_id

    with sink_process(place.cwd / "sink") as sink:
        return asyncio.run(body())


@pytest.mark.req("U-1", "E-3", "W-11")
def test_what_is_unknown_is_shown_and_settled(place: Place) -> None:
    task = lost(place)
    shown = place.goclaw("task", "show", task)
    assert "effect_unknown" in shown.stdout
    assert f"goclaw effects settle {task} 0 done|not_done|fail" in shown.stderr
    (effect,) = place.lines("effects", "list", task)
    assert (effect["ordinal"], effect["state"], effect["class"]) == (0, "unknown", "irreversible")
    assert effect["idempotencyKey"] in place.goclaw("effects", "list", task).stdout

    done = place.goclaw("effects", "settle", task, "0", "done", "--result", '{"id": 7}')
    assert "effect 0 (irreversible) is result; the task is QUEUED" in done.stdout
    assert "goclaw serve" in done.stderr
    again = place.goclaw("effects", "settle", task, "0", "done", code=1)
    assert "cannot be settled as done: result now" in again.stderr
    place.serve()
    place.goclaw("run", "hello", "--session", place.lines("task", "show", task)[0]["sessionId"])
    (shown_task,) = place.lines("task", "show", task)
    assert (shown_task["state"], shown_task["result"]) == ("SUCCEEDED", {"id": 7})


@pytest.mark.req("U-1", "E-3")
@pytest.mark.parametrize("served", [False, True])
def test_redo_fail_and_probe(place: Place, served: bool) -> None:
    task = lost(place, "probeable")
    if served:
        place.serve()
    shown = place.goclaw("task", "show", task)
    assert f"goclaw effects probe {task} 0" in shown.stderr
    # This goclaw has no such tool, so nobody can be asked.
    probed = place.goclaw("effects", "probe", task, "0", code=1)
    assert "no tool probeable now" in probed.stderr
    assert f"goclaw effects settle {task} 0" in probed.stderr
    (effect,) = place.lines("effects", "settle", task, "0", "fail")
    assert effect["state"] == "unknown"
    assert place.lines("task", "show", task)[0]["reason"] == "settled_as_fail"
    assert place.goclaw("task", "show", task).stderr == ""


@pytest.mark.req("U-1")
def test_what_cannot_be_carried_out_is_said(place: Place) -> None:
    task = lost(place)
    for words, code, said in (
        (("list", "task_none"), 1, "no task task_none"),
        (("settle", task, "3", "done"), 1, "no effect 3"),
        (("settle", task, "x", "done"), 2, "no number of an effect"),
        (("settle", task, "0", "maybe"), 2, "maybe"),
        (("settle", task, "0", "done", "--result", "{"), 2, "no JSON"),
        (("settle", task, "0", "not_done", "--result", "1"), 1, "done has a result"),
        (("redo", task), 2, "ORDINAL"),
    ):
        assert said in place.goclaw("effects", *words, code=code).stderr
    assert place.lines("task", "show", task)[0]["state"] == "SUSPENDED"
