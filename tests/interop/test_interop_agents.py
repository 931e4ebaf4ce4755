"""The acp brain drives agents that others wrote, and goclaw itself: the SDKs' own examples, as they
are published, with a client of an SDK at the other end.

Owns who is asked, what is killed, and what must be seen. The suite takes a case of each kind;
GOCLAW_AGENTS=all takes all, the Python SDK's published source among them. Not in here: agents that
do as a test wants (``test_brain_agents.py``).
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from interop_daemon import GOCLAW, WAIT_MS, Daemon
from interop_partner import EXAMPLE, RpcError

from goclaw.policy import default

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interop_partner import Connection, Partner
    from interop_schema import Judge

ALL = os.environ.get("GOCLAW_AGENTS") == "all"
POLICY = """
[[rule]]
id = "agents"
effect = "allow"
actions = ["brain.call"]
resources = [{ exact = "acp" }]

[[rule]]
id = "agents-programs"
effect = "allow"
actions = ["exec.run"]
subjects = [{ kind = "daemon", id = "acp" }]
"""
DENIED = """
[[rule]]
id = "no-edits"
effect = "deny"
actions = ["tool.call"]
resources = [{ exact = "acp/acp/edit" }]
"""
ASKS = 'effect = "ask"\nactions = ["exec.run"]\nsubjects = [{ kind = "run" }]'
RUNS = default.TEXT.replace(ASKS, ASKS.replace("ask", "allow")).replace(
    'obligations = ["confine"]\n', ""
)
# The example waits whole seconds where a model would think.
QUICK = "data:text/javascript,const t=setTimeout;globalThis.setTimeout=(f,ms)=>t(f,ms/50)"
INNER: list[dict[str, Any]] = [
    {"match": "cut off", "steps": [{"say": "I looked, and went on."}]},
    {"match": "^ask", "steps": [{"ask": "May I?"}, {"say": "Thank you."}]},
    {
        "match": "^wait",
        "steps": [
            {"call": "exec", "args": {"command": ["sh", "-c", "echo once >> made.txt"]}},
            {"say": "waiting"},
            {"sleepMs": 60_000},
        ],
    },
]


class Talk:
    """A client of an SDK with one session on an outer goclaw, whose brain is an agent."""

    def __init__(self, connection: Connection, outer: Daemon, cwd: Path) -> None:
        self.connection, self.outer = connection, outer
        connection.call("initialize", protocolVersion=1, clientCapabilities={})
        made = connection.call("session/new", cwd=str(cwd), mcpServers=[])
        self.session = str(made["sessionId"])

    def prompt(self, text: str) -> int:
        blocks = [{"type": "text", "text": text}]
        return self.connection.send("session/prompt", sessionId=self.session, prompt=blocks)

    def turn(self, text: str) -> str:
        return str(self.connection.reply(self.prompt(text))["stopReason"])

    @property
    def updates(self) -> list[dict[str, Any]]:
        return [params["update"] for params in self.connection.notes(self.session)]

    def said(self, kind: str = "agent_message_chunk") -> str:
        return "".join(u["content"]["text"] for u in self.updates if u["sessionUpdate"] == kind)

    def until(self, text: str) -> None:
        self.connection.wait(lambda _: text in self.said())

    def answer(self, number: int, kind: str) -> dict[str, Any]:
        """Answer its question with the option of that kind; what was asked."""
        asked: dict[str, Any] = self.connection.ask(number)["params"]
        (option,) = [one["optionId"] for one in asked["options"] if one["kind"] == kind]
        outcome = {"outcome": "selected", "optionId": option}
        self.connection.answer(number, {"outcome": outcome})
        return asked

    def cancel(self) -> None:
        self.connection.notify("session/cancel", sessionId=self.session)

    def events(self) -> list[dict[str, Any]]:
        listed = self.outer.goclaw("events", self.session, "--json")
        assert listed.returncode == 0, listed.stderr
        return [json.loads(line) for line in listed.stdout.splitlines()]


@pytest.fixture
def talk(
    request: pytest.FixtureRequest, home: Path, tmp_path: Path, judge: Judge
) -> Iterator[Callable[..., Talk]]:
    """Opens a client of one SDK on an outer goclaw; at the end every message is judged."""
    opened: list[tuple[Connection, Daemon]] = []

    def open_one(sdk: str, command: list[str], policy: str = "") -> Talk:
        outer = Daemon(home / "outer", f"acp:{shlex.join(command)}")
        outer.home.mkdir(mode=0o700)
        (outer.home / "policy.toml").write_text(default.TEXT + POLICY + policy)
        partner: Partner = request.getfixturevalue(sdk)
        connection = partner.open(tmp_path / "tape", command=outer.bridge, env=outer.env)
        opened.append((connection, outer))
        (home / "work").mkdir()
        return Talk(connection, outer, home / "work")

    yield open_one
    for connection, outer in opened:
        assert judge.findings(connection.end()) == []
        outer.stop(hurry=True)


@pytest.fixture
def script_agent(node_modules: Path) -> list[str]:
    return ["node", "--import", QUICK, str(node_modules / EXAMPLE)]


@pytest.fixture
def inner(home: Path) -> Iterator[Daemon]:
    """A goclaw of its own, to be the agent of another."""
    script = home / "inner.json"
    script.write_text(json.dumps(INNER))
    daemon = Daemon(home / "inner", f"script:{script}")
    yield daemon
    daemon.stop(hurry=True)


def agent_of(inner: Daemon) -> list[str]:
    """The command that makes it an agent; an agent is not told of GOCLAW_HOME."""
    return [*GOCLAW, "acp", "--home", str(inner.home), *inner.bridge[len(GOCLAW) + 1 :]]


def end_agent(outer: Daemon, word: str) -> None:
    """Kill the agent of ``outer`` as a crash would, and wait until it is gone."""
    pid = outer.record["pid"]
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = {int(one) for at in threads for one in (at / "children").read_text().split()}
    (agent,) = [one for one in children if word in Path(f"/proc/{one}/cmdline").read_text()]
    watch = os.pidfd_open(agent)
    try:
        signal.pidfd_send_signal(watch, signal.SIGKILL)
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        assert poll.poll(WAIT_MS)
    finally:
        os.close(watch)


def names(events: list[dict[str, Any]], kind: str) -> list[str]:
    return [event["name"] for event in events if event["type"] == kind]


@pytest.mark.req("B-2", "W-1")
@pytest.mark.skipif(not ALL, reason="its source is fetched: .ci/soak does")
def test_the_python_sdks_example_is_heard(talk: Callable[..., Talk], tmp_path: Path) -> None:
    """Its published source: prompts, one after the other, in one process."""
    release = version("agent-client-protocol")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
         "--dest", str(tmp_path), f"agent-client-protocol=={release}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"agent_client_protocol-{release}.tar.gz") as source:
        source.extractall(tmp_path, filter="data")
    (example,) = tmp_path.glob("*/examples/agent.py")
    outer = talk("typescript", [sys.executable, str(example)])
    assert outer.turn("hello there") == "end_turn"
    assert outer.said() == "Client sent:hello there"
    assert outer.turn("again") == "end_turn"
    assert outer.said().endswith("Client sent:again")


@pytest.mark.req("B-2", "A-7")
@pytest.mark.parametrize(
    ("kind", "end"),
    [("allow_once", "Perfect!"), ("reject_once", "I'll skip the configuration")][: 1 + ALL],
)
def test_the_typescript_sdks_example_asks_a_person(
    talk: Callable[..., Talk], script_agent: list[str], kind: str, end: str
) -> None:
    outer = talk("python", script_agent)
    turn = outer.prompt("change it")
    asked = outer.answer(1, kind)
    assert asked["toolCall"]["title"] == "Modifying critical configuration file"
    assert outer.connection.reply(turn)["stopReason"] == "end_turn"
    assert outer.said().startswith("I'll help you with that.")
    assert end in outer.said()
    calls = [u for u in outer.updates if u["sessionUpdate"].startswith("tool_call")]
    assert {u["toolCallId"].rpartition(":")[2] for u in calls} == {"call_1", "call_2"}


@pytest.mark.req("A-1", "A-4")
def test_a_rule_answers_the_example_and_nobody_is_asked(
    talk: Callable[..., Talk], script_agent: list[str]
) -> None:
    outer = talk("typescript", script_agent, DENIED)
    assert outer.turn("change it") == "end_turn"
    assert "I'll skip the configuration" in outer.said()
    assert "ask" not in [event["event"] for event in outer.connection.events]


@pytest.mark.req("Q-11")
def test_the_example_is_cancelled_and_asked_again(
    talk: Callable[..., Talk], script_agent: list[str]
) -> None:
    """At its question, and while it thinks; the same process answers the next turn."""
    outer = talk("python", script_agent)
    turn = outer.prompt("change it")
    outer.connection.ask(1)
    outer.cancel()
    assert outer.connection.reply(turn)["stopReason"] == "cancelled"
    again = outer.prompt("once more")
    outer.answer(2, "allow_once")
    assert outer.connection.reply(again)["stopReason"] == "end_turn"
    assert outer.said().count("Perfect!") == 1
    opened = [e for e in outer.events() if "agentSession" in json.dumps(e)]
    assert len({json.dumps(e).split('"agentSession": "')[1][:32] for e in opened}) == 1


@pytest.mark.req("E-3")
@pytest.mark.parametrize("who", ["agent", "daemon"][: 1 + ALL])
def test_a_crash_leaves_the_examples_turn_unknown(
    talk: Callable[..., Talk], node_modules: Path, who: str
) -> None:
    """It cannot take a session up again: its prompt is not sent a second time, and that is said."""
    outer = talk("typescript", ["node", str(node_modules / EXAMPLE)])
    turn = outer.prompt("change it")
    outer.until("I'll help you")
    if who == "agent":
        end_agent(outer.outer, "agent.js")
    else:
        outer.outer.kill()
    with pytest.raises(RpcError, match="nobody knows what it did"):
        outer.connection.reply(turn)
    events = outer.events()
    assert names(events, "effect.unknown") == ["acp"]
    # one prompt was sent: a second one would have begun with the same words
    assert outer.said().count("I'll help you") == 1


@pytest.mark.req("B-2", "A-7", "Q-11")
def test_goclaw_is_the_agent_of_goclaw(talk: Callable[..., Talk], inner: Daemon) -> None:
    """Prompt, permission and cancel, through two daemons."""
    outer = talk("python", agent_of(inner))
    assert outer.turn("hello") == "end_turn"
    assert "hello" in outer.said()
    turn = outer.prompt("ask me")
    asked = outer.answer(1, "allow_once")
    assert asked["toolCall"]["title"] == "May I?"
    assert outer.connection.reply(turn)["stopReason"] == "end_turn"
    assert outer.said().endswith("Thank you.")
    turn = outer.prompt("wait")
    assert outer.answer(2, "allow_once")["toolCall"]["kind"] == "execute"
    outer.until("waiting")
    outer.cancel()
    assert outer.connection.reply(turn)["stopReason"] == "cancelled"
    assert states(inner) == ["CANCELED", "SUCCEEDED", "SUCCEEDED"]
    assert outer.turn("hello again") == "end_turn"


@pytest.mark.req("E-3", "B-2", "Q-6")
@pytest.mark.parametrize("who", ["daemon", "agent"][: 1 + ALL])
def test_goclaw_as_an_agent_is_taken_up_again(
    talk: Callable[..., Talk], inner: Daemon, home: Path, who: str
) -> None:
    """The bridge or the outer daemon is killed in a turn: the inner session is loaded, told to
    look, and goes on; its tool was called once."""
    inner.home.mkdir(mode=0o700)
    (inner.home / "config.toml").write_text('[acp]\non_disconnect = "cancel"\n')
    (inner.home / "policy.toml").write_text(RUNS)
    outer = talk("typescript", agent_of(inner))
    turn = outer.prompt("wait")
    outer.until("waiting")
    if who == "agent":
        end_agent(outer.outer, str(inner.home))
    else:
        outer.outer.kill()
    assert outer.connection.reply(turn)["stopReason"] == "end_turn"
    assert outer.said().endswith("I looked, and went on.")
    assert states(inner) == ["CANCELED", "SUCCEEDED"]
    assert names(outer.events(), "effect.unknown") == ["acp"]
    assert (home / "work" / "made.txt").read_text() == "once\n"


def states(daemon: Daemon) -> list[str]:
    listed = daemon.goclaw("task", "list", "--json")
    return sorted(json.loads(line)["state"] for line in listed.stdout.splitlines())
