"""The notation of queries.sql: what it says is what the writer gets."""

from __future__ import annotations

import re

import pytest

from goclaw.core import errors
from goclaw.store import queries
from goclaw.store.queries import MODES, Step, parse

TEXT = """
-- Words before the first block are for people.
-- statement: counted
UPDATE writer SET batches = batches + 1;

-- fragment: pair one two
-- step: run
SELECT <<one>> AS a, <<two>> AS b;

-- fragment: twice value
<<pair <<value>> | 'x' || 'y'>>
<<pair 2 | <<value>>>>

-- program: first a b
-- What it is for.
-- returns: a b
-- step: expect lease_lost
SELECT 1
 WHERE :a = :b;
<<twice :a>>

-- program: second
-- late
-- step: need
SELECT 1;
-- step: run
SELECT 2;
-- section
-- step: run
SELECT 3;

-- query: asked limit
-- A word about it.
SELECT a FROM t LIMIT :limit;
"""


def test_programs_queries_and_statements() -> None:
    catalogue = parse(TEXT)
    assert list(catalogue.programs) == ["first", "second"]
    first, second = catalogue.programs.values()
    assert first.parameters == ("a", "b")
    assert first.returns == ("a", "b")
    assert not first.late
    assert first.steps == (
        Step(MODES["expect"], "lease_lost", "SELECT 1\n WHERE :a = :b;", 3),
        Step(MODES["run"], None, "SELECT :a AS a, 'x' || 'y' AS b;", 3),
        Step(MODES["run"], None, "SELECT 2 AS a, :a AS b;", 3),
    )
    assert [step.skip for step in second.steps] == [2, 2, 3]
    assert (second.parameters, second.returns, second.late) == ((), (), True)
    assert catalogue.queries["asked"] == ("asked", ("limit",), "SELECT a FROM t LIMIT :limit;")
    assert catalogue.statements == {"counted": "UPDATE writer SET batches = batches + 1;"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-- program: p\nSELECT 1;", "program p: SQL before the first step"),
        ("-- program: p\n-- step: run\nSELECT 1;\n-- program: p\n", "names p twice"),
        ("-- query: q\nSELECT 1;\n-- program: q\n", "names q twice"),
        ("-- query: q\nSELECT 1;\n-- query: q\n", "names q twice"),
        ("-- statement: s\nSELECT 1;\n-- statement: s\n", "names s twice"),
        ("-- fragment: f\nSELECT 1;\n-- fragment: f\n", "names f twice"),
        ("-- fragment: f a b\n-- program: p\n<<f 1>>", "fragment f takes 2 arguments"),
        ("-- fragment: f a\n-- program: p\n<<f 1 | 2>>", "fragment f takes 1 arguments"),
        ("-- program: p\n<<f 1>>", "no fragment f"),
        ("-- program: p\n-- step: hope\nSELECT 1;", "program p: no step is called hope"),
        ("-- program: p\n-- step: expect\nSELECT 1;", "program p: expect takes one code"),
        ("-- program: p\n-- step: run fast\nSELECT 1;", "program p: run takes no code"),
        ("-- program: p\n-- step: run\n-- step: run\nSELECT 1;", "program p: a step without SQL"),
        ("-- fragment: f\n<<f>>\n-- program: p\n<<f>>", "fragment f contains itself"),
    ],
)
def test_what_does_not_fit_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(text)


# -- the shipped file -----------------------------------------------------------------------------


def test_the_shipped_file_is_parsed_once() -> None:
    assert queries.load() is queries.load()


@pytest.mark.req("Q-1")
def test_every_code_is_a_documented_error() -> None:
    for program in queries.load().programs.values():
        for step in program.steps:
            if step.code is not None:
                kind = errors.error_for_name(step.code)
                assert kind is not errors.GoclawError, (program.name, step.code)


def test_every_parameter_and_every_fragment_is_used() -> None:
    catalogue = queries.load()
    for program in catalogue.programs.values():
        used = set(re.findall(r":(\w+)", "\n".join(step.sql for step in program.steps)))
        emitted = (
            {"now", "task_id"} if any(s.mode == MODES["emit"] for s in program.steps) else set()
        )
        assert set(program.parameters) <= used | emitted, program.name
    for query in catalogue.queries.values():
        assert set(query.parameters) == set(re.findall(r":(\w+)", query.sql)), query.name
    for step in (step for program in catalogue.programs.values() for step in program.steps):
        assert "<<" not in step.sql


def test_only_reclaim_is_late() -> None:
    late = [program.name for program in queries.load().programs.values() if program.late]
    assert late == ["reclaim"]


@pytest.mark.req("P-1")
def test_what_every_task_passes_through_has_no_returning() -> None:
    for name in ("enqueue", "claim", "heartbeat", "append", "complete", "effect_intent"):
        for step in queries.load().programs[name].steps:
            assert "RETURNING" not in step.sql.upper(), name
