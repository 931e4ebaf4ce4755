"""The other verbs: status, task, cancel, events, approvals, policy, skill, serve; and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from roof_support import DEADLINE_MS, World, script_file, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A1 = {
    "decisionId", "at", "subject", "action", "resource", "context", "effect", "ruleId", "reason",
    "policyVersion", "obligations",
}  # fmt: skip
TASK = {
    "taskId", "sessionId", "runId", "state", "reason", "attempt", "failures", "crashes",
    "maxAttempts", "priority", "leaseOwner", "leaseExpiresInMs", "availableAt", "createdAt",
    "updatedAt", "result", "error",
}  # fmt: skip
STATUS = {
    "ready", "version", "native", "bootId", "lanes", "tasks", "sessions", "connections",
    "policyVersion", "stopped", "synchronous", "databaseBytes", "fairness",
}  # fmt: skip


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        (made.cwd / "file.txt").write_text("one two\n")
        yield made


# -- serve and status ----------------------------------------------------------------------------


@pytest.mark.req("U-1", "R-3")
def test_serve_says_one_line_and_stops_on_a_signal(place: World) -> None:
    child = place.serve("--lanes", "3", "--listen", "127.0.0.1:0")
    (status,) = place.lines("status")
    assert set(status) >= STATUS
    assert status["ready"] is True
    assert status["lanes"] == {"size": 3, "busy": 0}
    assert status["connections"] == 1
    record = json.loads(place.home.daemon_json.read_text())
    assert set(record) == {"pid", "bootId", "daemonId", "version", "ws", "socket"}
    assert record["pid"] == child.pid
    shown = place.goclaw("status").stdout
    assert "0 of 3 busy" in shown
    child.send_signal(signal.SIGTERM)
    assert child.wait(DEADLINE_MS / 1000) == 0
    assert child.stdout is not None
    assert child.stdout.read() == ""
    assert not place.home.daemon_json.exists()


@pytest.mark.req("U-1")
def test_status_without_a_daemon_is_exit_1(place: World) -> None:
    assert place.lines("status", code=1) == [{"ready": False}]
    done = place.goclaw("status", code=1)
    assert "goclaw serve" in done.stdout
    assert not place.home.root.exists()


@pytest.mark.req("S-10")
def test_a_second_daemon_is_refused(place: World) -> None:
    first = place.serve()
    done = place.goclaw("serve", code=4)
    assert f"process {first.pid}" in done.stderr


@pytest.mark.req("U-3")
def test_an_idle_daemon_ends_itself(place: World) -> None:
    place.serve("--idle-exit", GOCLAW_DAEMON_IDLE_EXIT_S="1")
    assert place.children[-1].wait(DEADLINE_MS / 1000) == 0


# -- tasks and events ----------------------------------------------------------------------------


@pytest.mark.req("U-1", "Q-2")
@pytest.mark.parametrize("served", [False, True])
def test_tasks_and_events_can_be_read_afterwards(place: World, served: bool) -> None:
    result = place.lines("run", "/word-count file.txt")[-1]
    if served:
        place.serve()
    (task,) = place.lines("task", "list")
    assert set(task) >= TASK
    assert (task["state"], task["runId"]) == ("SUCCEEDED", result["runId"])
    assert place.lines("task", "show", task["taskId"]) == [task]
    assert place.lines("task", "list", "--state", "queued") == []
    assert task["taskId"] in place.goclaw("task", "list").stdout
    assert "SUCCEEDED" in place.goclaw("task", "show", task["taskId"]).stdout
    events = place.lines("events", result["sessionId"])
    assert [event["eventId"] for event in events] == list(range(1, len(events) + 1))
    assert place.lines("events", result["sessionId"], "--from", "3") == events[3:]
    assert len(place.goclaw("events", result["sessionId"]).stdout.splitlines()) == len(events)
    assert [one["type"] for one in place.lines("events", "_system")] == ["policy.activated"]


@pytest.mark.req("U-6", "W-4")
def test_events_are_followed_over_a_restart(place: World) -> None:
    place.serve()
    session = place.lines("run", "hello")[-1]["sessionId"]
    child = place.popen("events", session, "--follow", "--json")
    assert child.stdout is not None
    seen = [json.loads(child.stdout.readline())["eventId"]]
    place.end(signal.SIGKILL)
    served = place.popen("serve", stderr=subprocess.DEVNULL)
    assert served.stdout is not None
    line = served.stdout.readline()
    # The follower may have brought a daemon back first; then the home is in use.
    assert line.startswith("goclaw ready on ") or served.wait(timeout=30) == 4
    place.goclaw("run", "again", "--session", session)
    head = len(place.lines("events", session))
    while seen[-1] < head:
        seen.append(json.loads(child.stdout.readline())["eventId"])
    assert seen == list(range(1, head + 1))


@pytest.mark.req("Q-11")
@pytest.mark.parametrize("by", ["task", "run"])
def test_cancel_answers_with_a_receipt(place: World, by: str) -> None:
    (ids,) = place.lines("run", "/sleep 600", "--detach")
    (task,) = place.lines("task", "list")
    words = ("task", "cancel", task["taskId"]) if by == "task" else ("cancel", ids["runId"])
    (receipt,) = place.lines(*words)
    assert receipt["outcome"] in ("stopped", "stopping")
    assert place.lines(*words) == [{"outcome": "already_finished", "effectsDone": []}]
    assert "already finished" in place.goclaw(*words).stdout
    assert place.lines("task", "list")[0]["state"] == "CANCELED"


@pytest.mark.req("A-7")
def test_open_questions_are_listed(place: World) -> None:
    brain = script_file(place.cwd, [{"ask": "Really?"}])
    place.goclaw("run", "go", "--brain", brain, code=12)
    (waiting,) = place.lines("approvals", "list")
    assert waiting["request"]["toolCall"]["title"] == "Really?"
    shown = place.goclaw("approvals", "list").stdout
    assert "Really?" in shown
    assert "allow" in shown
    assert place.lines("approvals", "list", "--session", waiting["sessionId"]) == [waiting]


# -- policy and skills ---------------------------------------------------------------------------


@pytest.mark.req("A-1", "A-3")
def test_policy_is_explained_without_a_daemon(place: World) -> None:
    place.goclaw("run", "hello")
    done = place.goclaw("policy", "check")
    assert "rules, version" in done.stdout
    (decision,) = place.lines("policy", "explain", "run/direct", "fs.read", "file.txt")
    assert set(decision) == A1
    assert decision["effect"] == "allow"
    assert decision["resource"] == str((place.cwd / "file.txt").resolve())
    (denied,) = place.lines("policy", "explain", "run", "fs.read", str(place.home.config))
    assert (denied["effect"], denied["ruleId"]) == ("deny", "never-goclaws-own-files")
    shown = place.goclaw("policy", "explain", "run", "net.connect", "https://example.com/").stdout
    assert shown.startswith("ask: ")
    rules = place.lines("policy", "show")
    assert {"id", "effect", "actions", "reason", "line", "policyVersion"} == set(rules[0])
    assert rules[0]["policyVersion"] == decision["policyVersion"]
    assert "never-goclaws-own-files" in place.goclaw("policy", "show").stdout


@pytest.mark.req("A-3")
def test_a_refused_policy_names_its_lines(place: World) -> None:
    file = place.cwd / "p.toml"
    file.write_text('version = 1\n[[rule]]\nid = "a"\neffect = "alow"\nactions = ["fs.reed"]\n')
    done = place.goclaw("policy", "check", str(file), code=3)
    assert "p.toml line 4: unknown effect 'alow'" in done.stderr
    assert "p.toml line 5: unknown action 'fs.reed'" in done.stderr
    place.goclaw("policy", "check", "nothing.toml", code=3)


@pytest.mark.req("K-1")
def test_skills_are_listed_without_a_daemon(place: World) -> None:
    broken = place.home.skills / "broken"
    broken.mkdir(parents=True)
    (broken / "skill.toml").write_text("nonsense")
    skills = place.lines("skill", "list")
    assert [skill["name"] for skill in skills] == ["json-query", "sha256", "word-count"]
    assert all(skill["sandbox"] == "wasm" for skill in skills)
    done = place.goclaw("skill", "list")
    assert "word-count" in done.stdout
    assert str(broken) in done.stderr


@pytest.mark.req("A-7", "U-2")
@pytest.mark.parametrize("served", [False, True])
def test_an_answer_that_nobody_carries_out_says_so(place: World, served: bool) -> None:
    brain = script_file(place.cwd, [{"ask": "Now?"}])
    if served:
        place.serve()
    place.goclaw("run", "go", "--brain", brain, code=12)
    (question,) = place.lines("approvals", "list")
    done = place.goclaw("approvals", "answer", question["approvalId"], "allow")
    assert done.stdout == "answered: allow\n"
    assert ("No daemon is running" in done.stderr) is not served


@pytest.mark.req("A-1", "A-4")
@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("net.connect", "http://[::"),
        ("net.connect", "http://a:99999/"),
        ("net.connect", "1.2.3.4.5"),
        ("net.connect", ""),
        ("exec.run", "http://[::"),
        ("fs.read", ""),
        ("tool.call", ""),
        ("tool.call", "x" * 3000),
    ],
)
def test_what_is_malformed_is_explained_as_a_denial(
    place: World, action: str, resource: str
) -> None:
    """As any other denial: the question was answered."""
    (decision,) = place.lines("policy", "explain", "run", action, resource)
    assert (decision["effect"], decision["ruleId"]) == ("deny", "(malformed)")
    assert decision["reason"].startswith("malformed request: ")
    done = place.goclaw("policy", "explain", "run", action, resource)
    assert done.stdout.startswith("deny: malformed request: ")
    (decision,) = place.lines("policy", "explain", "run", "net.connect", "http://10.0.0.1/")
    assert decision["effect"] == "deny"


# -- bad input -----------------------------------------------------------------------------------


@pytest.mark.req("U-1")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["frob"], 2, "invalid choice: 'frob'"),
        (["run"], 2, "required: PROMPT"),
        (["events", "s", "--from", "-1"], 2, "no event id"),
        (["events", "s", "--from", "x"], 2, "no event id"),
        (["events", "_system", "--from", "999"], 1, "beyond the last event, "),
        (["task", "list", "--state", "LOST"], 2, "There is no state LOST"),
        (["task", "show", "task_nothing"], 1, "no task task_nothing. `goclaw task list`"),
        (["cancel", "run_nothing"], 1, "no run run_nothing. `goclaw task list --json`"),
        (["events", "nowhere"], 1, "Session not found. `goclaw task list`"),
        (
            ["approvals", "answer", "nothing", "allow"],
            1,
            "no approval nothing. `goclaw approvals list`",
        ),
        (["serve", "--lanes", "many"], 2, "a whole number"),
        (["serve", "--listen", "0.0.0.0:1"], 3, "other machines could connect"),
        (["serve", "--stat"], 2, "Unrecognized arguments: --stat"),
        (["policy", "explain", "x", "fs.read", "y"], 2, "no subject"),
        (["policy", "explain", "run", "fs.reed", "y"], 2, "no action 'fs.reed'"),
        (
            ["run", "x", "--brain", "gpt"],
            1,
            "no brain 'gpt'. There are direct, script:FILE and acp:COMMAND;",
        ),
        (["serve", "--brain", "gpt"], 3, "brain.default is refused: There is no brain 'gpt'."),
        (["run", "x", "--key", ""], 2, "--key takes 1 to 128"),
    ],
)
def test_bad_input_is_one_sentence(place: World, words: list[str], code: int, said: str) -> None:
    done = place.goclaw(*words, code=code)
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if "first start" not in line]) == 1


@pytest.mark.req("U-1")
def test_a_refused_config_is_exit_3_and_names_the_key(place: World) -> None:
    done = place.goclaw("serve", code=3, GOCLAW_QUEUE_LANES="0")
    assert "GOCLAW_QUEUE_LANES" in done.stderr
    done = place.goclaw("run", "x", code=3, GOCLAW_QUEUE_LANES="0")
    assert "GOCLAW_QUEUE_LANES" in done.stderr


@pytest.mark.req("U-1", "B-2")
def test_a_brain_that_there_is_not_is_refused_before_anything_is_made(place: World) -> None:
    for words in (("serve",), ("run", "x")):
        place.goclaw(*words, code=3, GOCLAW_BRAIN_DEFAULT="gpt")
        assert not place.home.root.exists()
    place.goclaw("run", "hello")
    place.home.config.write_text('[brain]\ndefault = "gpt"\n')
    for command in (("serve",), ("run", "x"), ("run", "x", "--detach")):
        told = place.goclaw(*command, code=3).stderr
        assert "brain.default is refused: There is no brain 'gpt'." in told
        assert "There are direct, script:FILE and acp:COMMAND;" in told
    place.home.config.unlink()
    place.goclaw("run", "x", "--brain", "scripts:x", code=1)
    assert len(place.lines("task", "list")) == 1


@pytest.mark.req("S-3")
def test_a_damaged_database_is_exit_5_and_untouched(place: World) -> None:
    place.goclaw("run", "hello")
    (file,) = place.home.root.glob("*.db")
    for rest in place.home.root.glob("*.db-*"):
        rest.unlink()
    file.write_bytes(b"nonsense" * 1000)
    for words in (("serve",), ("run", "x"), ("task", "list")):
        done = place.goclaw(*words, code=5)
        assert str(file) in done.stderr
    assert file.read_bytes() == b"nonsense" * 1000


def test_a_reader_that_has_enough_ends_it_quietly(place: World) -> None:
    place.goclaw("run", "hello")
    read, write = os.pipe()
    child = place.popen("run", "hello", "--json", stdout=write)
    os.close(write)
    os.close(read)
    assert child.stderr is not None
    said = child.stderr.read()
    assert child.wait(DEADLINE_MS / 1000) == 1
    assert said == ""


def test_a_fault_of_ours_is_one_line_and_a_log(
    place: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from goclaw import cli

    place.home.logs.mkdir(parents=True)
    monkeypatch.setenv("GOCLAW_HOME", str(place.home.root))
    monkeypatch.setattr("goclaw.cli.status.status", lambda _: 1 // 0)
    assert cli.main(["status"]) == 70
    path = place.home.logs / "cli.log"
    assert "ZeroDivisionError" in path.read_text()
    assert str(path) in capsys.readouterr().err
    path.unlink()
    os.mkfifo(path)  # nobody reads it
    assert cli.main(["status"]) == 70
    assert "Set GOCLAW_HOME" in capsys.readouterr().err


def test_ctrl_c_ends_a_verb_that_waits(place: World) -> None:
    session = place.lines("run", "hello")[-1]["sessionId"]
    child = place.popen("events", session, "--follow", "--json", start_new_session=True)
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE_MS / 1000) == 130
    assert child.stderr is not None
    assert child.stderr.read() == ""
