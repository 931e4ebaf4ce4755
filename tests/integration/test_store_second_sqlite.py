"""Why no second SQLite may open the file in this process (docs/decisions/0002).

POSIX locks belong to the process: whoever closes any descriptor of a file drops all locks that the
process holds on it. A second copy of SQLite does that, and so does a bare ``open()`` of the index.
Both are shown here in processes of their own, since nothing in this one would notice. The lint rule
(ruff TID251) and the house test keep ``import sqlite3`` out of goclaw and of tests that run in it.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import apsw
import pytest
import store_support as support

# A transaction of the writer's SQLite is open; something is done to the file; another process tries
# to write; the transaction commits. Prints what the other process found.
VICTIM = """
import subprocess, sys
import apsw
path, act, other = sys.argv[1:]
connection = apsw.Connection(path)
connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()
connection.execute("INSERT INTO meta VALUES ('kept', 'first')")
connection.execute("BEGIN IMMEDIATE")
connection.execute("INSERT INTO meta VALUES ('kept too', 'second')")
exec(act)
found = subprocess.run([sys.executable, "-c", other, path], capture_output=True, text=True)
print(found.stdout.strip() or found.stderr.strip())
try:
    connection.execute("COMMIT")
    connection.execute("INSERT INTO meta VALUES ('acknowledged', 'third')")
    print("committed")
except apsw.Error as error:
    print(type(error).__name__)
sys.stdout.flush()
import os
os.kill(os.getpid(), 9)  # no orderly close that could repair anything
"""

OTHER = """
import sys
import apsw
connection = apsw.Connection(sys.argv[1])
try:
    connection.execute("INSERT INTO meta VALUES ('other', 'x')")
    print("wrote")
except apsw.BusyError:
    print("locked")
"""

ACTS = {
    "nothing": "pass",
    "the same SQLite": "c = apsw.Connection(path); c.execute('SELECT * FROM meta').fetchall();"
    " c.close()",
    "a second SQLite": "import sqlite3; c = sqlite3.connect(path);"
    " c.execute('SELECT * FROM meta').fetchall(); c.close()",
    "a bare open of the index": "open(path + '-shm', 'rb').close()",
}


def outcome(path: Path, act: str) -> tuple[list[str], set[str]]:
    """What the two processes said, and the keys that a third one finds afterwards."""
    ended = subprocess.run(
        [sys.executable, "-c", VICTIM, str(path), ACTS[act], OTHER],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.stderr == ""
    try:
        found = {key for (key,) in support.rows(path, "SELECT key FROM meta")}
    except apsw.Error as error:
        found = {f"unreadable: {error}"}
    return ended.stdout.split(), found


@pytest.mark.req("S-2", "I-3")
@pytest.mark.parametrize("act", ["nothing", "the same SQLite"])
def test_one_sqlite_keeps_its_locks_and_its_data(tmp_path: Path, act: str) -> None:
    said, found = outcome(support.fresh(tmp_path), act)
    assert said == ["locked", "committed"]
    assert found == {"kept", "kept too", "acknowledged"}


@pytest.mark.req("S-2", "I-3")
@pytest.mark.parametrize("act", ["a second SQLite", "a bare open of the index"])
def test_anything_else_loses_data_in_silence(tmp_path: Path, act: str) -> None:
    said, found = outcome(support.fresh(tmp_path), act)
    assert said[0] == "wrote", "another process wrote in the middle of our transaction"
    assert found != {"kept", "kept too", "acknowledged", "other"}, "and yet nothing is lost?"


@pytest.mark.req("S-2")
def test_the_lint_rule_is_on() -> None:
    """`ruff check` runs it in the lint leg; the house test plants the same import for its twin."""
    root = Path(__file__).parents[2]
    lint = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert "TID251" in lint["select"]
    assert "sqlite3" in lint["flake8-tidy-imports"]["banned-api"]
