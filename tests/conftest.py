"""What every test run shares: the native line, the ledger of skips, the report of requirements.

Owns the fixtures of all folders and the rules that make a run red beyond its tests. Not in here:
fixtures of one floor, which stand in that folder's conftest.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

HERE = Path(__file__).parent
SKIPS = HERE / "skips.txt"

# How many ids each letter has: SPEC, PROTOCOL (W), DESIGN (I) and ANCESTOR (G).
REQUIREMENTS = {
    "Q": 17,
    "E": 11,
    "S": 10,
    "R": 6,
    "K": 13,
    "A": 15,
    "O": 6,
    "B": 6,
    "U": 10,
    "P": 7,
    "W": 13,
    "I": 8,
    "G": 22,
}
ALL_IDS = tuple(
    f"{letter}-{n}" for letter, count in REQUIREMENTS.items() for n in range(1, count + 1)
)

# The machines are shared: how long one example takes says nothing.
hypothesis.settings.register_profile("goclaw", deadline=None, print_blob=True)
hypothesis.settings.load_profile("goclaw")

_proved: pytest.StashKey[dict[str, int]] = pytest.StashKey()
_skipped: pytest.StashKey[list[str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--req-report", action="store_true", help="print which requirement ids have no test"
    )


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        # Each of thousands of processes would compile the package anew: half of its start.
        bytecode = tempfile.mkdtemp(prefix="goclaw-bytecode-")
        config.add_cleanup(lambda: shutil.rmtree(bytecode, ignore_errors=True))
        os.environ["PYTHONPYCACHEPREFIX"] = bytecode
    config.stash[_proved] = {}
    config.stash[_skipped] = []
    if config.getoption("req_report") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--req-report counts in one process: leave -n out")
    native, detail = native_build()
    if os.environ.get("GOCLAW_EXPECT_NATIVE") == "1" and not native:
        raise pytest.UsageError(f"native code was expected: {detail}")


def pytest_report_header() -> str:
    native, detail = native_build()
    return f"goclaw: native {'yes' if native else 'no'}, {detail}"


def native_build() -> tuple[bool, str]:
    """Whether native code runs, and the extension's path or why not."""
    try:
        from goclaw import _fast
    except ImportError as error:
        return False, f"goclaw._fast cannot be imported ({error})"
    return _fast.NATIVE, str(_fast.writer.__file__ if _fast.NATIVE else _fast.WHY_PURE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("req"):
            for name in mark.args:
                if name not in ALL_IDS:
                    raise pytest.UsageError(f"{item.nodeid}: there is no requirement {name!r}")
                proved = config.stash[_proved]
                proved[name] = proved.get(name, 0) + 1
    if os.environ.get("GOCLAW_PURE") == "1":
        # Cases that choose the native build themselves are no cases of this one.
        theirs = [item for item in items if "native" in _chosen(item)]
        config.hook.pytest_deselected(items=theirs)
        items[:] = [item for item in items if item not in set(theirs)]


def _chosen(item: pytest.Item) -> list[object]:
    """The values of a case's parameters that can be a build's name."""
    callspec = getattr(item, "callspec", None)
    return [] if callspec is None else [one for one in callspec.params.values() if type(one) is str]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed or logged may be no text; between processes a report travels as UTF-8."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode())
        for title, text in report.sections
    ]
    return report


class SkipLedger:
    """Collects every skip and expected failure that skips.txt does not allow."""

    def __init__(self, config: pytest.Config) -> None:
        self.found = config.stash[_skipped]
        self.allowed = read_skips(SKIPS)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.judge(report)

    def judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped:
            return
        reason = getattr(report, "wasxfail", None)
        if reason is None:
            reason = (
                report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            )
        reason = reason.removeprefix("Skipped: ")
        if not is_listed(self.allowed, report.nodeid, reason):
            self.found.append(f"{report.nodeid} | {reason}")


def read_skips(path: Path) -> list[tuple[str, str]]:
    """The rows ``pattern | reason`` of skips.txt; ``#`` begins a comment."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        pattern, bar, reason = (part.strip() for part in line.partition(" | "))
        if not (pattern and bar and reason):
            raise pytest.UsageError(f"{path.name}:{number}: write 'pattern | reason'")
        rows.append((pattern, reason))
    return rows


def is_listed(allowed: list[tuple[str, str]], nodeid: str, reason: str) -> bool:
    """True when a row has this test and this very reason; brackets of a node id are plain text."""
    return any(
        reason == row_reason
        and re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), nodeid)
        for pattern, row_reason in allowed
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(SkipLedger(session.config), "goclaw-skip-ledger")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.stash[_skipped] and exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    skipped = config.stash[_skipped]
    if skipped:
        terminalreporter.section(
            "skips that tests/skips.txt does not list: the run fails", red=True
        )
        for line in skipped:
            terminalreporter.write_line(line)
    if config.getoption("req_report"):
        proved = config.stash[_proved]
        missing = [name for name in ALL_IDS if name not in proved]
        terminalreporter.section("requirements")
        terminalreporter.write_line(
            f"{len(ALL_IDS) - len(missing)} of {len(ALL_IDS)} ids have a test"
        )
        terminalreporter.write_line("without a test: " + (" ".join(missing) or "none"))


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """It hears goclaw, too, where an earlier test of this process had goclaw's own log open."""
    ours = logging.getLogger("goclaw")
    before = ours.propagate, ours.level
    ours.propagate = True
    ours.setLevel(logging.NOTSET)
    yield caplog
    ours.propagate, level = before
    ours.setLevel(level)


@pytest.fixture
def home() -> Iterator[Path]:
    """An empty private directory whose path is short enough for a Unix socket inside."""
    folder = Path(tempfile.mkdtemp(prefix="gc-", dir="/tmp" if Path("/tmp").is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
