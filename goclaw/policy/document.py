"""policy.toml: read whole, refused with every fault's line, or turned into a Policy (A-3).

Owns the language of the file. Not in here: what the rules decide (``pdp``), where files live and
which policy is active (``daemon``).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
import zoneinfo
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits
from goclaw.core.decisions import (
    ACTIONS,
    OBLIGATIONS,
    ON_UNKNOWN,
    Origin,
    SubjectKind,
    Taint,
    Verdict,
)
from goclaw.core.errors import PolicyRefused
from goclaw.core.states import EffectClass
from goclaw.policy import pdp
from goclaw.policy.lines import Path, locate

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Collection, Iterable

__all__ = ["load"]

_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SYNTAX_LINE: Final = re.compile(r" \(at line (\d+), column \d+\)| \(at end of document\)")
_ADMIN: Final = "admin.*"
_CALL: Final = "protocol.call"
_RULE_KEYS: Final = (
    "id", "effect", "actions", "subjects", "resources", "conditions", "obligations", "on_unknown",
    "reason",
)  # fmt: skip
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
_CONDITIONS: Final = tuple(field.name for field in dataclasses.fields(pdp.Conditions))
_KINDS: Final = tuple(str(kind) for kind in pdp.ResourceKind)


def load(
    text: str,
    *,
    home: str | None = None,
    name: str = "policy.toml",
    methods: Collection[str] | None = None,
) -> pdp.Policy:
    """The policy that the text says. ``home`` is the directory that ``{home}`` stands for.
    ``methods``: all that a rule of ``protocol.call`` can be about; None: whatever it says, as for a
    policy that was accepted once.

    Raises PolicyRefused for anything that is not exactly the language: the message names the first
    faulty line, ``data["problems"]`` lists all of them as ``{"line", "message"}``. Pure, no I/O.
    """
    reader = _Reader(name, home, methods)
    document = reader.parse(text)
    rules = reader.rules(document)
    reader.finish()
    return pdp.compile_policy(rules, home=home)


class _Reader:
    """One reading of one document; collects problems instead of stopping at the first."""

    def __init__(self, name: str, home: str | None, methods: Collection[str] | None) -> None:
        self.name = name
        self.home = home
        self.methods = methods
        self.lines: dict[Path, int] = {}
        self.problems: list[tuple[int, str]] = []

    def parse(self, text: str) -> dict[str, Any]:
        """The TOML document; a text that is none is refused at once."""
        if len(text) > limits.POLICY_BYTES_MAX:
            self.problems.append((1, f"the file is larger than {limits.POLICY_BYTES_MAX} bytes"))
            self.finish()
        document: dict[str, Any] = {}
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = _SYNTAX_LINE.search(str(error))
            line = int(found[1]) if found and found[1] else text.count("\n") + 1
            self.problems.append((line, f"not TOML: {_SYNTAX_LINE.sub('', str(error))}"))
            self.finish()
        except RecursionError:
            self.problems.append((1, "arrays or tables are nested too deeply"))
            self.finish()
        self.lines = locate(text)
        return document

    def finish(self) -> None:
        """Raises PolicyRefused when there was any problem."""
        if not self.problems:
            return
        self.problems.sort(key=lambda problem: problem[0])
        line, message = self.problems[0]
        more = len(self.problems) - 1
        raise PolicyRefused(
            f"{self.name} line {line}: {message}" + (f" (and {more} more)." if more else "."),
            hint="Correct the file; until then the policy in force stays.",
            line=line,
            problems=[{"line": at, "message": what} for at, what in self.problems],
        )

    def problem(self, path: Path, message: str) -> None:
        """Notes a fault at the line of the nearest place on the way to ``path``."""
        while path and path not in self.lines:
            path = path[:-1]
        self.problems.append((self.lines.get(path, 1), message))

    # -- the document ---------------------------------------------------------------------------

    def rules(self, document: dict[str, Any]) -> list[pdp.Rule]:
        self.keys((), document, ("version", "rule"))
        version = document.get("version")
        if type(version) is not int or version != 1:
            self.problem(("version",), "version = 1 is what this program reads")
        tables = document.get("rule", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problem(("rule",), "rules are written as [[rule]]")
            return []
        if len(tables) > limits.POLICY_RULES_MAX:
            self.problem(("rule",), f"there are more than {limits.POLICY_RULES_MAX} rules")
            return []
        rules = [self.rule(("rule", place), table) for place, table in enumerate(tables)]
        seen: dict[str, int] = {}
        for place, rule in enumerate(rules):
            if rule.id in seen:
                at = ("rule", place, "id")
                self.problem(at, f"rule id {rule.id!r} is taken since line {seen[rule.id]}")
            seen.setdefault(rule.id, rule.line)
        self.repeated(rules)
        for what, field, most in (
            ("different times", "time", limits.POLICY_WINDOWS_MAX),
            ("rules with a rate_max", "rate_max", limits.POLICY_RATES_MAX),
        ):
            named = [getattr(rule.conditions, field) for rule in rules]
            found = [one for one in named if one is not None]
            if len(set(found) if field == "time" else found) > most:
                self.problem(("rule",), f"there are more than {most} {what}")
        if sum(map(_entry_count, rules)) > limits.POLICY_ENTRIES_MAX:
            what = f"actions x subjects x resources exceed {limits.POLICY_ENTRIES_MAX}"
            self.problem(("rule",), f"the rules are too many: their {what}")
        return rules

    def rule(self, path: Path, table: dict[str, Any]) -> pdp.Rule:
        self.keys(path, table, _RULE_KEYS)
        identity = table.get("id")
        if not isinstance(identity, str) or not _ID.fullmatch(identity):
            at = (*path, "id")
            self.problem(at, "a rule has an id of up to 64 of a-z, 0-9, '.', '_' and '-'")
            identity = f"rule {path[-1]}"
        if "effect" not in table:
            self.problem(path, "a rule has an effect: allow, ask or deny")
        effect = self.choices((*path, "effect"), table.get("effect", "deny"), Verdict, one=True)
        rule = pdp.Rule(
            id=identity,
            effect=effect[0] if effect else Verdict.DENY,
            actions=self.actions((*path, "actions"), table.get("actions", [])),
            subjects=self.subjects(path, table),
            resources=self.resources(path, table),
            conditions=self.conditions((*path, "conditions"), table.get("conditions", {})),
            obligations=self.obligations(path, table),
            reason=self.text(path, table, "reason") if "reason" in table else "",
            line=self.lines[path],
        )
        self.resource_forms(path, rule)
        denies = rule.effect is Verdict.DENY
        for field in ("risk_max", "bytes_max"):
            if denies and getattr(rule.conditions, field) is not None:
                at = (*path, "conditions", field)
                why = "would lift it for what is worse: bound the allow instead"
                self.problem(at, f"{field} on a deny {why}")
        if denies and rule.obligations:
            self.problem((*path, "obligations"), "nobody carries out a deny: it has no obligations")
        if rule.conditions.rate_max is not None and rule.effect is not Verdict.ALLOW:
            at = (*path, "conditions", "rate_max")
            self.problem(at, "rate_max bounds what an allow lets through; an ask or deny has none")
        return rule

    def repeated(self, rules: list[pdp.Rule]) -> None:
        """Two rules that say the same of the same: one of them can never decide."""
        known: dict[tuple[Any, ...], pdp.Rule] = {}
        for place, rule in enumerate(rules):
            scope = (
                rule.effect, frozenset(rule.actions), frozenset(rule.subjects),
                frozenset(rule.resources), rule.conditions,
            )  # fmt: skip
            other = known.setdefault(scope, rule)
            if other.id != rule.id:
                says = f"{other.id!r} (line {other.line}) says the same of the same"
                self.problem(("rule", place), f"rule {rule.id!r} can never decide: {says}")

    def actions(self, path: Path, value: Any) -> tuple[str, ...]:
        names: list[str] = []
        for place, name in enumerate(self.strings(path, value)):
            if name == _ADMIN:
                names += [known for known in ACTIONS if known.startswith("admin.")]
            elif name in ACTIONS:
                names.append(name)
            else:
                unknown = f"unknown action {name!r}{_guess(name, (*ACTIONS, _ADMIN))}"
                self.problem((*path, place), unknown)
        return tuple(dict.fromkeys(names))

    def subjects(self, path: Path, table: dict[str, Any]) -> tuple[pdp.SubjectPattern, ...]:
        default = pdp.SubjectPattern()
        if "subjects" not in table:
            return (default,)
        patterns = []
        for at, one in self.tables((*path, "subjects"), table["subjects"]):
            self.keys(at, one, ("kind", "origin", "id"))
            if not one:
                self.problem(at, "an empty subject: leave subjects out to mean everybody")
            kinds = self.choices((*at, "kind"), one.get("kind", [*SubjectKind]), SubjectKind)
            origins = self.choices((*at, "origin"), one.get("origin", [*Origin]), Origin)
            who = self.text(at, one, "id") if "id" in one else default.id
            patterns.append(pdp.SubjectPattern(kinds, origins, who))
            if len(re.findall(r"\*+", who)) > limits.GLOB_STARS_MAX:
                self.problem((*at, "id"), f"an id has at most {limits.GLOB_STARS_MAX} stars")
        return tuple(patterns)

    def resources(self, path: Path, table: dict[str, Any]) -> tuple[pdp.ResourcePattern, ...]:
        if "resources" not in table:
            return ()
        patterns = []
        for at, one in self.tables((*path, "resources"), table["resources"]):
            self.keys(at, one, _KINDS)
            kinds = [kind for kind in _KINDS if kind in one]
            if len(kinds) != 1 and len(kinds) == len(one):
                self.problem(at, f"a resource is one of {', '.join(_KINDS)}")
            patterns += [
                pdp.ResourcePattern(pdp.ResourceKind(kind), self.text(at, one, kind))
                for kind in kinds
            ]
        return tuple(patterns)

    def resource_forms(self, path: Path, rule: pdp.Rule) -> None:
        """Each pattern must be able to match what each of the rule's actions is about."""
        forms = dict.fromkeys(ACTIONS[action].resource for action in rule.actions)
        if len(forms) > 1 and rule.resources:
            kinds = " and ".join(forms)
            at = (*path, "resources")
            self.problem(at, f"the actions are about different things ({kinds}): split the rule")
        elif forms:
            for place, pattern in enumerate(rule.resources):
                try:
                    pdp.resource_texts(pattern, next(iter(forms)), self.home)
                except ValueError as error:
                    at = (*path, "resources", place, str(pattern.kind))
                    self.problem(at, f"{pattern.kind} {pattern.text!r}: {error}")
        if self.methods is not None and set(rule.actions) == {_CALL}:
            self.method_names((*path, "resources"), rule, self.methods)

    def method_names(self, path: Path, rule: pdp.Rule, methods: Collection[str]) -> None:
        """Each pattern of a rule about the wire must be able to match one of its methods."""
        for place, pattern in enumerate(rule.resources):
            kind, text = pattern.kind, pattern.text
            fits = _METHOD_FITS.get(kind)  # another kind is named as a fault already
            if fits is not None and not any(fits(text, method) for method in methods):
                at = (*path, place, str(kind))
                self.problem(at, f"no method is {kind} {text!r}{_guess(text, methods)}")

    def conditions(self, path: Path, value: Any) -> pdp.Conditions:
        if not isinstance(value, dict):
            self.problem(path, "conditions are a table")
            return pdp.Conditions()
        self.keys(path, value, _CONDITIONS)
        read: dict[str, Any] = {}
        for field, members in (("effect_class", EffectClass), ("origin", Origin)):
            if field in value:
                read[field] = self.choices((*path, field), value[field], members)
        for field in ("risk_max", "bytes_max"):
            if field in value:
                read[field] = self.figure((*path, field), value[field])
        if "interactive" in value:
            read["interactive"] = value["interactive"]
            if not isinstance(value["interactive"], bool):
                self.problem((*path, "interactive"), "interactive is true or false")
        if isinstance(value.get("tainted"), bool):
            read["tainted"] = value["tainted"]
        elif "tainted" in value:
            read["tainted"] = self.choices((*path, "tainted"), value["tainted"], Taint)
        if "time" in value:
            read["time"] = self.window((*path, "time"), value["time"])
        if "rate_max" in value:
            read["rate_max"] = self.rate((*path, "rate_max"), value["rate_max"])
        return pdp.Conditions(**read)

    def window(self, path: Path, value: Any) -> pdp.Window | None:
        if not isinstance(value, dict):
            self.problem(path, 'time is { from = "08:00", to = "18:00" }, with days and zone')
            return None
        self.keys(path, value, ("from", "to", "days", "zone"))
        minutes: list[int] = []
        for key in ("from", "to"):
            found = _CLOCK.fullmatch(str(value.get(key, "")))
            if found is None:
                self.problem((*path, key), f'{key} is a time of day, "00:00" to "23:59"')
            minutes.append(int(found[1]) * 60 + int(found[2]) if found else len(minutes))
        if minutes[0] == minutes[1]:
            self.problem(path, "a time that begins when it ends is all day or never: leave it out")
        days = tuple(pdp.DAYS)
        if "days" in value:
            named = self.strings((*path, "days"), value["days"])
            for place, name in enumerate(named):
                if name not in pdp.DAYS:
                    known = ", ".join(pdp.DAYS)
                    self.problem((*path, "days", place), f"unknown day {name!r}: one of {known}")
            days = tuple(day for day in pdp.DAYS if day in named)
        zone = self.text(path, value, "zone") if "zone" in value else "UTC"
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            self.problem((*path, "zone"), f"unknown time zone {zone[:80]!r}")
            return None
        return pdp.Window(minutes[0], minutes[1], days, zone)

    def rate(self, path: Path, value: Any) -> pdp.Rate | None:
        if not isinstance(value, dict):
            self.problem(path, "rate_max is { calls = 10, per_s = 60 }")
            return None
        self.keys(path, value, ("calls", "per_s"))
        figures = []
        for key, most in (("calls", limits.RATE_CALLS_MAX), ("per_s", limits.RATE_S_MAX)):
            figure = value.get(key)
            if type(figure) is not int or not 1 <= figure <= most:
                self.problem((*path, key), f"{key} is a whole number from 1 to {most}")
                figure = 1
            figures.append(figure)
        return pdp.Rate(*figures)

    def obligations(self, path: Path, table: dict[str, Any]) -> tuple[str, ...]:
        names: list[str] = []
        plain = [name for name in OBLIGATIONS if name not in ON_UNKNOWN]
        if "obligations" in table:
            at = (*path, "obligations")
            names = self.strings(at, table["obligations"])
            for place, name in enumerate(names):
                if name not in plain:
                    guess = _guess(name, plain)
                    self.problem((*at, place), f"unknown obligation {name!r}{guess}")
        if "on_unknown" in table:
            at, words = (*path, "on_unknown"), table["on_unknown"]
            if words not in ON_UNKNOWN.values():
                self.problem(at, f"on_unknown is one of {', '.join(ON_UNKNOWN.values())}")
            names = [*names, f"on_unknown:{words}"]
        return tuple(names)

    # -- values ---------------------------------------------------------------------------------

    def keys(self, path: Path, table: dict[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                self.problem((*path, key), f"unknown key {key!r}{_guess(key, known)}")

    def text(self, path: Path, table: dict[str, Any], key: str) -> str:
        value = table.get(key, "")
        if not isinstance(value, str) or not 0 < len(value) <= limits.LABEL_CHARS_MAX:
            most = limits.LABEL_CHARS_MAX
            self.problem((*path, key), f"{key} is a text of 1 to {most} characters")
            return "-"
        return value

    def strings(self, path: Path, value: Any) -> list[str]:
        if not isinstance(value, list) or not value or not all(isinstance(x, str) for x in value):
            self.problem(path, f"{path[-1]} is a list of one or more texts")
            return []
        return value

    def choices(
        self, path: Path, value: Any, members: type[enum.StrEnum], *, one: bool = False
    ) -> tuple[Any, ...]:
        """The named members; a single one may stand without brackets."""
        known = [str(member) for member in members]
        if isinstance(value, str):
            value, places = [value], [path]
        elif one:
            self.problem(path, f"{path[-1]} is one of {', '.join(known)}")
            return ()
        else:
            value = self.strings(path, value)
            places = [(*path, place) for place in range(len(value))]
        for at, name in zip(places, value, strict=True):
            if name not in known:
                self.problem(at, f"unknown {path[-1]} {name!r}: one of {', '.join(known)}")
        return tuple(members(name) for name in dict.fromkeys(value) if name in known)

    def tables(self, path: Path, value: Any) -> Iterable[tuple[Path, dict[str, Any]]]:
        if not isinstance(value, list) or not value or not all(isinstance(x, dict) for x in value):
            self.problem(path, f"{path[-1]} is a list of one or more {{ ... }}")
            return []
        return [((*path, place), one) for place, one in enumerate(value)]

    def figure(self, path: Path, value: Any) -> int:
        if type(value) is not int or not 0 <= value <= limits.FIGURE_MAX:
            self.problem(path, f"{path[-1]} is a whole number from 0")
            return 0
        return value


def _entry_count(rule: pdp.Rule) -> int:
    return len(rule.actions) * len(rule.subjects) * max(len(rule.resources), 1)


def _fits(glob: str, method: str) -> bool:
    parts = re.split(r"(\*+)", glob)
    runs = {"*": "[^/]*"}
    pattern = "".join(
        runs.get(part, ".*") if part.startswith("*") else re.escape(part) for part in parts
    )
    return re.fullmatch(pattern, method) is not None


_METHOD_FITS: Final[dict[pdp.ResourceKind, Callable[[str, str], bool]]] = {
    pdp.ResourceKind.EXACT: str.__eq__,
    pdp.ResourceKind.PREFIX: lambda text, method: method.startswith(text),
    pdp.ResourceKind.GLOB: _fits,
}


def _guess(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
