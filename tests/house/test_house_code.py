"""Holds the Python of the house to its rules, and each rule to planted violations.

Owns the samples. Not in here: the rules (``checks.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import checks
import pytest

from goclaw.core import faults
from goclaw.protocol import methods
from goclaw.store import queries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Rule = Callable[[list[checks.Source]], list[str]]

IN_GOCLAW: dict[str, Rule] = {
    "floors": checks.floors,
    "door": checks.door,
    "database_names": checks.database_names,
    "sql": checks.sql,
    "clocks": checks.clocks,
    "broad_excepts": checks.broad_excepts,
    "side_doors": checks.side_doors,
    "no_io": checks.no_io,
    "hints": checks.hints,
    "exports": checks.exports,
    "incomplete_errors": lambda tree: checks.incomplete_errors(
        tree, {kind.__name__: keys for kind, keys in methods.ERROR_DATA.items()}
    ),
    "fault_points": lambda tree: checks.fault_points(tree, faults.POINTS),
}
IN_ALL: dict[str, Rule] = {"one_sqlite": checks.one_sqlite}

# rule, file, text, what the report must say
PLANTED = [
    (
        "incomplete_errors",
        "goclaw/engine/x.py",
        "raise TooLarge('too long', limit=3)",
        "TooLarge without unit",
    ),
    (
        "incomplete_errors",
        "goclaw/engine/x.py",
        "raise IllegalTransition('no', **{'from': 1})",
        "IllegalTransition without to",
    ),
    ("floors", "goclaw/core/x.py", "from goclaw.store import tasks", "core reaches up to store"),
    ("floors", "goclaw/core/x.py", "from goclaw import store", "core reaches up to store"),
    ("floors", "goclaw/core/x.py", "from ..store import tasks", "core reaches up to store"),
    ("floors", "goclaw/core/x.py", "def f():\n    import goclaw.engine.worker", "up to engine"),
    (
        "floors",
        "goclaw/_pure/ring.py",
        "from goclaw.core import limits",
        "_pure reaches up to core",
    ),
    ("floors", "goclaw/store/x.py", "import goclaw.policy.pdp", "siblings store and policy meet"),
    ("floors", "goclaw/engine/x.py", "import goclaw.brains", "engine reaches up to brains"),
    ("floors", "goclaw/brains/x.py", "from goclaw.ops import audit", "siblings brains and ops"),
    ("floors", "goclaw/tui/x.py", "from goclaw.store import tasks", "tui may not use store"),
    ("floors", "goclaw/client.py", "import goclaw.daemon", "client may not use daemon"),
    ("floors", "goclaw/bridges/x.py", "import goclaw.cli", "bridges may not use cli"),
    ("floors", "goclaw/__init__.py", "from goclaw import daemon", "goclaw may not use daemon"),
    ("floors", "goclaw/helpers/x.py", "", "helpers stands on no floor"),
    ("floors", "goclaw/cli/x.py", "import goclaw.odd", "odd stands on no floor"),
    (
        "floors",
        "goclaw/core/x.py",
        "import importlib\nimportlib.import_module('goclaw.net.dial')",
        "core reaches up to net",
    ),
    ("door", "goclaw/store/x.py", "from goclaw._fast.writer import Writer", "behind the door"),
    ("door", "goclaw/store/x.py", "import goclaw._fast.writer", "behind the door"),
    (
        "door",
        "goclaw/store/x.py",
        "from goclaw._pure import writer",
        "chosen by goclaw._fast alone",
    ),
    ("door", "goclaw/engine/x.py", "from goclaw._fast import writer", "writer belongs to"),
    ("door", "goclaw/engine/x.py", "from goclaw._fast import ring", "ring belongs to"),
    ("door", "goclaw/engine/x.py", "from goclaw import _fast\n_fast.rules", "rules belongs to"),
    ("door", "goclaw/store/x.py", "from goclaw._fast import sha256", "has no sha256"),
    ("one_sqlite", "goclaw/ops/x.py", "import sqlite3", "sqlite3 loads a second SQLite"),
    ("one_sqlite", "tests/unit/x.py", "from sqlite3 import connect", "loads a second SQLite"),
    ("one_sqlite", "goclaw/ops/x.py", "__import__('sqlite3')", "loads a second SQLite"),
    ("one_sqlite", "goclaw/ops/x.py", "import apsw", "apsw belongs to the store"),
    ("database_names", "goclaw/ops/x.py", "open(home / 'goclaw.db')", "a file of the store"),
    ("database_names", "goclaw/ops/x.py", "open(f'{path}-wal')", "a file of the store"),
    ("sql", "goclaw/store/x.py", "q = 'SELECT id\\n FROM tasks'", "belongs in store/queries.sql"),
    ("sql", "goclaw/store/x.py", "q = f'DELETE FROM {table}'", "belongs in store/queries.sql"),
    ("sql", "goclaw/store/x.py", "q = 'insert into t values (1)'", "belongs in store/queries.sql"),
    ("sql", "goclaw/store/x.py", "q = 'UPDATE t SET a = 1'", "belongs in store/queries.sql"),
    ("clocks", "goclaw/net/x.py", "import time\ntime.monotonic()", "time.monotonic is the"),
    ("clocks", "goclaw/net/x.py", "import time as t\nt.time()", "time.time is the business"),
    ("clocks", "goclaw/net/x.py", "from time import sleep\nsleep(1)", "time.sleep is the"),
    ("clocks", "goclaw/net/x.py", "import asyncio\nf = asyncio.sleep", "asyncio.sleep is the"),
    ("clocks", "goclaw/net/x.py", "import asyncio\nasyncio.sleep(1)", "asyncio.sleep is the"),
    ("clocks", "goclaw/net/x.py", "import random\nrandom.random()", "random.random is the"),
    (
        "clocks",
        "goclaw/net/x.py",
        "from secrets import token_hex\ntoken_hex()",
        "secrets.token_hex",
    ),
    ("clocks", "goclaw/net/x.py", "import datetime\ndatetime.datetime.now()", "datetime.now"),
    ("clocks", "goclaw/net/x.py", "from datetime import datetime\ndatetime.now()", "datetime.now"),
    ("clocks", "goclaw/net/x.py", "import os\nos.urandom(8)", "os.urandom is the business"),
    (
        "broad_excepts",
        "goclaw/net/x.py",
        "try:\n 1\nexcept Exception:\n pass",
        "module is no named",
    ),
    ("broad_excepts", "goclaw/net/x.py", "def f():\n try:\n  1\n except:\n  pass", "f is no named"),
    (
        "broad_excepts",
        "goclaw/net/x.py",
        "class A:\n def f(self):\n  try:\n   1\n  except (OSError, BaseException):\n   pass",
        "A.f is no named edge",
    ),
    (
        "broad_excepts",
        "goclaw/net/x.py",
        "import contextlib\nwith contextlib.suppress(Exception):\n 1",
        "is no named edge",
    ),
    ("side_doors", "goclaw/gateway/x.py", "await_(runner.run_attempt(task))", "is a side door"),
    ("side_doors", "goclaw/gateway/x.py", "self._gate.call(tool)", "is a side door"),
    ("side_doors", "goclaw/cli/x.py", "gate.call(tool)", "is a side door"),
    ("side_doors", "goclaw/engine/x.py", "entry.origin.run(tool)", "is a side door"),
    ("side_doors", "goclaw/gateway/x.py", "entry.origin.probe(tool)", "is a side door"),
    ("side_doors", "goclaw/engine/settlement.py", "call.dispatch(key)", "is a side door"),
    ("side_doors", "goclaw/gateway/x.py", "self.call.probe(key)", "is a side door"),
    ("no_io", "goclaw/protocol/x.py", "async def f(): ...", "has an async def"),
    ("no_io", "goclaw/policy/x.py", "def f(p):\n    return p.read_text()", "opens a file"),
    ("no_io", "goclaw/policy/x.py", "import socket", "policy imports socket"),
    ("hints", "goclaw/net/x.py", "raise UnknownId('No.', what='x')", "UnknownId without a hint"),
    ("hints", "goclaw/net/x.py", "e = errors.UsageError('No.')", "UsageError without a hint"),
    ("exports", "goclaw/net/x.py", "def dial(): ...", "has public names and no __all__"),
    ("exports", "goclaw/net/x.py", "__all__ = ['dial']", "names dial, which is not there"),
    ("exports", "goclaw/net/x.py", "__all__ = ['a', 'a']\na = 1", "a twice in __all__"),
    ("fault_points", "goclaw/net/x.py", "faultpoint('after_lunch')", "no fault point of"),
    ("fault_points", "goclaw/net/x.py", "faults.faultpoint(name)", "no fault point of"),
]

# rule, file, text: what a rule must leave alone
LEFT_ALONE = [
    ("floors", "goclaw/store/x.py", "from goclaw.core import limits\nfrom goclaw import _fast"),
    ("floors", "goclaw/cli/x.py", "import goclaw.bridges.acp\nfrom goclaw.daemon import Daemon"),
    ("floors", "goclaw/net/x.py", "from goclaw import __version__"),
    ("door", "goclaw/store/x.py", "from goclaw._fast import NATIVE, writer"),
    ("door", "goclaw/engine/hub.py", "from goclaw import _fast\n_fast.ring"),
    ("one_sqlite", "goclaw/store/x.py", "import apsw"),
    ("one_sqlite", "tests/unit/x.py", "import apsw"),
    ("database_names", "goclaw/store/x.py", "'goclaw.db'"),
    ("database_names", "goclaw/ops/x.py", '"""Never opens goclaw.db."""'),
    ("sql", "goclaw/cli/x.py", "'Select a session from the list.'"),
    ("sql", "goclaw/cli/x.py", '"""SELECT x FROM y, in prose."""'),
    ("clocks", "goclaw/core/clock.py", "import time\ntime.monotonic_ns()"),
    ("clocks", "goclaw/net/x.py", "import asyncio\nasyncio.sleep(0)"),
    ("clocks", "goclaw/net/x.py", "def f(random, time):\n    return random.choice(time.time())"),
    ("broad_excepts", "goclaw/net/x.py", "try:\n 1\nexcept BaseException:\n undo()\n raise"),
    ("broad_excepts", "goclaw/net/x.py", "try:\n 1\nexcept OSError:\n pass"),
    ("side_doors", "goclaw/engine/x.py", "runner.run_attempt(task)"),
    ("side_doors", "goclaw/engine/settlement.py", "await call.probe(key)"),
    ("no_io", "goclaw/gateway/x.py", "async def f(): ..."),
    ("hints", "goclaw/net/x.py", "raise UnknownId('No.', hint='Look.')"),
    ("hints", "goclaw/net/x.py", "raise InvalidParams('x must be true.')"),
    (
        "exports",
        "goclaw/net/x.py",
        "__all__ = ['a']\ntry:\n    import a\nexcept ImportError:\n    a = 1",
    ),
    ("exports", "goclaw/net/x.py", "def _hidden(): ..."),
]


def plant(root: Path, name: str, text: str) -> list[checks.Source]:
    file = root / name
    file.parent.mkdir(parents=True)
    file.write_text(text, "utf-8")
    return checks.sources(root, name.split("/")[0])


@pytest.mark.parametrize("rule", sorted(IN_GOCLAW))
def test_the_house_keeps_the_rule(rule: str) -> None:
    found = IN_GOCLAW[rule](checks.sources(checks.ROOT, "goclaw"))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", sorted(IN_ALL))
def test_the_whole_tree_keeps_the_rule(rule: str) -> None:
    found = IN_ALL[rule](checks.sources(checks.ROOT, "goclaw", "tests"))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("rule", "name", "text", "says"), PLANTED)
def test_a_planted_violation_is_reported(
    tmp_path: Path, rule: str, name: str, text: str, says: str
) -> None:
    found = (IN_GOCLAW | IN_ALL)[rule](plant(tmp_path, name, text))
    assert any(says in line and line.startswith(name) for line in found), found


@pytest.mark.parametrize(("rule", "name", "text"), LEFT_ALONE)
def test_what_is_allowed_is_left_alone(tmp_path: Path, rule: str, name: str, text: str) -> None:
    found = (IN_GOCLAW | IN_ALL)[rule](plant(tmp_path, name, text))
    assert not [line for line in found if line.startswith(name)], found


def test_every_rule_has_a_planted_violation() -> None:
    assert {row[0] for row in PLANTED} == set(IN_GOCLAW | IN_ALL)


def test_a_name_that_a_module_does_not_export_is_reported(tmp_path: Path) -> None:
    plant(tmp_path, "goclaw/core/a.py", "__all__ = ['x']\nx = y = 1")
    tree = plant(tmp_path, "goclaw/net/b.py", "from goclaw.core.a import x, y")
    assert checks.exports(tree) == ["goclaw/net/b.py:1: goclaw.core.a does not export y"]


def test_a_fault_point_without_a_call_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = plant(tmp_path, "goclaw/net/x.py", "faultpoint('b')\nfaultpoint('c')")
    monkeypatch.setattr(checks, "POINTS_PENDING", {"c", "d"})
    found = checks.fault_points(tree, {"a", "b", "c"})
    assert found == [
        "core/faults.py: a is placed nowhere",
        "c is placed: take it off POINTS_PENDING",
        "d is pending and unknown",
    ]


def test_all_sql_is_used() -> None:
    known = queries.load()
    names = {*known.programs, *known.queries, *known.statements}
    found = checks.unused_sql(checks.sources(checks.ROOT, "goclaw"), names)
    assert not found, "\n" + "\n".join(found)


def test_sql_that_nobody_uses_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = plant(tmp_path, "goclaw/net/x.py", "database.read('a')\ndatabase.write('b')")
    monkeypatch.setattr(checks, "SQL_PENDING", {"b": "", "c": "", "d": ""})
    assert checks.unused_sql(tree, {"a", "b", "c", "e"}) == [
        "queries.sql: nobody uses e",
        "b is used: take it off SQL_PENDING",
        "d is pending and unknown",
    ]


def test_native_sources_keep_their_rules() -> None:
    assert not checks.native_floors(checks.ROOT)
    assert not checks.native_sql(checks.ROOT)


def test_a_planted_violation_in_a_native_source_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "goclaw/_fast"
    folder.mkdir(parents=True)
    (folder / "writer.pyx").write_text(
        'from goclaw.core import limits\nfrom goclaw._fast cimport ring\nq = "DELETE FROM tasks"\n'
        '# "DELETE FROM notes"\n',
        "utf-8",
    )
    assert checks.native_floors(tmp_path) == ["goclaw/_fast/writer.pyx: reaches up to goclaw.core"]
    assert checks.native_sql(tmp_path) == [
        "goclaw/_fast/writer.pyx: SQL belongs in store/queries.sql: DELETE FROM tasks"
    ]
