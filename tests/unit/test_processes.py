"""core/processes.py: a child is recorded before it acts, and nothing of it outlives its daemon."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from goclaw.core.clock import SystemClock
from goclaw.core.errors import InternalError, StorageFailed
from goclaw.core.processes import MARK, Children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.req("Q-6"),
    pytest.mark.skipif(sys.platform != "linux", reason="groups are recorded where there is /proc"),
]

# A daemon for the purpose: it may die where its child is admitted, and its output is the child's.
DAEMON = """
import os, pathlib, signal, sys
from goclaw.core.clock import SystemClock
from goclaw.core.processes import Children

class Dying(Children):
    def _admit(self, pid, mark):
        if sys.argv[2] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super()._admit(pid, mark)
        if sys.argv[2] == "after":
            os.kill(os.getpid(), signal.SIGKILL)

children = Dying(pathlib.Path(sys.argv[1]), SystemClock())
children.start(["sh", "-c", sys.argv[3]], env=os.environ, cwd="/").wait()
"""


@pytest.fixture(autouse=True)
def adopting() -> Iterator[None]:
    """Whoever loses its parent becomes ours, so that we can collect it: not every machine's first
    process does."""
    prctl, pr_set_child_subreaper = ctypes.CDLL(None).prctl, 36
    prctl(pr_set_child_subreaper, 1, 0, 0, 0)
    yield
    prctl(pr_set_child_subreaper, 0, 0, 0, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "children"


@pytest.fixture
def children(folder: Path) -> Iterator[Children]:
    made = Children(folder, SystemClock())
    yield made
    made.close()


def daemon_of(folder: Path, shell: str, *, dies: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DAEMON, str(folder), dies, shell]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def records(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def leader_of(folder: Path) -> int:
    (name,) = records(folder)
    return int(name.split(".")[1])


def gone(pid: int, wait_s: float = 20) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], wait_s)[0])
    finally:
        os.close(handle)


def kill(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()


def orphan_of(folder: Path, shell: str = "sleep 1000 & echo $!; wait") -> tuple[int, Any]:
    """A process whose daemon and whose group's first process were killed; and its output."""
    daemon = daemon_of(folder, shell)
    assert daemon.stdout is not None
    orphan = int(daemon.stdout.readline())
    leader = leader_of(folder)
    kill(daemon)
    assert gone(leader), "the parent-death signal did not reach it"
    os.waitpid(leader, 0)
    os.kill(orphan, 0)
    return orphan, daemon.stdout


@pytest.mark.parametrize("dies", ["before", "after"])
def test_a_child_does_nothing_before_it_is_recorded(
    folder: Path, children: Children, tmp_path: Path, dies: str
) -> None:
    daemon = daemon_of(folder, f"echo acted > {tmp_path}/acted; sleep 1000", dies=dies)
    assert daemon.stdout is not None
    with daemon.stdout as output:
        assert output.read() == ""  # until nobody is left who could write
    daemon.wait()
    assert len(records(folder)) == (dies == "after")
    children.end_left()
    assert not (tmp_path / "acted").exists()
    assert records(folder) == []


def test_what_outlives_the_daemon_is_ended_by_the_next_one(
    folder: Path, children: Children
) -> None:
    orphan, output = orphan_of(folder)
    assert children.end_left() == 1
    assert gone(orphan, 0), "end_left returned before it was over"
    assert output.read() == ""
    output.close()
    os.waitpid(orphan, 0)
    assert (children.end_left(), records(folder)) == (0, [])


def test_a_first_process_that_got_over_the_signal_is_ended_too(
    folder: Path, children: Children
) -> None:
    forgetful = (
        f"exec {sys.executable} -ISc 'import ctypes, os, time; ctypes.CDLL(None).prctl(1, 0);"
        "print(os.getpid(), flush=True); time.sleep(1000)'"
    )
    daemon = daemon_of(folder, forgetful)
    assert daemon.stdout is not None
    with daemon.stdout as output:
        leader = int(output.readline())
        kill(daemon)
        os.kill(leader, 0)
        assert children.end_left() == 1
        assert gone(leader, 0)


@pytest.mark.parametrize("field", [0, 2])
def test_a_number_that_was_given_again_is_let_be(
    folder: Path, children: Children, tmp_path: Path, field: int
) -> None:
    child = children.start(["sleep", "1000"], env={}, cwd="/")
    (name,) = records(folder)
    parts = name.split(".")
    parts[field] = {0: "another-boot", 2: str(int(parts[2]) - 1)}[field]
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / ".".join(parts)).touch()
    assert Children(earlier, SystemClock()).end_left() == 0
    assert (child.poll(), records(earlier)) == (None, [])
    children.end(child.pid)
    assert child.wait() == -signal.SIGKILL


def test_a_group_without_its_first_process_is_known_by_its_mark_only(
    folder: Path, children: Children
) -> None:
    orphan, output = orphan_of(folder)
    (name,) = records(folder)
    (folder / name).rename(folder / (name.rpartition(".")[0] + ".0123456789abcdef"))
    assert children.end_left() == 0
    os.kill(orphan, 0)
    os.kill(orphan, signal.SIGKILL)
    os.waitpid(orphan, 0)
    output.close()


@pytest.mark.parametrize("name", ["", "a.b.c.d", "1.2.3", "x.١.2.m"])
def test_what_is_no_record_is_removed(folder: Path, children: Children, name: str) -> None:
    folder.mkdir()
    (folder / f"{name}.").touch()
    assert children.end_left() == 0
    assert records(folder) == []


def test_the_end_of_a_child_is_the_end_of_its_group(folder: Path, children: Children) -> None:
    shell = "trap '' TERM HUP; sleep 1000 & echo $!"
    child = children.start(["sh", "-c", shell], env=os.environ, cwd="/", stdout=subprocess.PIPE)
    assert child.stdout is not None
    left = int(child.stdout.readline())
    assert child.wait() == 0
    os.kill(left, 0)
    for _ in range(2):
        children.end(child.pid)
    assert child.stdout.read() == b""
    child.stdout.close()
    assert gone(left)
    assert records(folder) == []


def test_close_ends_every_child(folder: Path, children: Children) -> None:
    started = [children.start(["sleep", "1000"], env={}, cwd="/") for _ in range(3)]
    assert len(records(folder)) == 3
    children.close()
    assert [child.wait() for child in started] == [-signal.SIGKILL] * 3
    assert records(folder) == []
    children.close()


@pytest.mark.req("A-9")
def test_a_child_sees_what_it_is_given_and_not_the_home(children: Children) -> None:
    given = {"GOCLAW_HOME": "/h", "GOCLAW_FAULTS": "x", "OTHER": "1", "PATH": os.environ["PATH"]}
    child = children.start(["env"], env=given, cwd="/", stdout=subprocess.PIPE)
    names = {line.partition(b"=")[0].decode() for line in child.communicate()[0].splitlines()}
    assert names - {"LD_LIBRARY_PATH", "LC_CTYPE"} == {"OTHER", "PATH", MARK}
    children.end(child.pid)


def test_a_child_has_the_signals_of_any_program(children: Children) -> None:
    child = children.start(
        ["cat", "/proc/self/status"], env=os.environ, cwd="/", stdout=subprocess.PIPE
    )
    status = dict(line.split(":", 1) for line in child.communicate()[0].decode().splitlines())
    children.end(child.pid)
    ignored = int(status["SigIgn"], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1))


@pytest.mark.parametrize(
    ("command", "error"),
    [("no-such-program", FileNotFoundError), ("/etc/passwd", PermissionError)],
)
def test_a_program_that_cannot_begin_raises_as_anywhere(
    folder: Path, children: Children, command: str, error: type[OSError]
) -> None:
    with pytest.raises(error) as raised:
        children.start([command], env=os.environ, cwd="/")
    assert raised.value.filename == command
    with pytest.raises(error):
        asyncio.run(a_turn(children, [command]))
    assert records(folder) == []


def test_what_cannot_be_recorded_does_not_begin(folder: Path, tmp_path: Path) -> None:
    folder.write_text("no folder")
    with pytest.raises(StorageFailed, match="not started"):
        Children(folder, SystemClock()).start(
            ["touch", f"{tmp_path}/acted"], env=os.environ, cwd="/"
        )
    assert not (tmp_path / "acted").exists()


def test_an_interpreter_that_ends_at_once_is_told(
    folder: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(InternalError, match="before its program"):
        children.start(["sleep", "1000"], env=os.environ, cwd="/")
    assert records(folder) == []


async def a_turn(children: Children, command: list[str]) -> bytes:
    pipe = asyncio.subprocess.PIPE
    child = await children.open(command, env=os.environ, cwd="/", stdin=pipe, stdout=pipe)
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"a line\n")
        return await child.stdout.readline()
    finally:
        children.end(child.pid)
        await child.wait()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_on_a_loop_it_is_the_same(
    folder: Path, children: Children, run: Callable[..., bytes]
) -> None:
    assert run(a_turn(children, ["cat"])) == b"a line\n"
    assert records(folder) == []


@pytest.mark.req("A-9")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_child_holds_nothing_open_but_its_streams(
    children: Children, run: Callable[..., bytes]
) -> None:
    """Else whatever it starts would keep its output open beyond its end."""
    assert run(a_turn(children, [sys.executable, "-c", _OPEN])) == b"[0, 1, 2]\n"


_OPEN = """
import os
found = []
for number in range(256):
    try:
        os.fstat(number)
    except OSError:
        continue
    found.append(number)
print(found)
"""
