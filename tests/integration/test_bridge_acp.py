"""`goclaw acp` as a process, with the real daemon: starting, ending, refusing, stalling."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import CLOCK, DEADLINE_MS, GOCLAW, Bridge, World, script_file, world

import goclaw
from goclaw.bridges import acp
from goclaw.cli import _of_the_bridge
from goclaw.cli.grammar import parse
from goclaw.core import limits
from goclaw.core.home import DaemonRecord, Home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTED_IN = {"_meta": {"goclaw": {"version": 1, "notifications": True}}}


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        yield made


# -- starting ------------------------------------------------------------------------------------


@pytest.mark.req("U-3", "W-13")
def test_it_starts_a_daemon_that_outlives_it(place: World) -> None:
    bridge = Bridge(place)
    greeting = bridge.greet()
    assert greeting["protocolVersion"] == 1
    first = place.pid()
    assert first is not None
    assert os.getpgid(first) == first != os.getpgid(bridge.process.pid)
    assert bridge.close() == 0
    again = Bridge(place)
    again.greet()
    assert place.pid() == first
    assert again.close() == 0
    assert "ready" in (place.home.logs / "serve.log").read_text()


@pytest.mark.req("U-3")
def test_two_bridges_at_once_share_one_daemon(place: World) -> None:
    bridges = [Bridge(place) for _ in range(2)]
    found = {b.greet()["agentCapabilities"]["_meta"]["goclaw"]["bootId"] for b in bridges}
    assert len(found) == 1
    for bridge in bridges:  # and the one that was not needed is gone
        children = f"/proc/{bridge.process.pid}/task/{bridge.process.pid}/children"
        with open(children) as file:
            assert set(map(int, file.read().split())) <= {place.pid()}
    assert [bridge.close() for bridge in bridges] == [0, 0]


@pytest.mark.req("U-3", "U-5")
def test_a_daemon_that_cannot_start_is_an_error_in_words(place: World) -> None:
    place.home.root.mkdir(mode=0o700)
    place.home.config.write_text("[queue]\nlane = 3\n")
    bridge = Bridge(place)
    assert bridge.process.wait(DEADLINE_MS / 1000) == 3
    assert bridge.process.stdout is not None
    assert bridge.process.stderr is not None
    assert bridge.process.stdout.read() == b""
    err = bridge.process.stderr.read()
    assert b"Did you mean lanes?" in err
    assert b"Traceback" not in err


def test_a_home_that_cannot_be_made_is_an_error_in_words(place: World) -> None:
    place.home.root.write_text("a file")
    done = place.goclaw("acp", code=3)
    assert "is not a directory" in done.stderr
    place.home.root.unlink()
    place.home.root.mkdir()
    place.home.logs.write_text("a file")
    done = place.goclaw("acp", code=3)
    assert "cannot be written" in done.stderr


# What makes a start slow: an event loop, WebSocket, native modules, the grammar of all verbs, and
# what the standard library pulls in behind dataclasses (inspect, ast) and argparse (gettext).
HEAVY = {
    "asyncio", "websockets", "orjson", "apsw", "wasmtime", "uvloop", "h11", "ssl", "http",
    "concurrent", "logging", "subprocess", "threading", "multiprocessing", "sqlite3", "ctypes",
    "tomllib", "uuid", "hashlib", "tempfile", "random", "shutil", "lzma", "bz2", "email",
    "dataclasses", "inspect", "ast", "dis", "argparse", "gettext", "locale", "traceback",
    "goclaw._fast", "goclaw._pure", "goclaw.core.config", "goclaw.core.log", "goclaw.policy",
    "goclaw.protocol.jsonrpc", "goclaw.protocol.session", "goclaw.client.aio",
    "goclaw.client.blocking", "goclaw.client.records", "goclaw.cli.grammar", "goclaw.cli.embedded",
    "goclaw.engine", "goclaw.gateway", "goclaw.store", "goclaw.daemon",
}  # fmt: skip


@pytest.mark.req("P-5", "U-3")
def test_it_imports_little(place: World) -> None:
    """A whole life on a running daemon: a greeting, a session, a turn, the end."""
    place.serve()
    code = (
        "import sys; sys.argv = ['goclaw', 'acp', *sys.argv[1:]]\n"
        "from goclaw.__main__ import run; code = run()\n"
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    child = place.popen("--brain", "direct", program=["-c", code], stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    session: dict[str, Any] = {}
    for method, params in (
        ("initialize", {"protocolVersion": 1}),
        ("session/new", {"cwd": str(place.cwd), "mcpServers": []}),
        ("session/prompt", {"prompt": [{"type": "text", "text": "hello"}]}),
    ):
        message = {"jsonrpc": "2.0", "id": method, "method": method, "params": session | params}
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()
        answer: dict[str, Any] = {}
        while answer.get("id") != method:
            answer = json.loads(child.stdout.readline())
        if method == "session/new":
            session = {"sessionId": answer["result"]["sessionId"]}
    _, loaded = child.communicate(timeout=DEADLINE_MS / 1000)
    assert child.returncode == 0
    found = set(loaded.split())
    assert "goclaw.bridges.acp" in found
    assert not HEAVY & found


@pytest.mark.req("U-1", "U-3")
@pytest.mark.parametrize(
    "words",
    [
        "", "--home x", "--brain direct", "--brain a --home b", "--home a --home b", "--home=x",
        "--home", "--home --brain", "x", "--json", "--brain -x", "--help", "--home ä", "--home x y",
    ],
)  # fmt: skip
def test_its_options_are_those_of_the_grammar(words: str) -> None:
    arguments = ["acp", *words.split()]
    found = _of_the_bridge(arguments)
    if found is not None:
        assert vars(found) == vars(parse(arguments))
    else:
        assert words not in ("", "--home x", "--brain direct", "--brain a --home b")


@pytest.mark.req("P-5", "U-3")
def test_it_starts_within_a_few_bare_starts(place: World) -> None:
    """From nothing to the first answer of a running daemon, in processor time, which a busy machine
    does not stretch: eight bare interpreters, which is 100 ms where one takes 12."""
    place.serve()
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}}
    bare: list[float] = []
    bridge: list[float] = []
    for _ in range(5):
        bare.append(processor_s([sys.executable, "-c", "pass"], place, b""))
        bridge.append(processor_s([*GOCLAW, "acp"], place, json.dumps(hello).encode() + b"\n"))
    assert min(bridge) <= 8 * min(bare), (bridge, bare)


def processor_s(command: list[str], place: World, words: bytes) -> float:
    """Of a program that reads ``words`` and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, env=place.environ, cwd=place.cwd, input=words, capture_output=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not words or b'"protocolVersion"' in done.stdout
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.req("W-13", "W-1")
def test_its_output_may_be_a_file(place: World) -> None:
    place.serve("--brain", script_file(place.cwd, [{"say": "x" * 300_000}], match="."))
    path = place.cwd / "answers"
    with path.open("wb") as file:
        process = subprocess.Popen(
            [*GOCLAW, "acp"], env=place.environ, cwd=place.cwd, stdin=subprocess.PIPE, stdout=file
        )
        place.children.append(process)
        assert process.stdin is not None

        def say(number: int, method: str, **params: Any) -> dict[str, Any]:
            message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
            assert process.stdin is not None
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            until = CLOCK.mono_ms() + DEADLINE_MS
            while CLOCK.mono_ms() < until:
                for line in path.read_bytes().split(b"\n")[:-1]:
                    found: dict[str, Any] = json.loads(line)
                    if found.get("id") == number:
                        return found
                select.select([], [], [], 0.02)
            raise AssertionError(f"no answer to {method}")

        say(1, "initialize", protocolVersion=1)
        session = say(2, "session/new", cwd=str(place.cwd), mcpServers=[])["result"]["sessionId"]
        prompt = [{"type": "text", "text": "go"}]
        answer = say(3, "session/prompt", sessionId=session, prompt=prompt)
        assert answer["result"]["stopReason"] == "end_turn"
        process.stdin.close()
        assert process.wait(DEADLINE_MS / 1000) == 0
    said = [json.loads(line) for line in path.read_bytes().splitlines()]
    updates = [m["params"]["update"] for m in said if m.get("method") == "session/update"]
    texts = [u["content"]["text"] for u in updates if u["sessionUpdate"] == "agent_message_chunk"]
    assert "".join(texts) == "x" * 300_000


# -- ending --------------------------------------------------------------------------------------


@pytest.mark.req("W-13", "U-3")
def test_at_the_end_of_input_it_leaves_and_the_turn_goes_on(place: World) -> None:
    brain = script_file(place.cwd, [{"say": "one"}, {"sleepMs": 200}, {"say": "two"}])
    bridge = Bridge(place, "--brain", brain)
    bridge.greet()
    session = bridge.session(place.cwd)
    bridge.prompt(session, "go")
    begun = CLOCK.mono_ms()
    assert bridge.close() == 0
    assert CLOCK.mono_ms() - begun < 1000 * slack()
    again = Bridge(place)
    again.greet(**OPTED_IN)
    again.call("_goclaw/session/subscribe", sessionId=session, fromEventId=0)
    again.wait(lambda m: m.get("params", {}).get("event", {}).get("type") == "run.ended")
    said = [u["content"]["text"] for u in again.updates("agent_message_chunk")]
    assert said == ["one", "two"]
    assert again.close() == 0


def slack() -> int:
    """On a busy machine a second is longer; the bound is tested by its order of magnitude."""
    return 5


@pytest.mark.req("W-13")
def test_requests_in_a_pipe_are_answered_before_it_leaves(place: World) -> None:
    place.serve()
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}},
        {"jsonrpc": "2.0", "id": 2, "method": "session/list", "params": {}},
    ]
    done = subprocess.run(
        [*GOCLAW, "acp"], env=place.environ, cwd=place.cwd, capture_output=True, text=True,
        input="".join(json.dumps(line) + "\n" for line in lines), timeout=DEADLINE_MS / 1000,
    )  # fmt: skip
    assert done.returncode == 0
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [1, 2]


@pytest.mark.req("W-9", "W-13")
def test_an_editor_that_stops_reading_ends_it(
    place: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STALL_MS_MAX", 300)
    steps = [{"say": "x" * 100_000} for _ in range(20)]
    place.serve("--brain", script_file(place.cwd, steps))
    editor = Pipes(place.home)
    editor.say({"id": 1, "method": "initialize", "params": {"protocolVersion": 1}})
    params: dict[str, Any] = {"cwd": str(place.cwd), "mcpServers": []}
    editor.say({"id": 2, "method": "session/new", "params": params})
    session = json.loads(editor.line_with(b'"id":2'))["result"]["sessionId"]
    params = {"sessionId": session, "prompt": [{"type": "text", "text": "go"}]}
    editor.say({"id": 3, "method": "session/prompt", "params": params})
    editor.thread.join(DEADLINE_MS / 1000)
    assert editor.codes == [acp.STALLED]
    editor.close()


def test_an_editor_that_is_gone_ends_it(place: World) -> None:
    place.serve()
    editor = Pipes(place.home)
    os.close(editor.reader)
    editor.say({"id": 1, "method": "initialize", "params": {"protocolVersion": 1}})
    editor.thread.join(DEADLINE_MS / 1000)
    assert editor.codes == [acp.STALLED]
    os.close(editor.writer)


class Pipes:
    """The bridge in a thread, between two pipes."""

    def __init__(self, home: Home) -> None:
        stdin, self.writer = os.pipe()
        self.reader, stdout = os.pipe()
        self.codes: list[int] = []
        self._ends = (stdin, stdout)

        def work() -> None:
            self.codes.append(acp.run(home, CLOCK, stdin=stdin, stdout=stdout))

        self.thread = threading.Thread(target=work)
        self.thread.start()

    def say(self, message: dict[str, Any]) -> None:
        os.write(self.writer, json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def line_with(self, text: bytes) -> bytes:
        found = b""
        while not any(text in line for line in found.split(b"\n")[:-1]):
            found += os.read(self.reader, 4096)
        return next(line for line in found.split(b"\n") if text in line)

    def close(self) -> None:
        for descriptor in (self.reader, self.writer, *self._ends):
            os.close(descriptor)


@pytest.mark.req("B-2", "W-10")
def test_a_command_that_there_is_not_is_refused_with_the_list_of_commands(place: World) -> None:
    bridge = Bridge(place)
    bridge.greet()
    session = bridge.session(place.cwd)
    turn = bridge.prompt(session, "/typo")
    assert bridge.answer(turn)["result"]["stopReason"] == "refusal"
    text = "".join(update["content"]["text"] for update in bridge.updates("agent_message_chunk"))
    assert text.startswith("There is no command /typo.")
    assert "/word-count FILE" in text
    assert bridge.close() == 0


# -- riding it out -------------------------------------------------------------------------------


@pytest.mark.req("U-3", "W-13", "R-3")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_idle_bridge_outlives_its_daemon(place: World, number: signal.Signals) -> None:
    bridge = Bridge(place)
    bridge.greet()
    session = bridge.session(place.cwd)
    first = place.pid()
    assert place.end(number)
    turn = bridge.prompt(session, "hello")
    assert bridge.answer(turn)["result"]["stopReason"] == "end_turn"
    assert place.pid() != first
    assert bridge.close() == 0


@pytest.mark.req("W-13", "W-10")
def test_a_loaded_session_is_told_once_and_goes_on_after_a_crash(place: World) -> None:
    bridge = Bridge(place)
    bridge.greet()
    session = bridge.session(place.cwd)
    bridge.answer(bridge.prompt(session, "hello"))
    assert bridge.close() == 0
    again = Bridge(place)
    again.greet()
    again.call("session/load", sessionId=session, cwd=str(place.cwd), mcpServers=[])
    history = len(again.updates("user_message_chunk"))
    assert history == 1
    assert place.end(signal.SIGKILL)
    turn = again.prompt(session, "and again")
    assert again.answer(turn)["result"]["stopReason"] == "end_turn"
    assert len(again.updates("user_message_chunk")) == history
    assert len(again.updates("agent_message_chunk")) == 2
    assert again.close() == 0


@pytest.mark.req("W-13", "W-6")
def test_a_megabyte_prompt_goes_through(place: World) -> None:
    bridge = Bridge(place, "--brain", script_file(place.cwd, [{"say": "read"}], match="."))
    bridge.greet()
    session = bridge.session(place.cwd)
    params = {"sessionId": session, "prompt": [{"type": "text", "text": "é" * 3_000_000}]}
    message = {"jsonrpc": "2.0", "id": "big", "method": "session/prompt", "params": params}
    bridge.write(json.dumps(message, ensure_ascii=False).encode())
    assert bridge.answer("big")["result"]["stopReason"] == "end_turn"
    assert bridge.close() == 0


@pytest.mark.req("W-8", "W-13", "A-7")
def test_a_question_outlives_the_daemon(place: World) -> None:
    brain = script_file(place.cwd, [{"ask": "Really?"}, {"say": "Done."}])
    bridge = Bridge(place, "--brain", brain)
    bridge.greet()
    session = bridge.session(place.cwd)
    turn = bridge.prompt(session, "go")
    asked = bridge.wait(lambda m: m.get("method") == "session/request_permission")
    assert place.end(signal.SIGKILL)
    # the next daemon asks again; to the editor it is the same question
    listing = bridge.call("session/list")
    assert listing["sessions"]
    outcome = {"outcome": "selected", "optionId": "allow"}
    bridge.say({"id": asked["id"], "result": {"outcome": outcome}})
    assert bridge.answer(turn)["result"]["stopReason"] == "end_turn"
    questions = [m for m in bridge.received if m.get("method") == "session/request_permission"]
    assert len(questions) == 1
    assert bridge.updates("agent_message_chunk")[-1]["content"]["text"] == "Done."
    assert bridge.close() == 0


@pytest.mark.req("W-13", "Q-11")
def test_a_cancel_reaches_a_turn_over_a_crash(place: World) -> None:
    bridge = Bridge(place, "--brain", script_file(place.cwd, [{"sleepMs": 600_000}]))
    bridge.greet()
    session = bridge.session(place.cwd)
    turn = bridge.prompt(session, "go")
    assert place.end(signal.SIGKILL)
    bridge.say({"method": "session/cancel", "params": {"sessionId": session}})
    assert bridge.answer(turn)["result"]["stopReason"] == "cancelled"
    assert bridge.close() == 0


# -- what an editor's log says -------------------------------------------------------------------


def logged(bridge: Bridge) -> str:
    """What a bridge that has ended wrote to stderr."""
    assert bridge.process.stderr is not None
    return bridge.process.stderr.read().decode()


@pytest.mark.req("U-3")
def test_a_daemon_of_another_version_serves_and_is_named_once(place: World) -> None:
    place.serve()
    path = place.home.daemon_json
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"version": "9.9.9"}))
    bridge = Bridge(place)
    bridge.greet()
    assert bridge.session(place.cwd)
    assert bridge.close() == 0
    said = logged(bridge)
    assert said.count("9.9.9") == 1
    assert f"`kill {record['pid']}`" in said
    silent = Bridge(place)
    path.write_text(json.dumps(record))
    silent.greet()
    assert silent.close() == 0
    assert logged(silent) == ""


@pytest.mark.req("U-1", "W-13")
def test_a_closed_output_is_refused_in_words(place: World) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *GOCLAW, "acp"]
    done = subprocess.run(
        command, env=place.environ, cwd=place.cwd, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, timeout=DEADLINE_MS / 1000,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("goclaw: stdout is closed")
    assert done.stderr.count("\n") == 1


@pytest.mark.req("W-13", "U-1")
def test_input_that_ends_before_its_answer_is_said(place: World) -> None:
    """Nobody is there who could answer within the second that a bridge may take to leave."""
    place.home.run.mkdir(parents=True)
    path = place.home.run / "goclaw.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        record = DaemonRecord(os.getpid(), "b", "d", goclaw.__version__, None, str(path))
        place.home.write_daemon_json(record)
        bridge = Bridge(place)
        bridge.request("initialize", protocolVersion=1)
        code = bridge.close()
        place.home.remove_daemon_json()  # whoever clears away ends the process that it names
    assert code == 0
    assert "before all was answered" in logged(bridge)


# -- a daemon that does not behave ---------------------------------------------------------------


@pytest.mark.req("U-3", "I-5")
def test_daemons_that_say_nothing_are_given_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on the reconnects of a daemon that dies of what it is told."""
    monkeypatch.setattr(limits, "POLL_MS", 1)
    place = Home(home / "h")
    place.run.mkdir(parents=True)
    path = place.run / "goclaw.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        place.write_daemon_json(DaemonRecord(os.getpid(), "b", "d", "0", None, str(path)))
        stdin, writer = os.pipe()
        os.write(writer, b'{"jsonrpc":"2.0","id":1,"method":"initialize"}\n')
        failures: list[Exception] = []

        def work() -> None:
            try:
                acp.run(place, CLOCK, stdin=stdin, stdout=writer)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            listener.settimeout(0.1)
            try:
                listener.accept()[0].close()
            except TimeoutError:
                continue
        assert "in a row ended before they said a word" in str(failures[0])
        os.close(stdin)
        os.close(writer)
