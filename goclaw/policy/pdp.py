"""The one decision point: pure, total, default deny; deny over ask over allow (A-1).

Owns the rules as values, their compilation and ``decide``. Not in here: the policy's text
(``document``), canonical forms (``address``), and carrying out what was decided.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import hashlib
import json
import re
import zoneinfo
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from goclaw._fast import rules as native
from goclaw.core import limits
from goclaw.core.decisions import (
    ACTIONS,
    Action,
    Context,
    Decision,
    Origin,
    ResourceForm,
    Subject,
    SubjectKind,
    Taint,
    Verdict,
)
from goclaw.core.states import EffectClass
from goclaw.policy import address

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    _Entry = tuple[int, int, int, int, int, int, bytes, int, bytes]

__all__ = [
    "DAYS",
    "DEFAULT",
    "MALFORMED",
    "Conditions",
    "Explanation",
    "Near",
    "Policy",
    "Rate",
    "ResourceKind",
    "ResourcePattern",
    "Rule",
    "SubjectPattern",
    "Window",
    "compile_policy",
    "decide",
    "explain",
    "resource_texts",
]

DEFAULT: Final = "(default)"
MALFORMED: Final = "(malformed)"
"""``rule_id`` of decisions that no rule made; a rule's own id cannot hold a parenthesis."""

# Beyond every figure; two digits of Python's integers, which native code reads at once: a third one
# cost 15 ns for each of two figures (2026-11).
_NO_BOUND: Final = 2**60 - 1


class ResourceKind(enum.StrEnum):
    """How a resource pattern is read."""

    EXACT = "exact"
    """That very resource, in canonical form."""
    PREFIX = "prefix"
    """Resources that begin with this text, boundary or not."""
    GLOB = "glob"
    """``*`` is any run without ``/``, ``**`` any run."""
    PATH = "path"
    """That path and everything below it."""
    HOST = "host"
    """That host name and every name below it; ``.`` is every name, and no address."""
    CIDR = "cidr"
    """Literal addresses of that network."""


@dataclasses.dataclass(frozen=True, slots=True)
class ResourcePattern:
    """One line of ``resources``."""

    kind: ResourceKind
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class SubjectPattern:
    """One line of ``subjects``; in ``id`` a ``*`` is any run of characters."""

    kinds: tuple[SubjectKind, ...] = tuple(SubjectKind)
    origins: tuple[Origin, ...] = tuple(Origin)
    id: str = "*"


DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Some hours of some days by the calendar of a zone. One that ends before it begins spans
    midnight, and belongs to the day on which it begins."""

    begin_min: int
    end_min: int
    days: tuple[str, ...] = DAYS
    zone: str = "UTC"

    def holds(self, at_ms: int) -> bool:
        """Is that moment inside? ValueError for one that no calendar has."""
        try:
            moment = datetime.datetime.fromtimestamp(at_ms / 1000, zoneinfo.ZoneInfo(self.zone))
        except (OverflowError, OSError) as error:
            raise ValueError(f"its time is in no calendar: {error}") from None
        minute, day = moment.hour * 60 + moment.minute, moment.weekday()
        if self.begin_min < self.end_min:
            return self.begin_min <= minute < self.end_min and DAYS[day] in self.days
        if minute >= self.begin_min:
            return DAYS[day] in self.days
        return minute < self.end_min and DAYS[day - 1] in self.days


@dataclasses.dataclass(frozen=True, slots=True)
class Rate:
    """So many times within so many seconds."""

    calls: int
    per_s: int


@dataclasses.dataclass(frozen=True, slots=True)
class Conditions:
    """What else must hold; None is no condition."""

    effect_class: tuple[EffectClass, ...] | None = None
    origin: tuple[Origin, ...] | None = None
    interactive: bool | None = None
    tainted: bool | tuple[Taint, ...] | None = None
    """True: any taint. False: none. Labels: all of these."""
    risk_max: int | None = None
    bytes_max: int | None = None
    time: Window | None = None
    rate_max: Rate | None = None
    """Whoever asks for decisions counts (``rates``) and says which rules are used up."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """One rule; ``line`` is where it stands in its document and no part of what it says."""

    id: str
    effect: Verdict
    actions: tuple[str, ...]
    subjects: tuple[SubjectPattern, ...] = (SubjectPattern(),)
    resources: tuple[ResourcePattern, ...] = ()
    """Empty: every resource."""
    conditions: Conditions = Conditions()
    obligations: tuple[str, ...] = ()
    reason: str = ""
    line: int = 0

    def to_json(self) -> dict[str, Any]:
        """The rule in its canonical form, which the policy's version is made from."""
        conditions = {
            field: getattr(self.conditions, field) for field in Conditions.__dataclass_fields__
        }
        return {
            "id": self.id,
            "effect": self.effect,
            "actions": self.actions,
            "subjects": [[one.kinds, one.origins, one.id] for one in self.subjects],
            "resources": [[one.kind, one.text] for one in self.resources],
            "conditions": {
                key: dataclasses.astuple(value) if isinstance(value, Window | Rate) else value
                for key, value in conditions.items()
                if value is not None
            },
            "obligations": self.obligations,
            "reason": self.reason,
        }


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """A compiled policy: immutable, for any thread; running attempts keep the one they began with.

    ``version`` is the SHA-256 of what the rules say; comments and layout do not change it.
    """

    version: str
    rules: tuple[Rule, ...]
    home: str | None
    table: native.Rules = dataclasses.field(repr=False)
    windows: tuple[Window, ...] = ()
    """The different times that rules name; the bit of each that is over is among the facts."""
    rated: Mapping[str, Rate] = dataclasses.field(default_factory=dict)
    """The rules with a rate, by id, in the order of their bits."""


@dataclasses.dataclass(frozen=True, slots=True)
class Near:
    """A rule about this action that did not apply, and which of its parts did not fit."""

    rule: Rule
    misses: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, the rule that made it (None: no rule did), and those that came closest."""

    decision: Decision
    rule: Rule | None
    near: tuple[Near, ...]


# -- facts: each enumerated circumstance is a bit, and a rule forbids those it does not admit ------

_KIND: Final[dict[Any, int]] = {kind: 1 << bit for bit, kind in enumerate(SubjectKind)}
_ORIGIN: Final[dict[Any, int]] = {origin: 1 << bit for bit, origin in enumerate(Origin, 8)}
_CLASSES: Final = (None, *EffectClass)
_CLASS: Final[dict[Any, int]] = {name: 1 << bit for bit, name in enumerate(_CLASSES, 16)}
_INTERACTIVE: Final[dict[Any, int]] = {False: 1 << 24, True: 1 << 25}
_TAINTED: Final[dict[Any, int]] = {False: 1 << 26, True: 1 << 27}
_ABSENT: Final[dict[Any, int]] = {label: 1 << bit for bit, label in enumerate(Taint, 32)}
_CLEAN: Final = _TAINTED[False] | sum(_ABSENT.values())
_WINDOW_BIT: Final = 34
_RATE_BIT: Final = _WINDOW_BIT + limits.POLICY_WINDOWS_MAX
_CODES: Final = {Verdict.ALLOW: native.ALLOW, Verdict.ASK: native.ASK, Verdict.DENY: native.DENY}
_VERDICTS: Final = {code: verdict for verdict, code in _CODES.items()}
_NUMBERS: Final = {name: number for number, name in enumerate(ACTIONS)}

_Key = TypeVar("_Key")


def _except(bits: Mapping[_Key, int], admitted: Iterable[_Key]) -> int:
    """The bits of all the others."""
    kept = set(admitted)
    return sum(bit for key, bit in bits.items() if key not in kept)


def _forbidden(conditions: Conditions) -> int:
    bits = 0
    if conditions.effect_class is not None:
        bits |= _except(_CLASS, conditions.effect_class)
    if conditions.origin is not None:
        bits |= _except(_ORIGIN, conditions.origin)
    if conditions.interactive is not None:
        bits |= _INTERACTIVE[not conditions.interactive]
    if isinstance(conditions.tainted, tuple):
        bits |= sum(_ABSENT[label] for label in conditions.tainted)
    elif conditions.tainted is not None:
        bits |= _TAINTED[not conditions.tainted]
    return bits


def _facts(row: Action, subject: Subject, context: Context) -> int:
    effect_class = context.effect_class
    if effect_class is None and row.effect:
        effect_class = EffectClass.IRREVERSIBLE  # what nobody declared (E-3)
    try:
        bits = _KIND[subject.kind] | _ORIGIN[subject.origin] | _CLASS[effect_class]
        bits |= _INTERACTIVE[context.interactive]
        if not context.taint:
            return bits | _CLEAN
        absent = _ABSENT.copy()
        for label in dict.fromkeys(context.taint):
            del absent[label]
    except (KeyError, TypeError):
        raise ValueError("its subject or context holds a value that does not exist") from None
    return bits | _TAINTED[True] | sum(absent.values())


# -- compilation -----------------------------------------------------------------------------------


def compile_policy(rules: Iterable[Rule], *, home: str | None = None) -> Policy:
    """The rules as one policy. ``home`` is what ``{home}`` stands for; None: nothing at all.

    Raises ValueError for a resource pattern that can match nothing its actions are about.
    """
    kept = tuple(rules)
    windows = tuple(
        dict.fromkeys(rule.conditions.time for rule in kept if rule.conditions.time is not None)
    )
    rated = {
        rule.id: rule.conditions.rate_max for rule in kept if rule.conditions.rate_max is not None
    }
    _check_bits(windows, rated)
    bits = {window: 1 << bit for bit, window in enumerate(windows, _WINDOW_BIT)}
    rate_bits = {name: 1 << bit for bit, name in enumerate(rated, _RATE_BIT)}
    content = {"version": 1, "rules": [rule.to_json() for rule in kept]}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    table = native.Rules(
        [
            entry
            for number, rule in enumerate(kept)
            for entry in _entries(
                number,
                rule,
                home,
                (bits[rule.conditions.time] if rule.conditions.time else 0)
                | rate_bits.get(rule.id, 0),
            )
        ]
    )
    version = hashlib.sha256(text.encode()).hexdigest()
    return Policy(version, kept, home, table, windows, rated)


def _check_bits(windows: Collection[Window], rated: Collection[str]) -> None:
    """Each time and each rate takes a bit of the facts, of which there are 64."""
    for what, found, most in (
        ("different times", windows, limits.POLICY_WINDOWS_MAX),
        ("rules with a rate_max", rated, limits.POLICY_RATES_MAX),
    ):
        if len(found) > most:
            raise ValueError(f"there are more than {most} {what}")


def _entries(number: int, rule: Rule, home: str | None, moment: int) -> Iterator[_Entry]:
    """``moment``: the bits of its time and rate."""
    conditions = rule.conditions
    risk_max = _NO_BOUND if conditions.risk_max is None else conditions.risk_max
    bytes_max = _NO_BOUND if conditions.bytes_max is None else conditions.bytes_max
    forbidden = _forbidden(conditions) | moment
    subjects = [
        (_except(_KIND, one.kinds) | _except(_ORIGIN, one.origins), _id_glob(one.id))
        for one in rule.subjects
    ]
    for action in rule.actions:
        texts = _rule_texts(rule, ACTIONS[action].resource, home)
        for bits, who in subjects:
            for kind, text in texts:
                yield (
                    _CODES[rule.effect], number, _NUMBERS[action], forbidden | bits,
                    risk_max, bytes_max, who, kind, text,
                )  # fmt: skip


def _rule_texts(rule: Rule, form: ResourceForm, home: str | None) -> list[tuple[int, bytes]]:
    if not rule.resources:
        return [(native.PREFIX, b"")]
    return [text for one in rule.resources for text in resource_texts(one, form, home)]


def _id_glob(text: str) -> bytes:
    return re.sub(r"\*+", "**", text).encode()


def resource_texts(
    pattern: ResourcePattern, form: ResourceForm, home: str | None = None
) -> list[tuple[int, bytes]]:
    """What the compiled rules look for: (kind, text) of each entry that the pattern becomes.

    Raises ValueError, saying why, for a pattern that is malformed or never matches ``form``.
    """
    kind, text = pattern.kind, pattern.text
    address.canonical_name(text)
    if form is ResourceForm.PROGRAM:
        form = _program_form(kind, text)
    if kind is ResourceKind.GLOB and len(re.findall(r"\*+", text)) > limits.GLOB_STARS_MAX:
        raise ValueError(f"a glob has at most {limits.GLOB_STARS_MAX} stars")
    if form is ResourceForm.PATH:
        texts = _path_texts(kind, text, home)
    elif form is ResourceForm.ADDRESS:
        texts = _address_texts(kind, text)
    elif kind in _PLAIN:
        texts = [(_PLAIN[kind], text)]
    else:
        raise ValueError(f"{kind} never matches a name: use exact, prefix or glob")
    return [(code, canonical.encode()) for code, canonical in texts]


_PLAIN: Final = {
    ResourceKind.EXACT: native.EXACT,
    ResourceKind.PREFIX: native.PREFIX,
    ResourceKind.GLOB: native.GLOB,
}
_UNTIDY: Final = re.compile(r"//|/\.{1,2}/")


def _program_form(kind: ResourceKind, text: str) -> ResourceForm:
    if kind in (ResourceKind.HOST, ResourceKind.CIDR) or "://" in text:
        return ResourceForm.ADDRESS
    if kind is ResourceKind.PATH or text[0] in "/{":
        return ResourceForm.PATH
    return ResourceForm.NAME


def _path_texts(kind: ResourceKind, text: str, home: str | None) -> list[tuple[int, str]]:
    if kind in (ResourceKind.HOST, ResourceKind.CIDR):
        raise ValueError(f"{kind} never matches a path: use path, exact, prefix or glob")
    base, rest = "", text
    for name, marker in (("{root}", address.ROOT), ("{home}", _home_text(home))):
        if text.startswith(name):
            base, rest = marker, text.removeprefix(name)
    if not (rest.startswith("/") or (base and not rest)):
        raise ValueError("a path starts with /, {root} or {home}, and a placeholder ends at a /")
    if kind in (ResourceKind.PREFIX, ResourceKind.GLOB):
        if _UNTIDY.search(rest):
            raise ValueError("//, /./ and /../ never occur in a path that is decided about")
        if kind is ResourceKind.GLOB and "*" in base:
            raise ValueError("the home's path holds a star, so no glob can be built on it")
        return [(_PLAIN[kind], base + rest)]
    if rest:
        rest = address.canonical_path(rest)
    whole = base + rest if not base or rest != "/" else base
    if kind is ResourceKind.EXACT:
        return [(native.EXACT, whole)]
    return [(native.PREFIX, "/") if whole == "/" else (native.TREE, whole)]


def _home_text(home: str | None) -> str:
    # a home of "/" would turn a rule about the home into one about everything, or nothing
    return address.HOME if home in (None, "/") else address.canonical_path(str(home))


def _address_texts(kind: ResourceKind, text: str) -> list[tuple[int, str]]:
    if kind is ResourceKind.HOST:
        return [(native.TREE, address.host_suffix(text))]
    if kind is ResourceKind.CIDR:
        return [(native.TREE, network) for network in address.network_texts(text)]
    if kind in (ResourceKind.GLOB, ResourceKind.PATH):
        raise ValueError(f"{kind} never matches an address: use host, cidr, prefix or exact")
    if "://" not in text or "?" in text or "#" in text:
        raise ValueError("that is SCHEME://HOST/PATH, without query and fragment")
    return [(_PLAIN[kind], address.canonical_url(text)[0])]


# -- decisions -------------------------------------------------------------------------------------


class _Request(NamedTuple):
    """A request in canonical form, as the compiled rules take it."""

    resource: str
    action: int
    facts: int
    risk: int
    size_bytes: int
    who: bytes
    forms: tuple[bytes, ...]


def decide(
    policy: Policy,
    *,
    subject: Subject,
    action: str,
    resource: str,
    context: Context,
    decision_id: str,
    at_ms: int,
    spent: Collection[str] = (),
) -> Decision:
    """The decision. Never raises for any text or figure: what has no canonical form is denied.

    ``spent``: the ids of rules whose ``rate_max`` is used up at this moment.
    """
    try:
        request = _request(subject, action, resource, context)
        facts = request.facts
        if policy.windows or spent:
            facts |= _moment(policy, at_ms, spent)
    except ValueError as error:
        return Decision(
            decision_id, at_ms, _shown_subject(subject), _shown(action), _shown(_bare(resource)),
            _shown_context(context), Verdict.DENY, MALFORMED, f"malformed request: {error}",
            policy.version, (),
        )  # fmt: skip
    code, number = policy.table.decide(
        request.action, facts, request.risk, request.size_bytes, request.who, request.forms
    )
    if number == native.NO_RULE:
        rule_id = DEFAULT
        obligations: tuple[str, ...] = ()
        reason = f"no rule lets this {subject.kind} from {subject.origin} do {action} here"
    else:
        rule = policy.rules[number]
        rule_id, obligations = rule.id, rule.obligations
        reason = rule.reason or f"rule {rule.id} says {rule.effect}"
    return Decision(
        decision_id, at_ms, subject, action, request.resource, context, _VERDICTS[code], rule_id,
        reason, policy.version, obligations,
    )  # fmt: skip


def _moment(policy: Policy, at_ms: int, spent: Collection[str]) -> int:
    bits = 0
    for bit, window in enumerate(policy.windows, _WINDOW_BIT):
        if not window.holds(at_ms):
            bits |= 1 << bit
    for bit, name in enumerate(policy.rated, _RATE_BIT):
        if name in spent:
            bits |= 1 << bit
    return bits


def _request(subject: Subject, action: str, resource: str, context: Context) -> _Request:
    row = ACTIONS.get(action)
    if row is None:
        raise ValueError("there is no such action")
    for text in (subject.session_id, subject.run_id, subject.task_id, context.args_digest):
        if text is not None:
            address.canonical_name(text)
    canonical, forms = _forms(row.resource, resource, context.roots)
    return _Request(
        canonical,
        _NUMBERS[action],
        _facts(row, subject, context),
        _figure(context.risk),
        _figure(context.bytes),
        address.canonical_name(subject.id).encode(),
        tuple([form.encode() for form in forms]),
    )


def _figure(value: int | None) -> int:
    """Unknown is beyond every bound a rule can state."""
    if value is None:
        return _NO_BOUND
    if not 0 <= value <= limits.FIGURE_MAX:
        raise ValueError("a risk or size is negative or beyond what JSON can carry")
    return value


def _forms(
    form: ResourceForm, resource: str, roots: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """The canonical resource, and the texts it is looked up by."""
    if form is ResourceForm.NAME:
        name = address.canonical_name(resource)
        return name, (name,)
    if form is ResourceForm.PATH or (form is ResourceForm.PROGRAM and resource.startswith("/")):
        path = address.canonical_path(resource)
        return path, address.path_forms(path, _canonical_roots(roots))
    if form is ResourceForm.ADDRESS or "://" in resource:
        url, host = address.canonical_url(resource)
        return url, address.address_forms(url, host)
    name = address.canonical_name(resource)
    return name, (name,)


@functools.lru_cache(maxsize=limits.CONNECTIONS_MAX)
def _canonical_roots(roots: tuple[str, ...]) -> tuple[str, ...]:
    if len(roots) > limits.ROOTS_MAX:
        raise ValueError(f"its session has more than {limits.ROOTS_MAX} roots")
    return tuple([address.canonical_path(root) for root in roots])


def _shown(text: str) -> str:
    """As much of a malformed text as can be stored and sent."""
    return text[: limits.LABEL_CHARS_MAX].encode(errors="replace").decode()


def _bare(resource: str) -> str:
    """A refused URL without its user, password and query: those must not end up in a record."""
    if "://" not in resource:
        return resource
    return re.split(r"[?#]", re.sub(r"://[^/?#]*@", "://", resource), maxsplit=1)[0]


def _shown_label(value: Any) -> Any:
    return value and _shown(str(value))


def _shown_subject(subject: Subject) -> Subject:
    return dataclasses.replace(
        subject,
        kind=_shown_label(subject.kind),
        id=_shown(subject.id),
        origin=_shown_label(subject.origin),
        session_id=_shown_label(subject.session_id),
        run_id=_shown_label(subject.run_id),
        task_id=_shown_label(subject.task_id),
    )


def _shown_context(context: Context) -> Context:
    def figure(value: int | None) -> int | None:
        return value if value is not None and 0 <= value <= limits.FIGURE_MAX else None

    return dataclasses.replace(
        context,
        effect_class=_shown_label(context.effect_class),
        taint=tuple([_shown_label(label) for label in context.taint]),
        risk=figure(context.risk),
        bytes=figure(context.bytes),
        args_digest=_shown_label(context.args_digest),
    )


# -- explanation -----------------------------------------------------------------------------------


def explain(
    policy: Policy,
    *,
    subject: Subject,
    action: str,
    resource: str,
    context: Context,
    decision_id: str,
    at_ms: int,
    spent: Collection[str] = (),
) -> Explanation:
    """The decision, its rule, and the rules about this action that came closest to applying.

    For people: it looks at every rule, so a large policy takes a fraction of a second.
    """
    decision = decide(
        policy, subject=subject, action=action, resource=resource, context=context,
        decision_id=decision_id, at_ms=at_ms, spent=spent,
    )  # fmt: skip
    if decision.rule_id == MALFORMED:
        return Explanation(decision, None, ())
    chosen = next((rule for rule in policy.rules if rule.id == decision.rule_id), None)
    request = _request(subject, action, resource, context)
    near = [
        Near(rule, misses)
        for rule in policy.rules
        if rule is not chosen and action in rule.actions
        if (misses := (*_misses(policy, rule, request, action), *_past(rule, at_ms, spent)))
    ]
    near.sort(key=lambda one: len(one.misses))
    return Explanation(decision, chosen, tuple(near[: limits.POLICY_NEAR_MAX]))


def _past(rule: Rule, at_ms: int, spent: Collection[str]) -> Iterator[str]:
    if rule.conditions.time is not None and not rule.conditions.time.holds(at_ms):
        yield "time"
    if rule.id in spent:
        yield "rate_max"


def _misses(policy: Policy, rule: Rule, request: _Request, action: str) -> Iterator[str]:
    """The parts of a rule that do not fit, by the names they have in the document."""
    conditions, facts = rule.conditions, request.facts
    anybody, anything, free = b"**", (native.PREFIX, b""), (0, _NO_BOUND, _NO_BOUND)
    whos = [
        (native.ALLOW, 0, 0, _except(_KIND, one.kinds) | _except(_ORIGIN, one.origins), *free[1:],
         _id_glob(one.id), *anything)
        for one in rule.subjects
    ]  # fmt: skip
    whats = [
        (native.ALLOW, 0, 1, *free, anybody, *text)
        for text in _rule_texts(rule, ACTIONS[action].resource, policy.home)
    ]
    table = native.Rules([*whos, *whats])
    if table.decide(0, facts, 0, 0, request.who, (b"",))[1] == native.NO_RULE:
        yield "subjects"
    if table.decide(1, 0, 0, 0, b"", request.forms)[1] == native.NO_RULE:
        yield "resources"
    for field in ("effect_class", "origin", "interactive", "tainted"):
        alone = Conditions(**{field: getattr(conditions, field)})
        if facts & _forbidden(alone):
            yield field
    if conditions.risk_max is not None and request.risk > conditions.risk_max:
        yield "risk_max"
    if conditions.bytes_max is not None and request.size_bytes > conditions.bytes_max:
        yield "bytes_max"
