"""An immutable compiled policy in plain Python: the specification of ``goclaw._fast.rules``.

Owns matching and precedence (deny over ask over allow, then the lowest rule number). Not in here:
what the numbers, bits and texts stand for, and bringing them into canonical form.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["ALLOW", "ASK", "DENY", "EXACT", "GLOB", "NO_RULE", "PREFIX", "TREE", "Rules"]

ALLOW: Final = 0
ASK: Final = 1
DENY: Final = 2
"""Effects; the larger wins."""

EXACT: Final = 0
TREE: Final = 1
PREFIX: Final = 2
GLOB: Final = 3
"""What a resource text is: the very text; it or anything below it on a ``/`` boundary; how texts
begin; a pattern, where ``*`` stands for any run without ``/`` and ``**`` for any run."""

NO_RULE: Final = -1

_Entry: TypeAlias = tuple[int, int, int, int, int, int, bytes, int, bytes]
"""(effect, rule, action, forbidden facts, risk_max, bytes_max, subject glob, kind, resource)."""

_Match: TypeAlias = "Callable[[bytes], object] | None"
_Row: TypeAlias = "tuple[int, int, int, int, bytes, _Match, bytes, _Match, tuple[int, int]]"


class Rules:
    """A compiled policy. Immutable, so any thread may ask; construction is O(n log n)."""

    __slots__ = ("_actions", "_count")

    def __init__(self, entries: Iterable[_Entry], /) -> None:
        """Raises ValueError for an effect or kind that does not exist, or a tree without text."""
        ordered = sorted(entries, key=lambda entry: (-entry[0], entry[1]))
        self._count = len(ordered)
        self._actions: dict[int, dict[bytes, list[_Row]]] = {}
        for rank, entry in enumerate(ordered):
            effect, rule, action, forbidden, risk_max, bytes_max, subject, kind, text = entry
            if not (ALLOW <= effect <= DENY and EXACT <= kind <= GLOB and (text or kind != TREE)):
                raise ValueError(
                    f"entry {entry!r} has no such effect or kind, or a tree without text"
                )
            key, head, match = _place(kind, text)
            says = (effect, rule)
            row = (rank, forbidden, risk_max, bytes_max, *_split(subject), head, match, says)
            self._actions.setdefault(action, {}).setdefault(key, []).append(row)

    def __len__(self) -> int:
        return self._count

    def decide(
        self,
        action: int,
        facts: int,
        risk: int,
        size_bytes: int,
        subject: bytes,
        resources: tuple[bytes, ...],
        /,
    ) -> tuple[int, int]:
        """The effect and the rule that decides; ``(DENY, NO_RULE)`` when none applies.

        ``resources`` are the forms of one resource: an entry applies when it fits any of them, no
        bit of ``facts`` is forbidden to it and neither bound is exceeded. Numbers are 0 to 2**63-1.
        """
        best, answer = self._count, (DENY, NO_RULE)
        bucket_of = self._actions.get(action, {}).get
        for form in resources:
            # an entry lies under its own text or under the directory of its literal beginning
            key = form
            while True:
                if bucket := bucket_of(key):
                    for rank, forbidden, risk_max, size_max, who, whom, head, match, says in bucket:
                        if rank >= best:
                            break
                        if (
                            not facts & forbidden
                            and risk <= risk_max
                            and size_bytes <= size_max
                            and form.startswith(head)
                            and subject.startswith(who)
                            and (whom is None or whom(subject))
                            and (match is None or match(form))
                        ):
                            best, answer = rank, says
                            break
                if not key:
                    break
                key = key.rpartition(b"/")[0]
        return answer


def _place(kind: int, text: bytes) -> tuple[bytes, bytes, _Match]:
    """The bucket's key, the literal beginning, and what is left to test."""
    if kind == EXACT:
        return text, text, text.__eq__
    if kind == TREE:
        return text, text, None
    head, match = (text, None) if kind == PREFIX else _split(text)
    return head[: max(head.rfind(b"/"), 0)], head, match


def _split(glob: bytes) -> tuple[bytes, _Match]:
    """The literal beginning of a glob, and the test of the whole; None when that says it all."""
    head, star, tail = glob.partition(b"*")
    if not star:
        return glob, glob.__eq__
    if tail == b"*":
        return head, None
    return head, re.compile(_pattern(glob), re.DOTALL).fullmatch


def _pattern(glob: bytes) -> bytes:
    """The glob as a regular expression. Atomic groups (the earliest fit is as good as any later
    one) keep the time polynomial: without them every star multiplies it by the text's length."""
    *inner, last = [[re.escape(part) for part in run.split(b"*")] for run in glob.split(b"**")]
    pieces = []
    for number, (first, *rest) in enumerate(inner):
        run = first + b"".join(b"(?>[^/]*?%b)" % part for part in rest)
        pieces.append(b"(?>.*?%b)" % run if number else run)
    first, *rest = last
    pieces += [b".*?" if inner else b"", first]
    pieces += [b"(?>[^/]*?%b)" % part for part in rest[:-1]]
    pieces += [b"[^/]*" + part for part in rest[-1:]]
    return b"".join(pieces)
