"""`goclaw run`: with a daemon, without one, two at once, in pipes, waiting, cancelled, killed."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import DEADLINE_MS, GOCLAW, World, read_until, script_file, world

from goclaw.cli.place import Place

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEXT = b"one two\nthree\n"


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        (made.cwd / "file.txt").write_bytes(TEXT)
        yield made


def counted(place: World, name: str) -> dict[str, int]:
    done = subprocess.run(["wc", "-lc", name], cwd=place.cwd, capture_output=True, check=True)
    lines, size, _ = done.stdout.split(maxsplit=2)
    return {"lines": int(lines), "bytes": int(size)}


# -- the main job --------------------------------------------------------------------------------


@pytest.mark.req("U-2", "B-2", "K-2")
@pytest.mark.parametrize("served", [False, True])
def test_word_count_equals_wc(place: World, served: bool) -> None:
    if served:
        place.serve()
    files = {
        "empty": b"",
        "binary": bytes(range(256)) * 100,
        "latin 1": "café\n".encode("latin-1"),
        "-dash": b"a\nb",
        "big": b"word and another\n" * 500_000,
    }
    for name, content in list(files.items())[: None if served else 3]:
        (place.cwd / name).write_bytes(content)
        done = place.goclaw("run", f"/word-count {name}")
        found = json.loads(done.stdout)
        assert {key: found[key] for key in ("lines", "bytes")} == counted(place, f"./{name}"), name


@pytest.mark.req("U-5")
def test_the_first_run_says_what_it_made(place: World) -> None:
    first = place.goclaw("run", "/word-count file.txt")
    assert "first start: made" in first.stderr
    assert "the default policy" in first.stderr
    assert json.loads(first.stdout)["words"] == 3
    assert place.home.root.stat().st_mode & 0o777 == 0o700
    assert place.goclaw("run", "/word-count file.txt").stderr == ""


@pytest.mark.req("U-2", "O-1")
def test_json_prints_events_and_then_the_result(place: World) -> None:
    *events, result = place.lines("run", "/word-count file.txt")
    assert [event["eventId"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "run.accepted"
    assert events[-1]["type"] == "run.ended"
    assert {"update"} < {event["type"] for event in events}
    assert all(event["at"].endswith("Z") and event["runId"] == result["runId"] for event in events)
    assert len({event["traceId"] for event in events}) == 1
    assert list(result) == [
        "type", "sessionId", "runId", "state", "stopReason", "text", "tools", "error",
    ]  # fmt: skip
    assert (result["type"], result["state"]) == ("result", "SUCCEEDED")
    assert (result["stopReason"], result["error"]) == ("end_turn", None)
    output = {"lines": 2, "words": 3, "bytes": len(TEXT)}
    assert result["tools"] == [{"name": "word-count", "status": "completed", "output": output}]
    assert json.loads(result["text"]) == output


@pytest.mark.req("U-2")
def test_it_leaves_no_daemon_behind(place: World) -> None:
    place.goclaw("run", "hello")
    assert place.lines("status", code=1) == [{"ready": False}]
    assert place.pid() is None


@pytest.mark.req("U-2", "S-10")
def test_two_at_once_share_a_home(place: World) -> None:
    children = [place.popen("run", "/word-count file.txt") for _ in range(4)]
    for child in children:
        out, err = child.communicate(timeout=DEADLINE_MS / 1000)
        assert child.returncode == 0, err
        assert json.loads(out)["bytes"] == len(TEXT)
    assert len(place.lines("task", "list")) == 4


# -- sessions and keys ---------------------------------------------------------------------------


@pytest.mark.req("E-6", "W-6")
def test_the_same_key_is_the_same_run_and_another_prompt_under_it_is_none(place: World) -> None:
    first = place.lines("run", "/word-count file.txt", "--key", "k")[-1]
    second = place.lines("run", "/word-count file.txt", "--key", "k")[-1]
    assert second == first
    assert len(place.lines("task", "list")) == 1
    refused = place.goclaw("run", "something else", "--key", "k", code=1)
    assert "used before" in refused.stderr
    assert "Use a new key" in refused.stderr


def test_a_session_goes_on(place: World) -> None:
    first = place.lines("run", "hello")[-1]
    second = place.lines("run", "/word-count file.txt", "--session", first["sessionId"])[-1]
    assert second["sessionId"] == first["sessionId"]
    assert second["runId"] != first["runId"]
    assert place.goclaw("run", "x", "--session", "nowhere", code=1).stderr.startswith(
        "goclaw: Session not found."
    )
    both = ("run", "x", "--session", first["sessionId"], "--brain", "direct")
    assert "keeps its brain" in place.goclaw(*both, code=2).stderr


@pytest.mark.req("U-2")
def test_detached_it_prints_the_ids_and_goes_on(place: World) -> None:
    (ids,) = place.lines("run", "/word-count file.txt", "--detach")
    again = place.lines("run", "/word-count file.txt", "--session", ids["sessionId"])[-1]
    assert again["state"] == "SUCCEEDED"
    tasks = place.lines("task", "list", "--session", ids["sessionId"])
    assert [task["runId"] for task in tasks] == [again["runId"], ids["runId"]]
    assert tasks[1]["state"] == "SUCCEEDED"


# -- how it ends ---------------------------------------------------------------------------------


@pytest.mark.req("U-1")
@pytest.mark.parametrize(
    ("steps", "code", "said"),
    [
        ([{"fail": "broken", "retryable": False}], 1, "broken"),
        ([{"call": "no-such-tool", "args": {}}], 1, "no tool"),
    ],
)
def test_a_failed_run_is_exit_1(
    place: World, steps: list[dict[str, Any]], code: int, said: str
) -> None:
    brain = script_file(place.cwd, steps, match="/go")
    done = place.goclaw("run", "/go", "--brain", brain, code=code)
    assert said in done.stderr
    result = place.lines("run", "/go", "--brain", brain, code=code)[-1]
    assert result["error"]["code"]


def test_a_file_that_is_not_there_is_a_sentence_and_exit_1(place: World) -> None:
    done = place.goclaw("run", "/word-count nothing.txt", code=1)
    assert done.stdout == ""
    assert "nothing.txt cannot be read: No such file or directory." in done.stderr
    result = place.lines("run", "/word-count nothing.txt", code=1)[-1]
    assert result["error"]["code"] == "file_unreadable"


@pytest.mark.req("B-2", "U-1")
@pytest.mark.parametrize("served", [False, True])
@pytest.mark.parametrize(
    ("prompt", "code", "said"),
    [
        ("/typo file.txt", "unknown_command", "There is no command /typo."),
        ("/word-count", "invalid_params", "/word-count needs its file. Write /word-count FILE."),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_exit_1(
    place: World, prompt: str, code: str, said: str, served: bool
) -> None:
    if served:
        place.serve()
    done = place.goclaw("run", prompt, code=1)
    assert done.stdout.startswith(said)
    assert ("/sha256 FILE" in done.stdout) == (code == "unknown_command")
    assert f"goclaw: {said}\n" in done.stderr
    result = place.lines("run", prompt, code=1)[-1]
    assert (result["state"], result["stopReason"]) == ("SUCCEEDED", "refusal")
    assert result["error"] == {"code": code, "message": said}
    again = place.lines("run", prompt, "--key", "k", code=1)[-1]
    assert place.lines("run", prompt, "--key", "k", code=1)[-1] == again


@pytest.mark.req("A-3", "I-6")
def test_what_the_policy_denies_is_exit_10(place: World) -> None:
    done = place.goclaw("run", f"/word-count {place.home.config}", code=10)
    assert "denied" in done.stderr
    result = place.lines("run", f"/word-count {place.home.config}", code=10)[-1]
    assert result["tools"][0]["status"] == "denied"


@pytest.mark.req("A-7", "W-8")
def test_a_question_with_nobody_there_is_exit_12_and_can_be_answered(place: World) -> None:
    brain = script_file(place.cwd, [{"ask": "Really?"}, {"say": "Done."}])
    done = place.goclaw("run", "go", "--brain", brain, code=12)
    assert "goclaw approvals answer approval_" in done.stderr
    place.serve()
    (waiting,) = place.lines("approvals", "list")
    session = waiting["sessionId"]
    (task,) = place.lines("task", "list", "--session", session)
    assert task["state"] == "SUSPENDED"
    place.goclaw("approvals", "answer", waiting["approvalId"], "maybe", code=1)
    place.goclaw("approvals", "answer", waiting["approvalId"], "allow")
    assert "has been answered" in place.goclaw(
        "approvals", "answer", waiting["approvalId"], "reject", code=1
    ).stderr  # fmt: skip
    place.goclaw("run", "after", "--session", session)
    (_, task) = place.lines("task", "list", "--session", session)
    assert task["state"] == "SUCCEEDED"
    result = place.lines("run", "go", "--brain", brain, code=12)[-1]
    assert (result["state"], result["error"]["code"]) == ("SUSPENDED", "waiting")


@pytest.mark.req("Q-11")
@pytest.mark.parametrize("served", [False, True])
def test_ctrl_c_cancels_the_run(place: World, served: bool) -> None:
    if served:
        place.serve()
    child = place.popen("run", "/sleep 600", "--json", start_new_session=True)
    assert child.stdout is not None
    session = read_until(child, "task.suspended")["sessionId"]
    child.send_signal(signal.SIGINT)
    result = json.loads(child.stdout.read().splitlines()[-1])
    assert child.wait(DEADLINE_MS / 1000) == 11
    assert (result["state"], result["stopReason"]) == ("CANCELED", "cancelled")
    (task,) = place.lines("task", "list", "--session", session)
    assert task["state"] == "CANCELED"


@pytest.mark.req("Q-11")
def test_a_second_ctrl_c_leaves(place: World) -> None:
    place.serve()
    child = place.popen("run", "/sleep 600", "--json", start_new_session=True)
    read_until(child, "task.suspended")
    os.kill(place.pid() or 0, signal.SIGSTOP)  # nobody answers the cancel
    try:
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        assert "once more" in child.stderr.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(DEADLINE_MS / 1000) == 130
    finally:
        os.kill(place.pid() or 0, signal.SIGCONT)


@pytest.mark.req("Q-11", "R-3")
@pytest.mark.parametrize(("at_once", "state"), [(True, "QUEUED"), (False, "SUCCEEDED")])
def test_leaving_at_once_hands_back_what_runs(
    place: World, monkeypatch: pytest.MonkeyPatch, at_once: bool, state: str
) -> None:
    monkeypatch.chdir(place.cwd)
    brain = script_file(place.cwd, [{"say": "a b c d", "chunks": 4, "delayMs": 500}])
    embedding = Place(place.home)
    with embedding as client:
        session = client.new_session(brain=brain).session_id
        prompted = client.submit("go", session=session)
        client.accepted(prompted)
        while not any(event.type == "task.running" for event in client.history(session)):
            continue
        embedding.hurry(at_once=at_once)
    (task,) = place.lines("task", "list", "--session", session)
    assert task["state"] == state


@pytest.mark.req("U-2")
def test_a_run_that_waits_for_other_clients_says_so(place: World) -> None:
    owner = place.popen("run", "/sleep 600", "--json")
    session = read_until(owner, "task.suspended")["sessionId"]
    follower = place.popen("events", session, "--follow", "--json")
    assert follower.stdout is not None
    follower.stdout.readline()
    place.goclaw("cancel", place.lines("task", "list")[0]["taskId"])
    assert owner.stderr is not None
    said = ""
    while "other programs use this daemon" not in said:
        said = owner.stderr.readline()
        assert said
    follower.send_signal(signal.SIGINT)
    assert owner.wait(DEADLINE_MS / 1000) == 11


# -- crashes -------------------------------------------------------------------------------------


@pytest.mark.req("U-2", "U-6", "I-3")
def test_a_run_goes_on_when_its_daemon_is_killed(place: World) -> None:
    """No other daemon comes: the run takes the home over and ends it there itself."""
    brain = script_file(place.cwd, [{"say": "one"}, {"sleepMs": 1500}, {"say": "two"}])
    place.serve()
    child = place.popen("run", "go", "--brain", brain, "--json")
    read_until(child, "task.suspended")
    assert place.end(signal.SIGKILL)
    assert child.stdout is not None
    *events, result = [json.loads(line) for line in child.stdout.read().splitlines()]
    assert child.wait(DEADLINE_MS / 1000) == 0
    assert result["text"] == "onetwo"
    ids = [event["eventId"] for event in events]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


@pytest.mark.req("U-2", "Q-6")
def test_a_killed_run_is_finished_by_the_next_one_on_its_session(place: World) -> None:
    child = place.popen("run", "/sleep 1", "--json")
    session = read_until(child, "task.suspended")["sessionId"]
    child.kill()
    child.wait()
    place.goclaw("run", "hello", "--session", session)
    states = [task["state"] for task in place.lines("task", "list", "--session", session)]
    assert states == ["SUCCEEDED", "SUCCEEDED"]


# -- a full disk ---------------------------------------------------------------------------------


class Disk:
    """What a process may write to files, as the kernel bounds it: nothing, or all again."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = resource.prlimit(pid, resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (0, self._before[1]))

    def make_room(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, self._before)


@pytest.mark.req("S-7", "U-2")
@pytest.mark.parametrize("served", [False, True])
def test_a_run_says_that_it_waits_for_the_disk_and_goes_on_with_it(
    place: World, served: bool
) -> None:
    place.goclaw("run", "hello")
    brain = script_file(place.cwd, [{"sleepMs": 1000}, {"say": "Done."}])
    if served:
        place.serve()
    child = place.popen("run", "go", "--brain", brain, "--json")
    session = read_until(child, "task.suspended")["sessionId"]
    disk = Disk(place.pid() or 0)
    disk.fill()
    assert child.stderr is not None
    said = child.stderr.readline()
    assert said.startswith("goclaw: Waiting: the disk takes no writes (")
    if served:
        late = place.popen("run", "hello", "--session", session)
        assert late.stderr is not None
        assert "did not reach the disk" in late.stderr.read()
        assert late.wait(DEADLINE_MS / 1000) == 70
    disk.make_room()
    out, rest = child.communicate(timeout=DEADLINE_MS / 1000)
    assert (child.returncode, rest) == (0, "")
    assert json.loads(out.splitlines()[-1])["text"] == "Done."


@pytest.mark.req("S-7", "Q-11")
@pytest.mark.parametrize("served", [False, True])
def test_ctrl_c_gives_up_waiting_for_the_disk(place: World, served: bool) -> None:
    place.goclaw("run", "hello")
    brain = script_file(place.cwd, [{"sleepMs": 1000}, {"say": "Done."}])
    if served:
        place.serve()
    child = place.popen("run", "go", "--brain", brain, "--json")
    session = read_until(child, "task.suspended")["sessionId"]
    disk = Disk(place.pid() or 0)
    disk.fill()
    assert child.stderr is not None
    assert "Waiting: the disk" in child.stderr.readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=DEADLINE_MS / 1000)
    assert child.returncode == 130
    assert err.startswith("goclaw: Leaving. The run goes ")
    assert session in err
    assert '"type":"result"' not in out
    if served:
        disk.make_room()
    place.goclaw("run", "hello", "--session", session)
    tasks = place.lines("task", "list", "--session", session)
    assert [task["state"] for task in tasks] == ["SUCCEEDED", "SUCCEEDED"]


# -- on a terminal -------------------------------------------------------------------------------


class Terminal:
    """`goclaw run` on a terminal of its own."""

    def __init__(self, place: World, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.child = subprocess.Popen(
            [*GOCLAW, *words], env=place.environ, cwd=place.cwd, stdin=slave, stdout=slave,
            stderr=slave, start_new_session=True,
        )  # fmt: skip
        place.children.append(self.child)
        os.close(slave)
        self.seen = b""

    def until(self, text: bytes) -> None:
        while text not in self.seen:
            assert select.select([self.master], [], [], DEADLINE_MS / 1000)[0], self.seen
            self.seen += os.read(self.master, 4096)

    def end(self) -> int:
        try:
            while chunk := os.read(self.master, 4096):
                self.seen += chunk
        except OSError:
            pass  # the terminal's other end is closed
        os.close(self.master)
        return self.child.wait(DEADLINE_MS / 1000)


@pytest.mark.req("U-2")
def test_a_person_sees_it_happen(place: World) -> None:
    steps: list[dict[str, Any]] = [
        {"say": "Looking at \x1b[31mit."},
        {"call": "word-count", "args": {"file": str(place.cwd / "file.txt")}},
        {"say": "Seen."},
    ]
    terminal = Terminal(place, "run", "go", "--brain", script_file(place.cwd, steps))
    assert terminal.end() == 0
    shown = terminal.seen.replace(b"\r\n", b"\n").decode()
    assert "\x1b" not in shown
    assert shown.index("Looking at") < shown.index("- word-count") < shown.index("Seen.\n")


@pytest.mark.req("U-1")
def test_a_person_reads_once_why_a_command_was_refused(place: World) -> None:
    place.goclaw("run", "hello")
    terminal = Terminal(place, "run", "/typo")
    assert terminal.end() == 1
    assert terminal.seen.count(b"There is no command /typo.") == 1
    assert b"/sha256 FILE" in terminal.seen


@pytest.mark.req("U-2", "A-7")
def test_a_person_is_asked(place: World) -> None:
    brain = script_file(place.cwd, [{"ask": "Really?"}, {"say": "Done."}])
    terminal = Terminal(place, "run", "go", "--brain", brain)
    terminal.until(b"Number: ")
    os.write(terminal.master, b"7\n")
    terminal.until(b"Number: 7\r\nNumber: ")
    os.write(terminal.master, b"1\n")
    assert terminal.end() == 0
    assert b"Really?" in terminal.seen
    assert b"Done." in terminal.seen
