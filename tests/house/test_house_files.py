"""Holds every file that lands, of any kind, to the rules that reading its lines can tell.

Owns the planted samples. Not in here: the rules (``checks.py``).
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import checks
import pytest

if TYPE_CHECKING:
    from pathlib import Path

# An @ in a sample keeps this file from being one.


def test_no_note_is_left_over() -> None:
    assert not checks.leftovers(checks.tracked(checks.ROOT), checks.ROOT)


def test_no_trace_of_a_machine() -> None:
    assert not checks.machine_traces(checks.tracked(checks.ROOT), checks.ROOT)


def test_the_top_level_is_what_the_design_says() -> None:
    tops = {file.relative_to(checks.ROOT).parts[0] for file in checks.tracked(checks.ROOT)}
    known = {
        "pyproject.toml",
        "setup.py",
        "README.md",
        "goclaw",
        "tests",
        "bench",
        "docs",
        "LICENSE",
    }
    assert not {name for name in tops if not name.startswith(".")} - known


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("# TO@DO: later", True),
        ("FIX@ME", True),
        ("the mas@todons", False),
        ("see https://py@pi.org/simple", False),
    ],
)
def test_a_planted_note_is_reported(tmp_path: Path, text: str, caught: bool) -> None:
    file = tmp_path / "notes.md"
    file.write_text("first\n" + text.replace("@", ""), "utf-8")
    found = checks.leftovers([file], tmp_path)
    assert bool(found) is caught
    assert all(line.startswith("notes.md:2: ") for line in found)


@pytest.mark.parametrize(
    ("text", "caught"),
    [
        ("see https://py@pi.org/simple", True),
        ('"resolved": "https://registry.np@mjs.org/x"', True),
        ("cd /wo@rk/main", True),
        ("HOME=/ro@ot/.goclaw", True),
        ("a network/work/queue", False),
        ("{root}/work/", False),
        ("~/.goclaw", False),
    ],
)
def test_a_planted_trace_is_reported(tmp_path: Path, text: str, caught: bool) -> None:
    file = tmp_path / "notes.md"
    file.write_text(text.replace("@", ""), "utf-8")
    assert bool(checks.machine_traces([file], tmp_path)) is caught


def test_what_git_ignores_is_not_judged(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("*.so\n", "utf-8")
    (tmp_path / "a.so").write_bytes(b"")
    (tmp_path / "b.py").write_text("", "utf-8")
    names = {file.name for file in checks.tracked(tmp_path)}
    assert names == {".gitignore", "b.py"}


def test_without_git_every_file_is_judged(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("", "utf-8")
    assert [file.name for file in checks.tracked(tmp_path)] == ["b.py"]
