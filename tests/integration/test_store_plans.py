"""How SQLite finds its rows: no statement reads a table that grows from end to end (Q-17, P-1).

The plans of the path that every task takes stand word for word in ``tests/vectors/plans.json``; a
plan that changed is printed, so that it can be judged and put there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
import store_support as support

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.req("Q-17", "P-1", "I-8")

FROZEN = Path(__file__).parents[1] / "vectors" / "plans.json"
PATH = ("enqueue", "claim", "heartbeat", "append", "complete")

# What may be read from end to end, and why.
SCANS = {
    "CONSTANT ROW": "no table at all",
    "o": "the few rows that a subquery found",
    "j VIRTUAL TABLE": "a list among the parameters",
    "pragma_": "one row",
    "writer": "one row",
    "tasks USING INDEX tasks_live": "as many rows as there are leases",
    "l USING INDEX tasks_live": "as many rows as there are leases",
    "a USING INDEX approvals_open": "as many rows as questions are open",
    "t USING INDEX tasks_waiting": "as many rows as tasks wait, once at the start",
    "h": "the ready heads, when a breaker opens",
    "w USING INDEX works_gated": "the kinds of work that have a gate",
    "works USING INDEX works_gated": "the same",
    "c USING INDEX tasks_children": "sub-tasks that have not ended",
    "c USING COVERING INDEX tasks_children": "the same",
    "recovered": "what one start reclaimed",
    "stalled USING INDEX stalled_of_work": "what waits at gates, when aging_factor has changed",
    "tasks USING COVERING INDEX tasks_line": "counted at a start, without the rows",
    "tasks USING COVERING INDEX tasks_held": "the same",
    "tasks USING COVERING INDEX tasks_live": "the same",
    "tasks USING COVERING INDEX tasks_of_session": "the same",
    "tasks USING INDEX tasks_waiting": "as many rows as tasks wait, once at the start",
    "tasks USING INDEX tasks_held": "as many as a watcher is shown",
    "(subquery": "the same, in its order; what a fork copies (limits.FORK_EVENTS_MAX)",
    "walk": "the link so far, one row",
    "audit": "backwards from the last row, and no further",
    "policy_activations": "the same",
    "secrets USING INDEX sqlite_autoindex_secrets": "limits.SECRETS_MAX, once at a start",
    "taints": "one row: is there any?",
    "line": "a session and those it comes from",
    "g USING INDEX grants_open": "for a person who asks; as many rows as grants were not used up",
}
# Rows that are counted: once at the start, and for a person who asks.
COUNTS = {"sessions_count"}
# Sorted are ten levels at most, the heads of a list of sessions, one task's rows, open questions,
# what one start reclaimed, the tasks that a watcher is shown (limits.WATCH_TASKS_MAX).
SORTS = {
    "claim", "claim_sessions", "cancel", "effect_fail", "effect_intent", "open_tasks_of_session",
    "expired_leases", "open_by_session", "approvals_listed", "approvals_of_task", "expire",
    "recovery_report",
}  # fmt: skip


class Nulls(dict[str, Any]):
    """Any parameter is NULL."""

    def __missing__(self, name: str) -> None:
        return None


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apsw.Connection]:
    """As both writers and the readers are set: no plan depends on a parameter's value."""
    connection = support.connect(support.fresh(tmp_path_factory.mktemp("plans")))
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.create_scalar_function("chain_link", lambda *values: b"", 7)
    yield connection
    connection.close()


def plan(connection: apsw.Connection, sql: str) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", Nulls())]


def statements() -> Iterator[tuple[str, str, str]]:
    """(name, which, SQL) of everything that runs."""
    for program in support.PROGRAMS:
        for number, step in enumerate(program.steps, 1):
            yield program.name, f"step {number}", step.sql
    for name, query in support.CATALOGUE.queries.items():
        yield name, "query", query.sql
    for name in ("event_insert", "head_move", "batch_count", "batch_read"):
        sql = support.CATALOGUE.statements[name]
        yield name, "statement", sql.replace("?", ":value")


def test_nothing_that_grows_is_read_from_end_to_end(connection: apsw.Connection) -> None:
    found = []
    for name, which, sql in statements():
        for line in plan(connection, sql):
            scanned = re.match(r"SCAN (.*)", line)
            if name in COUNTS:
                continue
            if scanned and not scanned[1].startswith(tuple(SCANS)):
                found.append((name, which, line))
    assert found == []


def test_nothing_is_sorted_that_is_not_short(connection: apsw.Connection) -> None:
    sorting = {
        name
        for name, _which, sql in statements()
        if any("TEMP B-TREE" in line for line in plan(connection, sql))
    }
    assert sorting - COUNTS == SORTS


def test_the_pick_has_no_filter_and_no_order_to_make(connection: apsw.Connection) -> None:
    pick = support.CATALOGUE.programs["claim"].steps[0]
    assert plan(connection, pick.sql) == [
        "SEARCH p USING PRIMARY KEY (pool=?)",
        "SEARCH h USING INDEX heads_fair (pool=?)",
        "SEARCH l USING PRIMARY KEY (pool=? AND rank=?)",
    ]


def test_what_has_ended_is_counted_without_its_rows(connection: apsw.Connection) -> None:
    sql = support.CATALOGUE.queries["task_counts"].sql
    tables = [line for line in plan(connection, sql) if " tasks" in line]
    assert len(tables) >= 8
    rows = {line for line in tables if "USING COVERING INDEX" not in line}
    assert rows == {"SCAN tasks USING INDEX tasks_waiting"}


def test_the_path_of_every_task_keeps_its_plans(connection: apsw.Connection) -> None:
    now = {
        name: [plan(connection, step.sql) for step in support.CATALOGUE.programs[name].steps]
        for name in PATH
    }
    frozen = json.loads(FROZEN.read_text("utf-8"))
    changed = {
        f"{name}, step {number}": (old, new)
        for name in PATH
        for number, (old, new) in enumerate(zip(frozen[name], now[name], strict=False), 1)
        if old != new
    }
    assert changed == {}
    assert frozen == now


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ("SELECT tid FROM tasks WHERE state = 'QUEUED'", "a scan"),
        ("SELECT tid FROM heads ORDER BY start", "a sort"),
    ],
)
def test_the_rules_see_a_bad_statement(connection: apsw.Connection, broken: str, name: str) -> None:
    lines = plan(connection, broken)
    assert any(line.startswith("SCAN") or "TEMP B-TREE" in line for line in lines), name
