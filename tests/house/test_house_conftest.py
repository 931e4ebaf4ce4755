"""Proves the rules of tests/conftest.py on small suites of their own.

Owns those suites. Not in here: the rules.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import checks
import pytest

SUITE = """
import pytest

@pytest.mark.req("Q-3", "W-13")
def test_good(home):
    assert len(str(home)) < 40 and not list(home.iterdir())

@pytest.mark.parametrize("n", ["a[b]"])
def test_skips(n):
    pytest.skip("no compiler")

@pytest.mark.xfail(reason="not yet", strict=True)
def test_expected():
    raise AssertionError
"""

SKIPS = """# a comment

test_suite.py::test_skips* | no compiler
test_suite.py::test_expected | not yet
"""


def run(
    folder: Path, *arguments: str, suite: str = SUITE, skips: str = SKIPS, **environ: str
) -> tuple[int, str]:
    shutil.copy(checks.ROOT / "tests/conftest.py", folder)
    (folder / "test_suite.py").write_text(suite, "utf-8")
    (folder / "skips.txt").write_text(skips, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = req\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checks.ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_listed_skips_pass_and_the_header_tells_the_build(tmp_path: Path) -> None:
    code, output = run(tmp_path)
    assert code == 0, output
    assert "goclaw: native " in output
    assert "Using --randomly-seed=" in output


@pytest.mark.parametrize(
    "skips",
    [
        SKIPS.replace("no compiler", "no compiler today"),
        SKIPS.replace("test_skips*", "test_skip"),
        SKIPS.replace("test_suite.py::test_expected | not yet", ""),
        "",
    ],
)
def test_a_skip_that_is_not_listed_fails_the_run(tmp_path: Path, skips: str) -> None:
    code, output = run(tmp_path, skips=skips)
    assert code == 1, output
    assert "skips.txt does not list" in output


def test_a_module_that_skips_itself_fails_the_run(tmp_path: Path) -> None:
    code, output = run(tmp_path, suite="import pytest\npytest.importorskip('no_such_module')\n")
    assert code == 1, output
    assert "test_suite.py | could not import 'no_such_module'" in output


def test_a_damaged_list_stops_the_run(tmp_path: Path) -> None:
    code, output = run(tmp_path, skips="test_suite.py::test_skips\n")
    assert code == 4, output
    assert "skips.txt:1: write 'pattern | reason'" in output


def test_a_failure_stays_a_failure(tmp_path: Path) -> None:
    code, output = run(tmp_path, suite="def test_bad():\n    assert 0\n")
    assert code == 1, output


def test_an_unknown_requirement_stops_the_run(tmp_path: Path) -> None:
    code, output = run(tmp_path, suite=SUITE.replace("Q-3", "Q-18"))
    assert code == 4, output
    assert "there is no requirement 'Q-18'" in output


def test_the_report_names_what_has_no_test(tmp_path: Path) -> None:
    code, output = run(tmp_path, "--req-report")
    assert code == 0, output
    line = next(line for line in output.splitlines() if line.startswith("without a test: "))
    missing = line.removeprefix("without a test: ").split()
    assert "Q-2" in missing
    assert "G-22" in missing
    assert not {"Q-3", "W-13"} & set(missing)
    assert f"{len(missing)} ids" not in output
    assert f"2 of {len(missing) + 2} ids have a test" in output


def test_native_code_that_was_expected_and_is_not_there_stops_the_run(tmp_path: Path) -> None:
    code, output = run(tmp_path, GOCLAW_PURE="1", GOCLAW_EXPECT_NATIVE="1")
    assert code == 4, output
    assert "native code was expected" in output


CHILDREN = """
import os, subprocess, sys
from pathlib import Path

def test_child():
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
    subprocess.run([sys.executable, "-c", "import goclaw.core.states"], check=True)
    bytecode = Path(os.environ["PYTHONPYCACHEPREFIX"])
    assert list(bytecode.rglob("states.*.pyc"))
    Path(__file__).with_name("where").write_text(str(bytecode))
"""


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_children_share_their_bytecode_and_leave_none(
    tmp_path: Path, workers: tuple[str, ...]
) -> None:
    code, output = run(tmp_path, *workers, suite=CHILDREN, PYTHONDONTWRITEBYTECODE="1")
    assert code == 0, output
    assert not Path((tmp_path / "where").read_text()).exists()
