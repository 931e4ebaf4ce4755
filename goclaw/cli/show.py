"""How the command line prints: JSON lines for programs, columns for people.

Owns stdout. Not in here: what is printed.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["is_terminal", "json_line", "one_line", "pairs", "table", "tell"]


def is_terminal() -> bool:
    """True when a person sees stdout."""
    return sys.stdout.isatty()


def json_line(value: Any) -> None:
    """One object on one line, at once."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    sys.stdout.buffer.write(text.encode("utf-8", "replace") + b"\n")
    sys.stdout.buffer.flush()


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell; nothing but the head when there are no rows."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    for row in [list(head), *cells]:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(padded).rstrip())


def pairs(values: dict[str, Any]) -> None:
    """Names and values, one a line."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        print(f"{name.ljust(width)}  {one_line(shown)}")


def one_line(value: Any) -> str:
    """A cell: nothing in it can move the cursor of a terminal."""
    text = "-" if value is None or value == "" else str(value)
    return "".join(char if char.isprintable() else " " for char in text)


def tell(text: str) -> None:
    """A sentence for the person, beside the output."""
    print(f"goclaw: {text}", file=sys.stderr, flush=True)
