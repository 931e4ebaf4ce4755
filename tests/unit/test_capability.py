"""Capability objects: what a decision becomes, who gets one, what happens without one (A-2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from test_tools_gate import TASK, Reader, Recorder, made, sent, session

from goclaw.core.capability import Capability, capabilities
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.errors import NoCapability
from goclaw.core.records import Done, Tool
from goclaw.core.states import EffectClass
from goclaw.tools.gate import Gate
from goclaw.tools.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from goclaw.core.records import Session
    from goclaw.net.egress import Permit

__all__ = ["session"]  # a fixture
pytestmark = pytest.mark.req("A-2", "I-6")
ME = Subject(SubjectKind.RUN, "direct", Origin.UNIX)


def decision(effect: Verdict, action: str = "fs.read") -> Decision:
    return Decision("d", 0, ME, action, "/a", Context(), effect, "rule", "so", "v", ())


@pytest.mark.parametrize(
    ("effect", "answered", "given"),
    [
        (Verdict.ALLOW, False, True), (Verdict.ALLOW, True, True), (Verdict.ASK, False, False),
        (Verdict.ASK, True, True), (Verdict.DENY, False, False), (Verdict.DENY, True, False),
    ],
)  # fmt: skip
def test_a_right_comes_of_a_yes_and_of_nothing_else(
    effect: Verdict, answered: bool, given: bool
) -> None:
    if given:
        assert capabilities([decision(effect)], answered=answered) == (
            Capability("fs.read", "/a", "d"),
        )
    else:
        with pytest.raises(NoCapability, match="was not allowed"):
            capabilities([decision(Verdict.ALLOW), decision(effect)], answered=answered)


def test_a_right_is_to_one_action() -> None:
    right = Capability("fs.read", "/a", "d")
    assert right.use("fs.read") == "/a"
    with pytest.raises(NoCapability) as refused:
        right.use("fs.write")
    assert refused.value.code == "no_capability"


@pytest.mark.parametrize("action", ["tool_call", "fs_read"])
def test_a_call_that_was_denied_opens_nothing_even_if_it_is_sent(
    action: str, session: Session
) -> None:
    """The journal does not send it; were it to, the tool would hold nothing."""
    source = Reader()
    call = made(
        session, {"file": "a.txt"}, decide=Recorder(**{action: Verdict.DENY}), source=source
    )
    output, failed = sent(call)
    assert (output["code"], failed, source.descriptor) == ("no_capability", True, -1)


def test_an_agent_reads_and_writes_by_a_right_to_that_file(session: Session) -> None:
    gate = Gate(Registry(), Recorder())
    place = f"{session.cwd}/a.txt"

    async def scenario() -> None:
        reading, _ = await gate.decide_path(TASK, session, "direct", "fs.read", place)
        right = gate.granted(reading)
        assert await gate.read(right, 99) == b"inside"
        with pytest.raises(NoCapability):
            await gate.write(right, b"x")
        asked = Gate(Registry(), Recorder(fs_write=Verdict.ASK))
        writing, _ = await asked.decide_path(TASK, session, "direct", "fs.write", place)
        with pytest.raises(NoCapability):
            asked.granted(writing)
        await asked.write(asked.granted(writing, answered=True), b"changed")
        assert await gate.read(right, 99) == b"changed"

    asyncio.run(scenario())


# -- a module's host -------------------------------------------------------------------------------


class Module(Reader):
    """A tool whose module wants something of its host."""

    given: list[str] | None = None

    def tools(self) -> Sequence[Tool]:
        schema = {"type": "object", "properties": {}}
        return [
            Tool("mod", "wasm", "x", schema, EffectClass.PURE, "wasm", host=("clock", "random"))
        ]

    async def run_given(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        files: Mapping[str, int],
        rights: Sequence[Capability],
    ) -> Done:
        self.given = [right.use("wasm.host") for right in rights]
        return Done(b"1")


def test_what_a_module_wants_is_decided_about_as_the_skill(session: Session) -> None:
    source, recorder = Module(), Recorder()
    call = made(session, {}, decide=recorder, source=source, tool="mod")
    wanted = [(action, name) for action, name, *_ in recorder.asked]
    assert wanted == [("tool.call", "wasm/mod"), ("wasm.host", "clock"), ("wasm.host", "random")]
    assert [(one.kind, one.id) for one in recorder.subjects[1:]] == [(SubjectKind.SKILL, "mod")] * 2
    assert sent(call) == (1, False)
    assert source.given == ["clock", "random"]


def test_a_module_that_may_not_have_it_does_not_run(session: Session) -> None:
    source = Module()
    call = made(session, {}, decide=Recorder(wasm_host=Verdict.DENY), source=source, tool="mod")
    assert call.decision is not None
    assert (call.decision.action, call.decision.effect) == ("wasm.host", Verdict.DENY)
    assert sent(call)[0]["code"] == "no_capability"
    assert source.given is None


# -- secrets ---------------------------------------------------------------------------------------


class Vault:
    """Secrets that are bound to everything: the right to use them is all that is left."""

    def knows(self, name: str) -> bool:
        return name in ("one", "two")

    def revealed(self, text: str, *, tool: str, host: str | None = None) -> str:
        return text.replace("secret:one", "VALUE1").replace("secret:two", "VALUE2")


class Reacher(Reader):
    """A tool that keeps its permit."""

    permit: Permit | None = None

    def tools(self) -> Sequence[Tool]:
        properties = {"url": {"type": "string"}, "body": {"type": "string"}}
        schema = {"type": "object", "properties": properties}
        return [Tool("reach", "builtin", "x", schema, EffectClass.PURE, "none", url_argument="url")]

    async def reach(
        self, tool: Tool, arguments: dict[str, Any], *, key: str, permit: Permit
    ) -> Done:
        self.permit = permit
        return Done(b"1")


@pytest.mark.req("A-5")
def test_a_call_uses_the_secrets_that_it_named(session: Session) -> None:
    source, recorder = Reacher(), Recorder()
    arguments = {"url": "http://a/", "body": "secret:one"}
    call = made(session, arguments, decide=recorder, source=source, tool="reach", secrets=Vault())
    assert ("secret.use", "one") in [(action, name) for action, name, *_ in recorder.asked]
    assert source.permit is None
    sent(call)
    assert source.permit is not None
    assert source.permit.reveal("a secret:one", "a") == "a VALUE1"
    with pytest.raises(NoCapability, match="did not name the secret two"):
        source.permit.reveal("secret:one secret:two", "a")
    assert source.permit.reveal("secret:three", "a") == "secret:three"  # a word, no reference


@pytest.mark.req("A-5", "A-6")
def test_a_model_reads_references_as_they_are(session: Session) -> None:
    """What was cleaned stands in the past of every model, which is never given the value."""
    gate = Gate(Registry(), Recorder(), secrets=Vault())
    asked = gate.decide_own(TASK, session, "m", "net.connect", "https://a/")
    permit = gate.own_permit(TASK, session, "m", asked)
    said = orjson.dumps({"text": "secret:one#0123456789ab"}).decode()
    assert permit.reveal(said, "a") == said


def test_no_permit_to_a_models_server_comes_of_a_question(session: Session) -> None:
    gate = Gate(Registry(), Recorder(net_connect=Verdict.ASK))
    asked = gate.decide_own(TASK, session, "m", "net.connect", "https://a/")
    with pytest.raises(NoCapability):
        gate.own_permit(TASK, session, "m", asked)
