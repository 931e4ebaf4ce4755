"""How a law says that it was broken, and what it is shown.

Owns the exception and the form of an operation. Not in here: any law.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class Broken(SystemExit):
    """A law was broken; the text begins with its id. Nothing that catches errors holds it up."""


def hold(condition: object, law: str, *what: object) -> None:
    """Raise Broken unless the condition holds."""
    if not condition:
        raise Broken(f"{law}: " + " ".join(str(one) for one in what))


@dataclass(frozen=True, slots=True)
class Part:
    """One program of an operation, with its arguments by name."""

    program: str
    given: dict[str, Any]
