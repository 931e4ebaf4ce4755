"""The crash drill: what is run, what each effect class allows, and what came of the kills (E-10).

Owns the plan of a drill, the judgement of one life after another and the report. Not in here: the
daemons and their ends (``cli/drill.py``), the sink (``sink.py``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core.states import EffectClass
from goclaw.ops.sink import TOOLS
from goclaw.policy import default

if TYPE_CHECKING:
    from collections.abc import Sequence

    from goclaw.ops.sink import Dispatch

__all__ = [
    "POINTS",
    "PROMPT",
    "STEPS",
    "Boundary",
    "Life",
    "Report",
    "policy_text",
    "script",
    "skill_steps",
]

PROMPT: Final = "drill"
"""What the run is asked; the entry of a script that matches it is the run."""

POINTS: Final = {"before_commit": "before", "after_commit": "after"}
"""Fault points at which a kill strikes, and what they are called beside the commit's number."""

# One of each class, and two of the one that may never be repeated.
STEPS: Final = tuple(
    step
    for number, kind in enumerate((*EffectClass, EffectClass.IRREVERSIBLE), 1)
    for step in ({"say": f"{number} "}, {"call": str(kind), "args": {"n": number}})
)

_ALLOWED: Final = {
    EffectClass.PURE: "any number",
    EffectClass.KEYED: "one key",
    EffectClass.PROBEABLE: "once",
    EffectClass.IRREVERSIBLE: "once; at most once when unknown",
}
_CLASSES: Final = {tool.name: tool.effect_class for tool in TOOLS}
_PEACE: Final = "the run that nobody killed"
_NOT_MADE: Final = frozenset({"denied", "rejected"})


def script(steps: Sequence[dict[str, Any]]) -> bytes:
    """A script file whose only entry is the run."""
    return orjson.dumps([{"match": f"^{PROMPT}$", "steps": [*steps, {"say": "end"}]}])


def skill_steps(name: str, argument: str, file: str) -> list[dict[str, Any]]:
    """A run of five calls: the skill on its file, and between its calls the sink's tools that must
    not happen twice."""
    call = {"call": name, "args": {argument: file}}
    keyed = {"call": str(EffectClass.KEYED), "args": {}}
    irreversible = {"call": str(EffectClass.IRREVERSIBLE), "args": {}}
    return [call, keyed, call, irreversible, call]


def policy_text(*resources: str) -> str:
    """policy.toml of a drill's home: the default, the sink's tools, and ``resources`` beside."""
    allowed = ['{ prefix = "drill/" }', *(f'{{ exact = "{name}" }}' for name in resources)]
    return (
        f"{default.TEXT}\n[[rule]]\n"
        'id = "drill"\neffect = "allow"\nactions = ["tool.call"]\nsubjects = [{ kind = "run" }]\n'
        f'resources = [{", ".join(allowed)}]\nreason = "the tools of the drill"\n'
    )


@dataclass(frozen=True, slots=True, order=True)
class Boundary:
    """One side of a commit, by the number of its operation from the daemon's start. What waits
    together shares a transaction; each operation of it counts."""

    commit: int
    point: str

    def __str__(self) -> str:
        return f"{POINTS[self.point]} commit {self.commit}"


@dataclass(slots=True)
class Life:
    """A run from its submission to its end, over however many daemons it took."""

    kills: int = 0
    run_id: str = ""
    text: str = ""
    tools: list[tuple[str, str, Any]] = field(default_factory=list)
    """(name, status, output) of every call of the run's result."""
    shown: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Events that a client was shown while it ran, by their ids."""
    log: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The session's events in the end."""
    runs: dict[str, str] = field(default_factory=dict)
    """State by run, of all tasks of the home in the end."""
    dispatches: list[Dispatch] = field(default_factory=list)
    questions: int = 0
    """How often a person was asked."""
    troubles: list[str] = field(default_factory=list)
    """What kept the drill from going on."""


@dataclass(slots=True)
class _Effect:
    """One call of a sink's tool: what the journal and the sink say of it."""

    name: str = ""
    status: str = ""
    keys: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)

    @property
    def happened(self) -> int:
        """The far side of a keyed tool takes each key once."""
        keyed = _CLASSES[self.name] is EffectClass.KEYED
        return len(self.sent) if keyed else self.sent.total()

    @property
    def is_allowed(self) -> bool:
        """What its class and its outcome allow."""
        if self.status in _NOT_MADE:
            return self.happened == 0
        match _CLASSES[self.name]:
            case EffectClass.PURE:
                return self.happened >= 1
            case EffectClass.IRREVERSIBLE if self.status == "unknown":
                return self.happened <= 1
            case _:
                return self.happened == 1


def _effects(life: Life) -> dict[int, _Effect]:
    """The calls of the sink's tools by ordinal, from the log alone; then what the sink counted."""
    found: dict[int, _Effect] = {}
    for event in life.log.values():
        body = event.get("update", event)
        if event["type"] == "effect.intent" and event["name"] in _CLASSES:
            effect = found.setdefault(event["ordinal"], _Effect(event["name"]))
            effect.keys.add(event["idempotencyKey"])
        elif body.get("sessionUpdate") == "tool_call_update":
            ordinal = int(body["toolCallId"].rpartition(".")[2])
            status = body.get("_meta", {}).get("goclaw", {}).get("status") or body["status"]
            if ordinal in found:
                found[ordinal].status = status
    by_key = {key: effect for effect in found.values() for key in effect.keys}
    for dispatch in life.dispatches:
        if dispatch.key in by_key:
            by_key[dispatch.key].sent[dispatch.key] += 1
    return found


def _outcomes(life: Life) -> list[tuple[str, str, Any]]:
    """What every life must come to; of what nobody knows only the name."""
    return [
        (name, "", None) if _CLASSES.get(name) is EffectClass.IRREVERSIBLE else (name, *rest)
        for name, *rest in life.tools
    ]


@dataclass(slots=True)
class _Tally:
    """One effect over all lives."""

    name: str
    dispatched: list[int] = field(default_factory=list)
    happened: list[int] = field(default_factory=list)
    unknown: int = 0

    def to_json(self, ordinal: int) -> dict[str, Any]:
        kind = _CLASSES[self.name]
        return {
            "ordinal": ordinal, "tool": self.name, "class": str(kind), "allowed": _ALLOWED[kind],
            "dispatched": {"min": min(self.dispatched), "max": max(self.dispatched)},
            "happened": {"min": min(self.happened), "max": max(self.happened)},
            "unknown": self.unknown,
        }  # fmt: skip


class Report:
    """What came of a drill. ``reference``: the same run that nobody killed."""

    def __init__(self, reference: Life, boundaries: Sequence[object]) -> None:
        self._reference = reference
        self._state = reference.runs.get(reference.run_id)
        self._names = {ordinal: one.name for ordinal, one in _effects(reference).items()}
        self._tallies = {ordinal: _Tally(name) for ordinal, name in self._names.items()}
        self.boundaries = len(boundaries)
        """How many lives there are to be, each with its own place to be killed at."""
        self.kills = self.tasks_lost = self.events_lost = self.questions = self.told = 0
        self.spared = 0
        """Kills that never came: those lives needed fewer commits."""
        self.violations: list[tuple[str, str]] = []
        self.duration_ms = 0
        if self._state not in ("SUCCEEDED", "FAILED"):
            self.violations.append((_PEACE, f"the run does not end: {self._state or 'gone'}"))
        self._judge(_PEACE, reference)

    def add(self, name: str, life: Life, kills: int = 1) -> bool:
        """Judge a life that was to be killed so often; True when it kept the promise."""
        self.kills += life.kills
        self.spared += kills - life.kills
        return self._judge(name, life)

    def _judge(self, name: str, life: Life) -> bool:
        before = len(self.violations)
        self.questions += life.questions
        for what in (*life.troubles, *self._run(life), *self._events(life), *self._calls(life)):
            self.violations.append((name, what))
        return len(self.violations) == before

    def _run(self, life: Life) -> list[str]:
        found = []
        known = {event["runId"] for event in life.shown.values() if event["runId"]}
        lost = {run for run in known | {life.run_id} if life.runs.get(run) != self._state}
        self.tasks_lost += len(lost)
        found += [f"{run or 'the run'} is {life.runs.get(run, 'gone')}" for run in sorted(lost)]
        if len(life.runs) > 1:
            found.append(f"one submission became {len(life.runs)} tasks")
        if not lost and life.text != self._reference.text:
            found.append(f"the run ended with other words: {life.text!r}")
        if not lost and _outcomes(life) != _outcomes(self._reference):
            found.append(f"the run's calls came to something else: {_outcomes(life)}")
        return found

    def _events(self, life: Life) -> list[str]:
        lost = [number for number, event in life.shown.items() if life.log.get(number) != event]
        self.events_lost += len(lost)
        return [f"event {number} was shown and is not in the log" for number in sorted(lost)]

    def _calls(self, life: Life) -> list[str]:
        found = []
        effects = _effects(life)
        names = {ordinal: effect.name for ordinal, effect in effects.items()}
        if names != self._names:
            found.append(f"the run made other calls: {names}")
        for ordinal, effect in effects.items():
            self._count(ordinal, effect)
            if not effect.is_allowed:
                found.append(
                    f"effect {ordinal} ({effect.name}, {effect.status or 'without an end'}) "
                    f"happened {effect.happened} times, allowed: {_ALLOWED[_CLASSES[effect.name]]}"
                )
        journaled = {key for effect in effects.values() for key in effect.keys}
        found += [
            f"{tool} was dispatched with a key that the journal does not hold"
            for tool in sorted({one.tool for one in life.dispatches if one.key not in journaled})
        ]
        return found

    def _count(self, ordinal: int, effect: _Effect) -> None:
        tally = self._tallies.get(ordinal)
        if tally is not None:
            tally.dispatched.append(effect.sent.total())
            tally.happened.append(effect.happened)
            tally.unknown += effect.status == "unknown"
            self.told += effect.status == "unknown"

    @property
    def held(self) -> bool:
        """The promise held, and there was something to hold it against."""
        return not self.violations and self.kills > 0

    def to_json(self) -> dict[str, Any]:
        """The object of `goclaw drill crash --json`."""
        return {
            "held": self.held,
            "boundaries": self.boundaries,
            "kills": self.kills,
            "spared": self.spared,
            "tasksLost": self.tasks_lost,
            "eventsLost": self.events_lost,
            "unknownTold": self.told,
            "questions": self.questions,
            "effects": [tally.to_json(ordinal) for ordinal, tally in self._tallies.items()],
            "violations": [{"where": where, "what": what} for where, what in self.violations],
            "durationMs": self.duration_ms,
        }
