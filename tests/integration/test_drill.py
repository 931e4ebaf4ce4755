"""`goclaw drill crash` over every commit of a run of five effects, and how it tells bad from good.

The bad daemons are those of drill_planted.py: real ones with one fault built in.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import World, script_file, world

from goclaw.cli.drill import Plan, conduct
from goclaw.ops import drill
from goclaw.skills.catalog import BUILTIN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from goclaw.ops.drill import Report

PLANTED = Path(__file__).with_name("drill_planted.py")


@pytest.fixture
def w(home: Path) -> Iterator[World]:
    with world(home) as made:
        yield made


def plan(folder: Path, *kinds: str) -> Plan:
    steps = [{"call": kind, "args": {"n": number}} for number, kind in enumerate(kinds)]
    return Plan(drill.script(steps), str(folder))


@pytest.mark.req("E-1", "E-10", "E-2", "E-3", "E-4", "I-3", "I-4")
@pytest.mark.timeout(300)
def test_a_kill_at_every_commit_of_five_effects_loses_and_repeats_nothing(home: Path) -> None:
    """On one side of it or the other, or both; GOCLAW_DRILL_KILLS=0 is both of each."""
    kills = int(os.environ.get("GOCLAW_DRILL_KILLS", "40"))
    report = conduct(Plan(drill.script(drill.STEPS), str(home)), home, kills=kills or None)
    found = report.to_json()
    assert found["violations"] == []
    assert report.held
    assert found["tasksLost"] == found["eventsLost"] == 0
    # More of them than intents and results, or nothing was struck.
    assert found["kills"] >= (kills - 5 if kills else 50)
    assert found["kills"] + found["spared"] == found["boundaries"]
    by_class = {one["class"]: one for one in found["effects"]}
    assert by_class.keys() == {"pure", "keyed", "probeable", "irreversible"}
    # The kills did hit the moments that matter: each class met its own fate.
    assert by_class["pure"]["dispatched"]["max"] == 2
    assert by_class["keyed"]["dispatched"]["max"] == 2
    assert by_class["keyed"]["happened"] == {"min": 1, "max": 1}
    assert by_class["probeable"]["happened"] == {"min": 1, "max": 1}
    assert by_class["irreversible"]["happened"] == {"min": 0, "max": 1}
    assert by_class["irreversible"]["unknown"] >= 2
    assert list(home.iterdir()) == []


@pytest.mark.req("E-1", "E-10", "I-3", "I-4", "Q-15")
@pytest.mark.timeout(3_000)
def test_the_daemon_that_takes_the_run_up_is_killed_too(home: Path) -> None:
    """At each of its commits, its recovery's included; GOCLAW_DRILL_LIVES=0 is all of them."""
    lives = int(os.environ.get("GOCLAW_DRILL_LIVES", "4"))
    report = conduct(plan(home, "keyed", "irreversible"), home, kills=lives or None, twice=True)
    found = report.to_json()
    assert found["violations"] == []
    assert found["tasksLost"] == found["eventsLost"] == 0
    assert found["kills"] >= (lives or 200) * 2
    assert list(home.iterdir()) == []


def bad(home: Path, fault: str, *kinds: str, kills: int | None = None) -> Report:
    child = [sys.executable, str(PLANTED), fault]
    return conduct(plan(home, *kinds), home, child=child, kills=kills)


@pytest.mark.req("E-10")
@pytest.mark.timeout(180)
def test_an_effect_that_happens_too_often_is_called_bad(home: Path) -> None:
    """Killed on one side of every commit: an effect's two fatal moments are on either."""
    kinds = ("irreversible", "probeable", "keyed")
    report = bad(home, "repeat", *kinds, kills=24)
    assert not report.held
    assert report.boundaries == 24
    said = {what for _, what in report.violations}
    for index, kind in enumerate(kinds):
        says = f"effect {2 * index + 1} ({kind}, completed) happened 2 times"
        assert any(what.startswith(says) for what in said), said
    # What a bad life left is kept, what a good one left is not.
    kept = {folder.name for folder in home.iterdir()}
    assert kept == {"-".join(where.split(" commit ")[::-1]) for where, _ in report.violations}


@pytest.mark.req("E-10", "I-3")
@pytest.mark.timeout(180)
def test_a_task_that_is_lost_is_called_bad(home: Path) -> None:
    report = bad(home, "lose", "pure", kills=8)
    assert not report.held
    assert report.tasks_lost > 0
    assert report.events_lost > 0


@pytest.mark.req("E-10", "U-1")
def test_the_verb_says_what_came_of_it(w: World) -> None:
    (found,) = w.lines("drill", "crash", "--kills", "2")
    assert found["held"]
    assert (found["boundaries"], found["kills"] + found["spared"]) == (2, 2)
    shown = w.goclaw("drill", "crash", "--kills", "1").stdout
    assert "The promise held" in shown
    assert not w.home.root.exists()  # the home of the person is not touched
    for words in (("--kills", "0"), ("--kills", "many")):
        assert "no count" in w.goclaw("drill", "crash", *words, code=2).stderr


@pytest.mark.req("E-10")
def test_a_script_of_ones_own_is_drilled(w: World) -> None:
    (w.cwd / "text").write_text("two words\n")
    call = {"call": "irreversible", "args": {"n": 1}}
    steps: list[dict[str, Any]] = [
        {"call": "word-count", "args": {"file": "text"}},
        {"ask": "Go on?"},
        call,
    ]
    script_file(w.cwd, steps, match="^drill$")
    (found,) = w.lines("drill", "crash", "--script", "script.json", "--kills", "2")
    assert found["held"]
    assert found["questions"] >= 3  # each life asks, and again after a kill
    assert [(one["ordinal"], one["tool"]) for one in found["effects"]] == [(5, "irreversible")]

    script_file(w.cwd, steps, match="^else$")
    answer = w.goclaw("drill", "crash", "--script", "script.json", code=2)
    assert "No entry of script.json matches the prompt 'drill'" in answer.stderr
    (w.cwd / "script.json").write_text("{}")
    assert "is refused" in w.goclaw("drill", "crash", "--script", "script.json", code=3).stderr


@pytest.mark.req("E-10")
def test_a_skill_is_drilled_on_a_file(w: World) -> None:
    (w.cwd / "text").write_text("two words\n")
    words = ("drill", "crash", "--kills", "1", "--skill")
    (found,) = w.lines(*words, "word-count", "text")
    assert found["held"]
    assert [one["tool"] for one in found["effects"]] == ["keyed", "irreversible"]

    left = w.cwd / "left"
    left.mkdir()
    answer = w.goclaw(*words, "word-count", "gone", code=2, TMPDIR=str(left))
    assert list(left.iterdir()) == []
    assert "word-count is failed on that file" in answer.stderr
    assert "There is no skill odd" in w.goclaw(*words, "odd", "text", code=2).stderr


@pytest.mark.req("E-10")
def test_an_installed_skill_is_drilled(w: World) -> None:
    folder = w.home.skills / "mine"
    shutil.copytree(BUILTIN / "word-count", folder)
    manifest = folder / "skill.toml"
    manifest.write_text(manifest.read_text().replace('name = "word-count"', 'name = "mine"'))
    (w.cwd / "text").write_text("two words\n")
    (found,) = w.lines("drill", "crash", "--kills", "1", "--skill", "mine", "text")
    assert found["held"]


@pytest.mark.req("E-10", "A-1")
def test_no_other_daemon_has_the_tools_of_a_drill(w: World) -> None:
    answer = w.lines("run", "/irreversible {}", code=1)[-1]
    assert "There is no command /irreversible" in answer["text"]
