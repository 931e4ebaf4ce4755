"""Secrets out of whatever is about to be kept: exactly, by reference, in every spelling (A-6).

Owns the search for registered values (plain, base64, percent, JSON-escaped, cut up by terminal
codes), the kinds that are known by their looks, and the stream that holds back what may become one.
Not in here: where it is applied (``store``, ``engine``, ``core/log``), the values' keeping.

A registered value becomes ``secret:NAME#DIGEST``, which the boundary toward its host can turn back;
any other becomes ``secret:~KIND``, which nobody can.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["REFERENCE", "Held", "Redactor", "Registered", "Stream", "references"]

REFERENCE: Final = re.compile(r"secret:(~?[a-z0-9][a-z0-9._-]{0,63})(?:#([0-9a-f]{12}))?")
"""What stands for a secret: its name, and which value of it was meant."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A secret whose value is looked for. ``digest`` tells its values apart and says nothing."""

    name: str
    digest: str
    value: str

    @property
    def reference(self) -> str:
        """What stands for it."""
        return f"secret:{self.name}#{self.digest}"


def references(text: str) -> list[tuple[str, str | None]]:
    """(name, digest) of every reference in a text; a name with ``~`` is a mask of a kind."""
    return [(found[1], found[2]) for found in REFERENCE.finditer(text)]


# -- spellings -------------------------------------------------------------------------------------

_ANSI: Final = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])"
    rb"|\xc2\x9b[0-?]*[ -/]*[@-~]"
)
_ANSI_BEGUN: Final = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?\Z|\xc2(?:\x9b[0-?]*[ -/]*)?\Z"
)
_PERCENT: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_PERCENT_BEGUN: Final = re.compile(rb"%[0-9A-Fa-f]?\Z")
_HIGH: Final = rb"[dD][89abAB][0-9a-fA-F]{2}"
# half a pair at the very end is not resolved: the other half may be on its way
_ESCAPE: Final = re.compile(
    rb"\\(?:u(%b)\\u([dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|u(?!%b(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z)([0-9a-fA-F]{4})|([\"\\/bfnrt]))" % (_HIGH, _HIGH)
)
_ESCAPE_BEGUN: Final = re.compile(rb"(?:\\u%b)?\\(?:u[0-9a-fA-F]{0,3})?\Z|\\u%b\Z" % (_HIGH, _HIGH))
_NAMED: Final = dict(zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True))
_BASE64: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_")


@dataclass(frozen=True, slots=True)
class _View:
    """A text as it reads when its escapes are resolved, and where each byte of it came from."""

    data: bytes
    places: Sequence[int]
    """One more than ``data`` has bytes: the last is the end of the original."""


def _resolved(
    view: _View, escapes: re.Pattern[bytes], of: Callable[[re.Match[bytes]], bytes]
) -> _View:
    data = view.data
    parts: list[bytes] = []
    places: list[int] = []
    last = 0
    for found in escapes.finditer(data):
        start, end = found.span()
        parts.append(data[last:start])
        places.extend(view.places[last:start])
        made = of(found)
        parts.append(made)
        places.extend([view.places[start]] * len(made))
        last = end
    if last == 0:
        return view
    parts.append(data[last:])
    places.extend(view.places[last:])
    return _View(b"".join(parts), places)


def _unescaped(found: re.Match[bytes]) -> bytes:
    high, low, unit, name = found.groups()
    if name is not None:
        return bytes([_NAMED[name[0]]])
    if unit is not None:
        return chr(int(unit, 16)).encode("utf-8", "surrogatepass")
    return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00).encode()


def _views(data: bytes) -> list[_View]:
    """The text, and as it reads without terminal codes, percent signs and JSON's escapes, these
    also inside each other (JSON in JSON), to a bounded depth."""
    view = _View(data, range(len(data) + 1))
    views = [view]
    for _ in range(limits.REDACT_DEPTH_MAX):
        beside = view
        if b"\x1b" in view.data or b"\xc2\x9b" in view.data:
            beside = _resolved(view, _ANSI, lambda found: b"")
            views += [beside] if beside is not view else []
        if b"%" in beside.data:
            plain = _resolved(beside, _PERCENT, lambda found: bytes([int(found[1], 16)]))
            views += [plain] if plain is not beside else []
        if b"\\" not in view.data:
            break
        below = _resolved(view, _ESCAPE, _unescaped)
        if below is view:
            break
        view = below
        views.append(view)
    return views


def _encoded(value: bytes) -> set[bytes]:
    """What base64 makes of a value wherever it lies in a text: those characters of each of the
    three phases that depend on the value alone."""
    found = set()
    for phase in range(3):
        text = base64.b64encode(b"\0" * phase + value)
        inner = text[-(-8 * phase // 6) : 8 * (phase + len(value)) // 6]
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


# -- kinds that are known by their looks -----------------------------------------------------------

_KINDS: Final[tuple[tuple[str, tuple[bytes, ...], re.Pattern[bytes]], ...]] = tuple(
    (kind, words, re.compile(pattern))
    for kind, words, pattern in (
        ("private-key", (b"PRIVATE KEY",),
         rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
         rb"(?:[^\"-]|-(?!----))*(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)?"),
        ("anthropic", (b"sk-ant-",), rb"\bsk-ant-[A-Za-z0-9_-]{20,}"),
        ("openai", (b"sk-",), rb"\bsk-(?!ant-)(?:proj-|svcacct-|admin-|or-v1-)?[A-Za-z0-9_-]{20,}"),
        ("aws", (b"AKIA", b"ASIA"), rb"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),
        ("github", (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), rb"\bgh[pousr]_[A-Za-z0-9]{20,}"),
        ("github", (b"github_pat_",), rb"\bgithub_pat_[A-Za-z0-9_]{20,}"),
        ("gitlab", (b"glpat-", b"gldt-", b"glrt-"), rb"\bgl(?:pat|dt|rt)-[A-Za-z0-9_.-]{18,}"),
        ("slack", (b"xox",), rb"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
        ("slack", (b"xapp-",), rb"\bxapp-[0-9]-[A-Za-z0-9-]{10,}"),
        ("slack", (b"hooks.slack.com",), rb"hooks\.slack\.com/services/[A-Za-z0-9/]{20,}"),
        ("google", (b"AIza",), rb"\bAIza[A-Za-z0-9_-]{35}"),
        ("google", (b"ya29.",), rb"\bya29\.[A-Za-z0-9_-]{20,}"),
        ("google", (b"GOCSPX-",), rb"\bGOCSPX-[A-Za-z0-9_-]{20,}"),
        ("stripe", (b"_live_", b"_test_"), rb"\b(?:sk|rk|whsec)_(?:live|test)_[A-Za-z0-9]{16,}"),
        ("sendgrid", (b"SG.",), rb"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
        ("npm", (b"npm_",), rb"\bnpm_[A-Za-z0-9]{36}"),
        ("pypi", (b"pypi-",), rb"\bpypi-[A-Za-z0-9_-]{50,}"),
        ("huggingface", (b"hf_",), rb"\bhf_[A-Za-z0-9]{30,}"),
        ("digitalocean", (b"_v1_",), rb"\bdo[opr]_v1_[a-f0-9]{64}"),
        ("docker", (b"dckr_pat_",), rb"\bdckr_pat_[A-Za-z0-9_-]{20,}"),
        ("vault", (b"hvs.",), rb"\bhvs\.[A-Za-z0-9_-]{20,}"),
        ("telegram", (b":AA",), rb"\b[0-9]{8,10}:AA[A-Za-z0-9_-]{33}\b"),
        ("jwt", (b"eyJ",), rb"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
        ("url-password", (b"://",),
         rb"(?<=://)[A-Za-z0-9._%+-]*:[^\s/@:\"'<>{}$*\\]{3,}(?=@[A-Za-z0-9\[])"),
        ("bearer", (b"earer ", b"asic "),
         rb"(?<=[Bb]earer )(?=[A-Za-z._~+/-]*[0-9])[A-Za-z0-9._~+/-]{16,}=*"
         rb"|(?<=[Bb]asic )(?=[A-Za-z+/]*[0-9])[A-Za-z0-9+/]{12,}=*"),
    )
)  # fmt: skip
# Any of their words, in one pass: for what is mostly written, a few hundred bytes, a third of the
# time of looking for each (2026-11).
_SIGNS: Final = re.compile(b"|".join(re.escape(word) for _, words, _ in _KINDS for word in words))
_SHORT_BYTES: Final = 4_096
# NAME = VALUE, where the name says that it is a secret and the value looks made up.
_ASSIGNED: Final = re.compile(
    rb"(?i:(?<![a-z0-9#])(?:[a-z0-9]+[_.-])*(?:password|passwd|pwd|secret|token|api_?-?key|apikey|"
    rb"access_?key|secret_?key|auth_?key|private_?key|client_?secret))"
    rb"(?:\\?[\"'])?\s*(?:=|:|=>|:=)\s*(\\?[\"'])?([^\s\"'\\,;(){}<>\[\]]{8,})(?(1)\1)"
)
_NAMES: Final = (b"passw", b"pwd", b"secret", b"token", b"key")
_SAID: Final = re.compile(rb"secret:~?[a-z0-9][a-z0-9._-]*(?:#[0-9a-f]{12})?")


def _looks_made_up(value: bytes) -> bool:
    """Letters and digits in no order that a person, a program or a path would write."""
    if value.startswith((b"$", b"/", b"./", b"http", b"{{", b"%", b"file:")):
        return False
    digits = sum(char in b"0123456789" for char in value)
    letters = sum(chr(char).isalpha() for char in value)
    kinds = len({*value})
    if digits == 0 or letters == 0 or kinds < 7:
        return False
    if re.fullmatch(rb"[a-z_]+[0-9]{0,2}|[0-9a-f-]{36}|[\w.]+\.[a-z_]+[0-9]?", value):
        return False  # a name, a UUID, an attribute
    return digits >= 2


class Held:
    """What a redactor has found so far, counted by kind; nothing of it is kept."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()


class Redactor:
    """Looks for the registered values, and for kinds. Immutable but for its counts; any thread."""

    def __init__(self, registered: Iterable[Registered] = (), held: Held | None = None) -> None:
        self.registered = tuple(registered)
        self._held = held or Held()
        needles: dict[bytes, tuple[bytes, bool]] = {}
        for one in self.registered:
            value = one.value.encode("utf-8", "surrogatepass")
            reference = one.reference.encode()
            needles[value] = (reference, False)
            for form in _encoded(value):
                needles.setdefault(form, (reference, True))
        # the longest first: where one value holds another, the longer one is named
        self._needles = tuple(sorted(needles.items(), key=lambda item: -len(item[0])))
        # an escape matters when what it stands for is part of one; \u may stand for anything
        letters = frozenset(b"".join(needles))
        self._escapes = (
            b"\\u", *(b"\\%c" % name for name, letter in _NAMED.items() if letter in letters),
        )  # fmt: skip

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind was found."""
        return dict(self._held.counts)

    def text(self, text: str) -> str:
        """The text without secrets."""
        data = text.encode("utf-8", "surrogatepass")
        cleaned = self.data(data)
        return text if cleaned is data else cleaned.decode("utf-8", "surrogatepass")

    def data(self, data: bytes) -> bytes:
        """The bytes without secrets; the same object when there is none. JSON stays JSON."""
        if len(data) < limits.SECRET_CHARS_MIN:
            return data
        cleaned = self._without_registered(data) if self._needles else data
        return self._without_kinds(cleaned)

    def stream(self) -> Stream:
        """For a text that comes in pieces."""
        return Stream(self)

    # -- registered values ---------------------------------------------------------------------

    def _spans(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """(start, end, reference) of what is found, in the original; in order, not overlapping."""
        found: list[tuple[int, int, bytes]] = []
        for view in _views(data):
            for needle, (reference, is_base64) in self._needles:
                start = view.data.find(needle)
                while start >= 0:
                    end = start + len(needle)
                    if is_base64:  # the characters beside it hold some of its bits
                        start -= start > 0 and view.data[start - 1] in _BASE64
                        end += end < len(view.data) and view.data[end] in _BASE64
                    found.append((view.places[start], view.places[end], reference))
                    start = view.data.find(needle, end)
        found.sort(key=lambda span: (span[0], -span[1]))
        kept: list[tuple[int, int, bytes]] = []
        for start, end, reference in found:
            if kept and start < kept[-1][1]:
                kept[-1] = (kept[-1][0], max(end, kept[-1][1]), kept[-1][2])
            else:
                kept.append((start, end, reference))
        return kept

    def _may_hold(self, data: bytes) -> bool:
        """Quick: False for a text without any of them and without an escape that could be of one.
        JSON in JSON is no exception: what becomes such an escape has its two letters already."""
        for needle, _found in self._needles:
            if needle in data:
                return True
        if b"\\" in data:
            for escape in self._escapes:
                if escape in data:
                    return True
        if b"\x1b" in data or b"\xc2\x9b" in data:
            return True
        return b"%" in data and _PERCENT.search(data) is not None

    def _without_registered(self, data: bytes) -> bytes:
        if not self._may_hold(data):
            return data
        spans = self._spans(data)
        if not spans:
            return data
        self._held.counts["registered"] += len(spans)
        parts, last = [], 0
        for start, end, reference in spans:
            start, end = max(last, _token_start(data, start)), _token_end(data, end)
            parts += [data[last:start], reference]
            last = end
        cleaned = b"".join([*parts, data[last:]])
        if _is_json(data) and not _is_json(cleaned):
            # a number, or a value across JSON's own signs
            found = json.loads(data, parse_int=_Number, parse_float=_Number)
            cleaned = json.dumps(self._walked(found), ensure_ascii=False).encode()
        return cleaned

    def _walked(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self.text(name): self._walked(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._walked(item) for item in value]
        if isinstance(value, _Number):
            spans = self._spans(value.encode())
            return spans[0][2].decode() if spans else json.loads(value)
        if isinstance(value, str):
            return self.text(value)
        return value

    # -- kinds ---------------------------------------------------------------------------------

    def _without_kinds(self, data: bytes) -> bytes:
        none = len(data) < _SHORT_BYTES and _SIGNS.search(data) is None
        for kind, words, pattern in () if none else _KINDS:
            for word in words:
                if word in data:
                    data = self._masked(data, kind, pattern)
                    break
        lowered = data.lower()
        for name in _NAMES:
            if name in lowered:
                return self._assigned(data)
        return data

    def _masked(self, data: bytes, kind: str, pattern: re.Pattern[bytes]) -> bytes:
        cleaned, count = pattern.subn(f"secret:~{kind}".encode(), data)
        if count:
            self._held.counts[kind] += count
        return cleaned if count else data

    def _assigned(self, data: bytes) -> bytes:
        parts, last = [], 0
        for found in _ASSIGNED.finditer(data):
            said = _SAID.search(data, found.start(), found.end())
            if said is None and _looks_made_up(found[2]):
                parts += [data[last : found.start(2)], b"secret:~assigned"]
                last = found.end(2)
        if not parts:
            return data
        self._held.counts["assigned"] += len(parts) // 2
        return b"".join([*parts, data[last:]])

    # -- streams -------------------------------------------------------------------------------

    def safe_length(self, data: bytes) -> int:
        """How much of a text can be given on: no registered value, in any spelling, begins in it
        and ends behind it."""
        cut = len(data)
        for view in _views(data):
            end = len(view.data)
            for begun in (_ANSI_BEGUN, _PERCENT_BEGUN, _ESCAPE_BEGUN):
                found = begun.search(view.data)
                if found is not None:
                    end = min(end, found.start())
            cut = min(cut, view.places[end])
            for text in {view.data, view.data[:end]}:
                for needle, (_reference, is_base64) in self._needles:
                    size = _overlap(text, needle)
                    if size or is_base64:
                        start = len(text) - size
                        start -= bool(is_base64 and start > 0 and size)
                        cut = min(cut, view.places[start])
        for start, end, _reference in self._spans(data):
            if start < cut < end:
                cut = end
        return cut


def _overlap(text: bytes, needle: bytes) -> int:
    """Length of the longest end of ``text`` that begins ``needle`` and is not all of it."""
    for size in range(min(len(text), len(needle) - 1), 0, -1):
        if text.endswith(needle[:size]):
            return size
    return 0


def _token_start(data: bytes, start: int) -> int:
    """The start of the JSON escape that a place lies in."""
    count = 0
    while start - count > 0 and data[start - count - 1] == 0x5C:
        count += 1
    return start - 1 if count % 2 else start


def _token_end(data: bytes, end: int) -> int:
    """The end of the JSON escape that a span broke off in."""
    count = 0
    while end - count > 0 and data[end - count - 1] == 0x5C:
        count += 1
    if count % 2 == 0:
        return end
    rest = re.compile(rb"u[0-9a-fA-F]{4}|.", re.DOTALL).match(data, end)
    return end if rest is None else rest.end()


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return False
    return True


def _no_json(word: str) -> None:
    """NaN and Infinity, which Python would take."""
    raise ValueError(word)


class _Number(str):
    """A number of JSON as it is written: 1.50 is a secret that 1.5 is not."""


class Stream:
    """Cleans a text that comes in pieces. What is given out is never taken back, so the longest
    tail that begins a registered value is held back until the next piece, or the end."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._rest = b""

    @property
    def held(self) -> int:
        """How many bytes are held back."""
        return len(self._rest)

    def feed(self, piece: str) -> str:
        """What can be given on now; perhaps nothing."""
        if not self._redactor.registered:
            return self._redactor.text(piece)
        data = self._rest + piece.encode("utf-8", "surrogatepass")
        cut = self._redactor.safe_length(data)
        if len(data) - cut > limits.REDACT_HELD_BYTES_MAX:
            cut = len(data)
        while cut < len(data) and cut > 0 and data[cut] & 0xC0 == 0x80:
            cut -= 1  # in the middle of a character
        self._rest = data[cut:]
        return self._redactor.data(data[:cut]).decode("utf-8", "surrogatepass")

    def end(self) -> str:
        """What was held back."""
        rest, self._rest = self._rest, b""
        return self._redactor.data(rest).decode("utf-8", "surrogatepass")
