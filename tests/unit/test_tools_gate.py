"""The gate: what is decided, in which words, and what a call carries for its journal."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

import acp.schema
import orjson
import pytest

from goclaw.core import limits
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import SkillFailed
from goclaw.core.records import Call, CallResult, Done, Session, Task, Tool
from goclaw.core.states import EffectClass
from goclaw.policy import default, document, pdp
from goclaw.tools.gate import Gate
from goclaw.tools.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

TASK = Task(
    1, 1, "session_1", "task_1", "run_1", "prompt", 2, 5, "tell_brain", "", b"", None, None,
    "unix", "v1",
)  # fmt: skip


class Recorder:
    """A decision point of one's own: what was asked, and what is said to it."""

    def __init__(self, **verdicts: Verdict) -> None:
        self.asked: list[tuple[str, str, Context, str | None]] = []
        self.subjects: list[Subject] = []
        self.verdicts = verdicts
        self.obligations: tuple[str, ...] = ()

    def __call__(
        self,
        subject: Subject,
        action: str,
        resource: str,
        context: Context,
        *,
        version: str | None = None,
    ) -> Decision:
        self.asked.append((action, resource, context, version))
        self.subjects.append(subject)
        verdict = self.verdicts.get(action.replace(".", "_"), Verdict.ALLOW)
        return Decision(
            "decision_1", 0, subject, action, resource, context, verdict, "rule", f"{action} said",
            "v1", self.obligations,
        )  # fmt: skip


class Reader:
    """A tool that reads its file, with a mind of its own about the output."""

    def __init__(self, effect_class: EffectClass = EffectClass.PURE, sandbox: str = "wasm") -> None:
        self.effect_class, self.sandbox = effect_class, sandbox
        self.output: bytes | Exception | None = None
        self.descriptor = -1

    def tools(self) -> Sequence[Tool]:
        schema = {
            "type": "object",
            "properties": {"file": {"type": "string", "format": "file"}, "key": {}},
            "additionalProperties": False,
        }
        return [
            Tool(
                "reader", "builtin", "Reads.", schema, self.effect_class, self.sandbox,
                kind="read", file_argument="file", key_argument="key",
            )
        ]  # fmt: skip

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        if isinstance(self.output, Exception):
            raise self.output
        if self.output is not None:
            return Done(self.output)
        if not files:
            return Done(b'"nothing"')
        self.descriptor = files["file"]
        return Done(orjson.dumps(os.read(self.descriptor, 99).decode()))

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        return key == "happened"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    (tmp_path / "a.txt").write_text("inside")
    return Session(
        1, "session_1", "stream_1", str(tmp_path), (str(tmp_path),), "direct", True, None, 0, 1, 0,
        0, False, False,
    )  # fmt: skip


def made(
    session: Session,
    arguments: dict[str, Any],
    *,
    decide: Any = None,
    source: Reader | None = None,
    tool: str = "reader",
    **options: Any,
) -> Call:
    gate = Gate(Registry([source or Reader()]), decide or Recorder(), **options)
    return asyncio.run(gate.call(TASK, session, "direct", tool, arguments))


def sent(call: Call) -> tuple[Any, bool]:
    done = asyncio.run(dispatched(call))
    return orjson.loads(done.output), done.failed


async def dispatched(call: Call) -> Done:
    return await call.dispatch("key", asyncio.Event())


@pytest.mark.req("I-6", "A-1", "K-2")
def test_a_call_with_a_file_takes_two_decisions(session: Session) -> None:
    recorder = Recorder()
    call = made(session, {"file": "a.txt"}, decide=recorder)
    (tool, file) = recorder.asked
    assert tool[:2] == ("tool.call", "builtin/reader")
    assert file[:2] == ("fs.read", f"{session.cwd}/a.txt")
    assert {tool[3], file[3]} == {"v1"}
    assert file[2].bytes == 6
    assert file[2].effect_class is EffectClass.PURE
    assert file[2].args_digest is not None
    assert recorder.subjects[0] == Subject(
        SubjectKind.RUN, "direct", Origin.UNIX, "session_1", "run_1", "task_1", 2
    )
    assert len(call.decisions) == 2
    assert sent(call) == ("inside", False)


@pytest.mark.req("A-1")
@pytest.mark.parametrize("tool", list(Verdict))
@pytest.mark.parametrize("file", list(Verdict))
def test_the_strictest_decision_counts(tool: Verdict, file: Verdict, session: Session) -> None:
    call = made(session, {"file": "a.txt"}, decide=Recorder(tool_call=tool, fs_read=file))
    order = [Verdict.ALLOW, Verdict.ASK, Verdict.DENY]
    assert call.decision is not None
    assert call.decision.effect is max(tool, file, key=order.index)


@pytest.mark.req("A-3", "K-2")
def test_the_default_policy_lets_files_under_the_roots_be_read_and_no_others(
    session: Session, tmp_path: Path
) -> None:
    """Through links, too: the root may be one, and a way out is seen for what it is."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "auth.token").write_text("secret")
    (tmp_path / "out").symlink_to("/etc/passwd")
    (tmp_path / "link").symlink_to(tmp_path)
    linked = dataclasses.replace(session, cwd=f"{tmp_path}/link", roots=(f"{tmp_path}/link",))
    policy = document.load(default.TEXT.replace("word-count", "reader"), home=str(home))

    def decide(
        subject: Subject, action: str, resource: str, context: Context, *, version: str | None
    ) -> Decision:
        return pdp.decide(
            policy, subject=subject, action=action, resource=resource, context=context,
            decision_id="d", at_ms=0,
        )  # fmt: skip

    for path, verdict in {
        "a.txt": Verdict.ALLOW,
        f"{tmp_path}/a.txt": Verdict.ALLOW,
        "link/link/a.txt": Verdict.ALLOW,
        "none": Verdict.ALLOW,
        "out": Verdict.DENY,
        "/etc/passwd": Verdict.DENY,
        "/none": Verdict.DENY,
        "home/auth.token": Verdict.DENY,
    }.items():
        for where in (session, linked):
            call = made(where, {"file": path}, decide=decide)
            assert call.decision is not None
            assert call.decision.effect is verdict, path


@pytest.mark.req("B-1")
@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("none", {}, "There is no tool 'none'; there are delegate, reader, sleep."),
        ("reader", {"fiel": "a"}, "reader: 'fiel' is not known; known are file, key."),
        ("reader", {"file": ""}, "The path is empty, too long or holds a NUL. A path has 1 to"),
    ],
)
def test_a_misfit_is_a_call_that_fails_by_itself(
    tool: str, arguments: dict[str, Any], sentence: str, session: Session
) -> None:
    call = made(session, arguments, tool=tool)
    output, failed = sent(call)
    assert failed
    assert output["error"].startswith(sentence)
    assert output["code"] == "invalid_params"
    assert call.effect_class is EffectClass.PURE
    assert call.name == tool


def test_a_file_that_cannot_be_read_is_a_failure_in_words(session: Session) -> None:
    output, failed = sent(made(session, {"file": "none"}))
    assert failed
    assert output["error"] == f"{session.cwd}/none cannot be read: No such file or directory."
    name = os.fsdecode(b"\xff")
    os.mkdir(os.path.join(session.cwd, name))
    os.symlink(name, os.path.join(session.cwd, "link"))
    call = made(session, {"file": "link"})
    assert "?" in sent(call)[0]["error"]
    assert call.announce is not None
    orjson.dumps(call.announce("c", "pending"))


@pytest.mark.req("K-2")
def test_what_is_opened_is_what_was_decided_about(session: Session) -> None:
    call = made(session, {"file": "a.txt"})
    os.unlink(f"{session.cwd}/a.txt")
    os.symlink("/etc/passwd", f"{session.cwd}/a.txt")
    assert sent(call)[1]


@pytest.mark.req("S-1")
def test_goclaws_own_files_stay_closed(session: Session) -> None:
    facts = os.stat(f"{session.cwd}/a.txt")
    call = made(session, {"file": "a.txt"}, closed=lambda: {(facts.st_dev, facts.st_ino)})
    assert "goclaw's own" in sent(call)[0]["error"]


def test_the_descriptor_is_closed_however_the_call_ends(session: Session) -> None:
    for output in (None, SkillFailed("no"), RuntimeError("bug")):
        source = Reader()
        source.output = output
        call = made(session, {"file": "a.txt"}, source=source)
        before = len(os.listdir("/proc/self/fd"))
        with contextlib.suppress(RuntimeError):
            sent(call)
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.req("E-3")
def test_an_error_of_ours_is_the_tools_failure_and_any_other_is_not(session: Session) -> None:
    source = Reader()
    source.output = SkillFailed("it does not like it")
    output, failed = sent(made(session, {}, source=source))
    assert failed
    assert output == {"error": "it does not like it", "code": "skill_failed"}
    source.output = RuntimeError("bug")
    with pytest.raises(RuntimeError):
        sent(made(session, {}, source=source))


@pytest.mark.req("I-5")
def test_outputs_are_json_and_bounded(session: Session) -> None:
    source = Reader()
    source.output = b"no json \xff"
    assert sent(made(session, {}, source=source)) == ({"text": "no json �"}, False)
    source.output = b'"' + b"a" * limits.TOOL_OUTPUT_BYTES_MAX + b'"'
    output, failed = sent(made(session, {}, source=source))
    assert (output["code"], failed) == ("too_large", True)


@pytest.mark.req("A-1")
def test_who_cannot_fulfil_an_obligation_does_not_go_on(session: Session) -> None:
    for obligation, sandbox, verdict in (
        ("confine", "none", Verdict.DENY),
        ("confine", "wasm", Verdict.ALLOW),
        ("notify", "none", Verdict.ALLOW),
        ("unheard-of", "wasm", Verdict.DENY),
    ):
        recorder = Recorder()
        recorder.obligations = (obligation,)
        call = made(session, {}, decide=recorder, source=Reader(sandbox=sandbox))
        assert call.decision is not None
        assert call.decision.effect is verdict, (obligation, sandbox)


@pytest.mark.req("E-2", "E-4")
def test_the_request_is_canonical_and_the_key_is_the_schemas(session: Session) -> None:
    one = made(session, {"key": "k", "file": "a.txt"})
    other = made(session, {"file": "a.txt", "key": "k"})
    assert one.request == other.request == b'{"file":"a.txt","key":"k"}'
    assert one.designated_key == "k"
    assert made(session, {}).designated_key is None


@pytest.mark.req("E-3")
def test_only_a_probeable_tool_is_asked_whether_it_happened(session: Session) -> None:
    probe = made(session, {}, source=Reader(EffectClass.PROBEABLE)).probe
    assert probe is not None

    async def ask(key: str) -> object:
        return await probe(key)

    assert asyncio.run(ask("happened")) is True
    assert made(session, {}, source=Reader(EffectClass.IRREVERSIBLE)).probe is None


@pytest.mark.req("E-9")
def test_sleep_is_a_durable_wait(session: Session) -> None:
    call = made(session, {"seconds": 1.5}, tool="sleep")
    assert (call.wait_ms, call.effect_class) == (1500, EffectClass.PURE)
    assert sent(call) == ({"slept": 1.5}, False)
    assert made(session, {}).wait_ms is None


def shown(update: dict[str, Any]) -> dict[str, Any]:
    """The update as it goes out, once ACP's own schema has accepted it."""
    data: dict[str, Any] = orjson.loads(orjson.dumps(update))
    acp.schema.SessionNotification.model_validate({"sessionId": "s", "update": data})
    return data


@pytest.mark.req("W-1")
@pytest.mark.parametrize("status", ["pending", "in_progress"])
def test_a_call_is_announced_as_acp_has_it(status: str, session: Session) -> None:
    call = made(session, {"file": "a.txt"})
    assert call.announce is not None
    update = shown(call.announce("call_1", status))
    assert update == {
        "sessionUpdate": "tool_call",
        "toolCallId": "call_1",
        "title": f"reader {session.cwd}/a.txt",
        "kind": "read",
        "status": status,
        "rawInput": {"file": "a.txt"},
        "locations": [{"path": f"{session.cwd}/a.txt"}],
    }


@pytest.mark.req("W-1", "I-5")
@pytest.mark.parametrize(
    ("status", "word"),
    [
        ("completed", "completed"), ("failed", "failed"), ("denied", "failed"),
        ("rejected", "failed"), ("unknown", "failed"),
    ],
)  # fmt: skip
def test_an_end_is_reported_as_acp_has_it(status: str, word: str, session: Session) -> None:
    call = made(session, {})
    assert call.report is not None
    result = CallResult(1, "call_1", b'{"n":1}', word == "failed", status)
    update = shown(call.report("call_1", result))
    assert (update["status"], update["rawOutput"]) == (word, {"n": 1})
    assert update["content"][0]["content"]["text"] == '{"n":1}'
    assert update["_meta"]["goclaw"]["status"] == status
    size = limits.TOOL_OUTPUT_BYTES_MAX
    large = orjson.dumps("\u0001é\\" * (size // 10))
    result = dataclasses.replace(result, output=large)
    encoded = orjson.dumps(call.report("call_1", result))
    assert len(encoded) <= limits.EVENT_BYTES_MAX
    assert b"bytes more" in encoded


def test_a_question_asks_and_does_nothing_else(session: Session) -> None:
    call = Gate(Registry(), Recorder()).question("Really?")
    assert (call.question, call.title, call.decisions) == (True, "Really?", ())
    assert sent(call) == ({"answer": "allow"}, False)
    assert call.announce is not None
    assert shown(call.announce("call_1", "pending"))["title"] == "Really?"
