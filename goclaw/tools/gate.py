"""The one gate: what a brain wants becomes a call that was decided on, or is refused.

Owns the decisions about a call, the opening of its file and how a call is shown. Not in here: its
journal (engine carries out what is built here), what the tool does (the sources).
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import os
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import orjson

from goclaw.core import limits
from goclaw.core.capability import capabilities
from goclaw.core.decisions import ON_UNKNOWN, Context, Origin, Subject, SubjectKind, Taint, Verdict
from goclaw.core.errors import GoclawError, InvalidParams, NoCapability
from goclaw.core.records import Call, Done
from goclaw.core.states import EffectClass
from goclaw.policy import egress, pdp
from goclaw.policy.redact import references
from goclaw.tools import files
from goclaw.tools.builtin import child_of, sleep_ms
from goclaw.tools.exec import Program, Runs, find_program
from goclaw.tools.http import Reaches, class_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from goclaw.core.capability import Capability
    from goclaw.core.decisions import Decision
    from goclaw.core.records import CallResult, Session, Task, Tool
    from goclaw.policy.egress import Address
    from goclaw.tools.registry import Entry, Registry

__all__ = ["Decide", "Gate", "Names", "Reveals", "context_of", "error_output", "subject_of"]

# Sandboxes in which a call counts as confined.
_CONFINED = frozenset({"wasm", "runner", "confined"})
# The announcement commits before the dispatch; the journal minds what follows an unknown outcome.
_UNCONFINED = "none"
_FULFILLED = frozenset({"notify", *ON_UNKNOWN})
_PRIVATE = frozenset({"fs.read", "secret.use"})
_NOTHING_OPEN: Callable[[], Collection[tuple[int, int]]] = tuple


class Decide(Protocol):
    """The decision point, by the policy version that the attempt is pinned to."""

    def __call__(
        self,
        subject: Subject,
        action: str,
        resource: str,
        context: Context,
        *,
        version: str | None = None,
    ) -> Decision:
        """Pure, and quick."""


class Names(Protocol):
    """Does the policy of that version name an address to that subject (A-4)?"""

    def __call__(self, version: str, subject: Subject, context: Context, place: Address) -> bool:
        """Pure, and quick."""


class Reveals(Protocol):
    """The secrets, for the boundary (A-5)."""

    def knows(self, name: str) -> bool:
        """Is there one of that name?"""

    def revealed(self, text: str, *, tool: str, host: str | None = None) -> str:
        """The text with its references replaced; SecretRefused when one is not bound to both."""


@runtime_checkable
class Hosts(Protocol):
    """A source of tools whose modules may call their host (K-2)."""

    async def run_given(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        files: Mapping[str, int],
        rights: Sequence[Capability],
    ) -> Done:
        """As ``ToolSource.run``, with the host calls that were decided about."""


def _names_nothing(version: str, subject: Subject, context: Context, place: Address) -> bool:
    return False


def subject_of(task: Task, brain: str) -> Subject:
    """A run, as it asks for its brain."""
    origin = Origin(task.origin) if task.origin in set(Origin) else Origin.INTERNAL
    return Subject(
        SubjectKind.RUN, brain, origin, session_id=task.session_id, run_id=task.run_id,
        task_id=task.task_id, attempt=task.attempt,
    )  # fmt: skip


def context_of(session: Session, effect_class: EffectClass, request: bytes = b"") -> Context:
    """The circumstances of a call; the roots as given."""
    digest = hashlib.sha256(request).hexdigest() if request else None
    return Context(
        effect_class=effect_class, taint=session.taint, args_digest=digest,
        interactive=session.interactive,
        roots=session.roots,
    )  # fmt: skip


def error_output(message: str, code: str = "tool_failed") -> bytes:
    """The output of a call that failed."""
    return orjson.dumps({"error": message, "code": code})


class Gate:
    """Builds calls. ``closed`` answers (device, inode) of files that no tool may open; ``names``
    which special addresses may be dialled; ``secrets`` are put in where a call leaves goclaw."""

    def __init__(
        self,
        registry: Registry,
        decide: Decide,
        *,
        closed: Callable[[], Collection[tuple[int, int]]] = _NOTHING_OPEN,
        names: Names = _names_nothing,
        secrets: Reveals | None = None,
    ) -> None:
        self._registry, self._decide, self._closed = registry, decide, closed
        self._names, self._secrets = names, secrets

    def decide_brain(self, task: Task, session: Session, brain: str) -> Decision:
        """May this brain answer for this run?"""
        context = context_of(session, EffectClass.PURE)
        subject = subject_of(task, brain)
        return self._decide(subject, "brain.call", brain, context, version=task.policy_version)

    def decide(
        self,
        task: Task,
        session: Session,
        brain: str,
        action: str,
        resource: str,
        *,
        effect_class: EffectClass = EffectClass.PURE,
        request: bytes = b"",
    ) -> Decision:
        """Anything else that a brain wants on its own account, or its child agent."""
        context = context_of(session, effect_class, request)
        subject = subject_of(task, brain)
        decision = self._decide(subject, action, resource, context, version=task.policy_version)
        return _obliged(decision, _UNCONFINED)

    def decide_own(
        self, task: Task, session: Session, brain: str, action: str, resource: str
    ) -> Decision:
        """What the daemon does on its own account so that a brain can answer: connect to a model's
        server, start an agent's program. The subject's id is the brain's name."""
        context = context_of(session, EffectClass.IRREVERSIBLE)
        asking = subject_of(task, brain)
        subject = dataclasses.replace(asking, kind=SubjectKind.DAEMON, origin=Origin.INTERNAL)
        decision = self._decide(subject, action, resource, context, version=task.policy_version)
        return _obliged(decision, _UNCONFINED)

    def own_permit(self, task: Task, session: Session, brain: str, asked: Decision) -> _Permit:
        """The capability that goes with an allowed ``decide_own`` about ``net.connect``. A model
        reads references to secrets as they are: no value is put in toward it (A-5)."""
        capabilities([asked])
        asking = dataclasses.replace(
            subject_of(task, brain), kind=SubjectKind.DAEMON, origin=Origin.INTERNAL
        )
        decide = functools.partial(self._decide, asking, version=task.policy_version)
        names = functools.partial(self._names, task.policy_version, asking, asked.context)
        return _Permit(decide, asked, names, None, brain, [], [])

    def granted(self, decision: Decision, *, answered: bool = False) -> Capability:
        """What an allowed decision of this gate gives, or one that asks and that a person
        ``answered`` with yes. NoCapability."""
        return capabilities([decision], answered=answered)[0]

    async def decide_path(
        self, task: Task, session: Session, brain: str, action: str, path: str
    ) -> tuple[Decision, str]:
        """The same about a file; the path, without links, that was decided about. InvalidParams."""
        place, roots = await _in_thread(_find, path, session)
        effect_class = EffectClass.PURE if action == "fs.read" else EffectClass.PROBEABLE
        context = context_of(session, effect_class)
        about = dataclasses.replace(context, bytes=place.bytes, roots=roots)
        subject = subject_of(task, brain)
        decided = self._decide(subject, action, place.path, about, version=task.policy_version)
        return _obliged(decided, _UNCONFINED), place.path

    async def read(self, right: Capability, bytes_max: int) -> bytes:
        """The file that was decided about, or OSError. At most ``bytes_max`` and one more."""

        def read() -> bytes:
            with os.fdopen(files.open_place(right, self._closed()), "rb") as opened:
                return opened.read(bytes_max + 1)

        found: bytes = await _in_thread(read)
        return found

    async def write(self, right: Capability, data: bytes) -> None:
        """Replace the content of the file that was decided about, or make it. OSError."""
        await _in_thread(files.write_place, right, data, self._closed())

    async def call(
        self,
        task: Task,
        session: Session,
        brain: str,
        tool: str,
        arguments: dict[str, Any],
        *,
        fault: str | None = None,
    ) -> Call:
        """The call of a tool, decided on, with everything its journal needs.

        An unknown tool and arguments that do not fit become a call that fails by itself, so that
        the brain is told and every attempt is told the same; ``fault`` says that they could not
        even be read.
        """
        request = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS)
        if fault is not None:
            return _misfit(tool, request, f"{tool[:80]}: {fault}.")
        entry = self._registry.get(tool)
        if entry is None:
            known = ", ".join(known.name for known in self._registry.tools())
            return _misfit(tool, request, f"There is no tool {tool[:80]!r}; there are {known}.")
        misfit = entry.misfit(arguments)
        if misfit is not None:
            return _misfit(tool, request, f"{tool}: {misfit}.")
        secrets = self._secrets_in(request)
        misfit = _misplaced(entry.tool, arguments, secrets)
        if misfit is not None:
            return _misfit(tool, request, f"{tool}: {misfit}.")
        subject = subject_of(task, brain)
        context = context_of(session, class_of(entry.tool, arguments), request)
        decide = functools.partial(self._decide, subject, version=task.policy_version)
        decisions = [decide("tool.call", entry.tool.resource, context)]
        place = None
        name = entry.tool.file_argument
        if name is not None and name in arguments:
            try:
                place, roots = await _in_thread(_find, arguments[name], session)
            except InvalidParams as error:
                return _misfit(tool, request, str(error))
            about = dataclasses.replace(context, bytes=place.bytes, roots=roots)
            decisions.append(decide("fs.read", place.path, about))
        program = None
        if entry.tool.program_argument is not None:
            word = arguments[entry.tool.program_argument][0]
            try:
                program = await _in_thread(_find_program, word, session)
            except InvalidParams as error:
                return _misfit(tool, request, f"{tool}: {error}")
            about = dataclasses.replace(context, roots=program.roots)
            decisions.append(decide("exec.run", program.path, about))
        inside: list[Decision] = []
        permit = None
        if entry.tool.url_argument is not None:
            size = len(arguments.get("body", "").encode())
            about = dataclasses.replace(context, bytes=size)
            asked = decide(egress.ACTION, arguments[entry.tool.url_argument], about)
            decisions.append(asked)
            names = functools.partial(self._names, task.policy_version, subject, about)
            permit = functools.partial(
                _Permit, decide, asked, names, self._secrets, tool, secrets, inside
            )
        decisions += [decide("secret.use", name, context) for name in secrets]
        module = dataclasses.replace(subject, kind=SubjectKind.SKILL, id=tool)
        for name in entry.tool.host:
            decisions.append(
                self._decide(module, "wasm.host", name, context, version=task.policy_version)
            )
        decisions = [_obliged(decision, entry.tool.sandbox) for decision in decisions]
        wanted = _Wanted(tuple(decisions), place, program, permit)
        return self._built(entry, arguments, request, wanted, inside)

    def _secrets_in(self, request: bytes) -> list[str]:
        """The names of what arguments refer to; ``~KIND`` for what was taken out for good."""
        if self._secrets is None or b"secret:" not in request:
            return []
        return _referred(request.decode(), self._secrets)

    def _built(
        self,
        entry: Entry,
        arguments: dict[str, Any],
        request: bytes,
        wanted: _Wanted,
        inside: list[Decision],
    ) -> Call:
        tool = entry.tool
        title = _title(tool.name, arguments, wanted.place)
        probe = None
        if tool.effect_class is EffectClass.PROBEABLE:
            probe = functools.partial(_probe, entry, arguments)
        return Call(
            kind="tool", name=tool.name, request=request, effect_class=class_of(tool, arguments),
            dispatch=functools.partial(self._dispatch, entry, arguments, wanted),
            decisions=wanted.decisions, title=title, designated_key=_designated(tool, arguments),
            announce=functools.partial(_announce, tool.kind, title, request, wanted.place),
            report=_report,
            probe=probe,
            wait_ms=sleep_ms(tool, arguments), child=child_of(tool, arguments),
            inside=inside,
            taints=_taints(tool, wanted.decisions),
        )  # fmt: skip

    async def _dispatch(
        self,
        entry: Entry,
        arguments: dict[str, Any],
        wanted: _Wanted,
        key: str,
        cancelled: asyncio.Event,
    ) -> Done:
        """The journal has seen to the decisions: here they become what the tool holds."""
        opened: dict[str, int] = {}
        tool, origin, place = entry.tool, entry.origin, wanted.place
        try:
            held = capabilities(wanted.decisions, answered=True)
            rights = {one.action: one for one in held}
            rights["tool.call"].use("tool.call")
            if place is not None and tool.file_argument is not None:
                if place.fault is not None:
                    return _unreadable(place.path, place.fault)
                try:
                    descriptor = await _in_thread(
                        files.open_place, rights["fs.read"], self._closed()
                    )
                except OSError as error:
                    return _unreadable(place.path, error.strerror or str(error))
                opened[tool.file_argument] = descriptor
            if wanted.program is not None and isinstance(origin, Runs):
                done = await origin.start(
                    tool, arguments, key=key, program=wanted.program, right=rights["exec.run"]
                )
            elif wanted.permit is not None and isinstance(origin, Reaches):
                done = await origin.reach(tool, arguments, key=key, permit=wanted.permit())
            elif tool.host and isinstance(origin, Hosts):
                of_host = [one for one in held if one.action == "wasm.host"]
                done = await origin.run_given(tool, arguments, files=opened, rights=of_host)
            else:
                done = await origin.run(tool, arguments, key=key, cancelled=cancelled, files=opened)
        except GoclawError as error:
            return Done(error_output(str(error), error.code), failed=True)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)
        return _checked(done)

    def question(self, title: str) -> Call:
        """A call that does nothing but ask a person; completed when the answer is yes."""

        async def answered(_key: str, _cancelled: asyncio.Event) -> Done:
            return Done(b'{"answer":"allow"}')

        request = orjson.dumps({"title": title})
        return Call(
            kind="ask", name="ask", request=request, effect_class=EffectClass.PURE,
            dispatch=answered, title=title, question=True,
            announce=functools.partial(_announce, "other", title, b"", None), report=_report,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class _Wanted:
    """What a call wants to hold, and what was decided about it. It holds none of it yet."""

    decisions: tuple[Decision, ...]
    place: files.Place | None = None
    program: Program | None = None
    permit: Callable[[], _Permit] | None = None


class _Permit:
    """What a call may reach: the URL that was decided about, and whatever else the policy allows
    without a question; and the secrets that it may use. ``taken`` are the decisions on the way,
    those that count (A-8)."""

    def __init__(
        self,
        decide: Callable[..., Decision],
        asked: Decision,
        names: Callable[[Address], bool],
        secrets: Reveals | None,
        tool: str,
        usable: Collection[str],
        taken: list[Decision],
    ) -> None:
        self._decide, self._asked, self._names = decide, asked, names
        self._secrets, self._tool, self._usable = secrets, tool, set(usable)
        self._known = {asked.resource: dataclasses.replace(asked, effect=Verdict.ALLOW)}
        self.taken = taken

    def decide(self, url: str, method: str) -> Decision:
        """See net.egress.Permit. Who holds this was let through: the policy or a person said yes
        to the first URL."""
        decision = self._known.get(url)
        if decision is None:
            decision = self._known[url] = self._decide(egress.ACTION, url, self._asked.context)
            self.taken.append(decision)
        return decision

    def reveal(self, text: str, host: str) -> str:
        """See net.egress.Permit."""
        if self._secrets is None:
            return text
        for name in _referred(text, self._secrets):
            if name not in self._usable:
                raise NoCapability(
                    f"The call did not name the secret {name}, so nobody decided about its use.",
                    hint="Write the reference into the call's arguments.",
                )
        return self._secrets.revealed(text, tool=self._tool, host=host)

    def refuses(self, url: str, place: Address) -> Decision | None:
        """See net.egress.Permit."""
        decision: Decision = self._decide(egress.ACTION, url, self._asked.context)
        kind = egress.special_kind(place)
        if kind is not None and not self._names(egress.plain_address(place)):
            why = f"{place} is a {kind} address, which no rule names"
            decision = dataclasses.replace(decision, effect=Verdict.DENY, reason=why)
        elif decision.effect is not Verdict.DENY or decision.rule_id == pdp.DEFAULT:
            return None  # a name was allowed: its addresses need no rule of their own
        self.taken.append(decision)
        return decision


def _referred(text: str, secrets: Reveals) -> list[str]:
    """The names of what a text refers to, each once."""
    found = references(text)
    return list(
        dict.fromkeys(
            name for name, digest in found if digest or name[0] == "~" or secrets.knows(name)
        )
    )


def _taints(tool: Tool, decisions: Sequence[Decision]) -> tuple[Taint, ...]:
    """What the result brings: what the tool says, and private data when it reads the user's files
    or comes with a secret of the user's."""
    private = any(one.action in _PRIVATE for one in decisions)
    return tuple(
        label for label in Taint if label in tool.taints or (label is Taint.PRIVATE and private)
    )


def _misplaced(tool: Tool, arguments: dict[str, Any], secrets: list[str]) -> str | None:
    """Why a call may not hold what it refers to. A reference becomes its value only where a call
    leaves goclaw; anywhere else it would stand in the user's file (A-6)."""
    gone = next((name for name in secrets if name[0] == "~"), None)
    if tool.url_argument is not None:
        if gone is not None:
            return f"secret:{gone} stands for a value that was taken out and is not kept"
        return None
    inside = class_of(tool, arguments) is EffectClass.PURE or child_of(tool, arguments) is not None
    if secrets and not inside:
        return "a reference to a secret would be written out as it is; only http puts its value in"
    return None


def _designated(tool: Tool, arguments: dict[str, Any]) -> str | None:
    """The key that the schema names (E-4); an empty one is none."""
    key = arguments.get(tool.key_argument) if tool.key_argument is not None else None
    if key is None or isinstance(key, str):
        return key or None
    return orjson.dumps(key, option=orjson.OPT_SORT_KEYS).decode()


def _find(path: str, session: Session) -> tuple[files.Place, tuple[str, ...]]:
    return files.resolve(path, session.cwd), files.real_roots(session.roots)


def _find_program(word: str, session: Session) -> Program:
    cwd = os.path.realpath(session.cwd)
    return Program(find_program(word, cwd), cwd, files.real_roots(session.roots))


async def _in_thread(work: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)


def _obliged(decision: Decision, sandbox: str) -> Decision:
    """Who cannot fulfil an obligation must not go on."""
    able = _FULFILLED | ({"confine"} if sandbox in _CONFINED else set())
    unable = [one for one in decision.obligations if one not in able]
    if not unable or decision.effect is Verdict.DENY:
        return decision
    reason = f"{decision.reason}; but {unable[0]} cannot be fulfilled for this tool"
    return dataclasses.replace(decision, effect=Verdict.DENY, reason=reason)


def _checked(done: Done) -> Done:
    """What a tool says, as one JSON text that everybody further on can read."""
    size = limits.TOOL_OUTPUT_BYTES_MAX
    if len(done.output) > size:
        return Done(error_output(f"The output has more than {size} bytes.", "too_large"), True)
    try:
        orjson.loads(done.output)
    except orjson.JSONDecodeError:
        return Done(orjson.dumps({"text": done.output.decode("utf-8", "replace")}), done.failed)
    return done


async def _probe(entry: Entry, arguments: dict[str, Any], key: str) -> Done | bool | None:
    return await entry.origin.probe(entry.tool, arguments, key=key)


def _misfit(tool: str, request: bytes, why: str) -> Call:
    async def told(_key: str, _cancelled: asyncio.Event) -> Done:
        return Done(error_output(why, InvalidParams.code), failed=True)

    return Call(
        kind="tool", name=tool, request=request, effect_class=EffectClass.PURE, dispatch=told,
        title=tool[:80], announce=functools.partial(_announce, "other", tool[:80], request, None),
        report=_report,
    )  # fmt: skip


def _unreadable(path: str, why: str) -> Done:
    sentence = f"{_printable(path)} cannot be read: {why}."
    return Done(error_output(sentence, "file_unreadable"), failed=True)


# -- how a call is shown ---------------------------------------------------------------------------


def _title(name: str, arguments: dict[str, Any], place: files.Place | None) -> str:
    if place is not None:
        return f"{name} {_printable(place.path)}"
    text = orjson.dumps(arguments).decode() if arguments else ""
    return f"{name} {text[:80]}".strip()


def _printable(path: str) -> str:
    """A file's name may be no UTF-8; JSON is."""
    return path.encode("utf-8", "replace").decode()


def _announce(
    kind: str, title: str, request: bytes, place: files.Place | None, call_id: str, status: str
) -> dict[str, Any]:
    update: dict[str, Any] = {
        "sessionUpdate": "tool_call", "toolCallId": call_id, "title": title, "kind": kind,
        "status": status,
    }  # fmt: skip
    if request and len(request) <= limits.TOOL_SHOWN_BYTES_MAX:
        update["rawInput"] = orjson.Fragment(request)
    if place is not None:
        update["locations"] = [{"path": _printable(place.path)}]
    return update


def _report(call_id: str, result: CallResult) -> dict[str, Any]:
    size = limits.TOOL_SHOWN_BYTES_MAX
    text = result.output[:size].decode("utf-8", "ignore")
    if len(result.output) > size:
        text += f"\n... and {len(result.output) - size} bytes more"
    update: dict[str, Any] = {
        "sessionUpdate": "tool_call_update",
        "toolCallId": call_id,
        "status": "completed" if result.status == "completed" else "failed",
        "content": [{"type": "content", "content": {"type": "text", "text": text}}],
        "_meta": {"goclaw": {"status": result.status}},
    }
    if len(result.output) <= size:
        update["rawOutput"] = orjson.Fragment(result.output)
    return update
