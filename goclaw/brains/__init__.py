"""Brains: what decides the next step of a run, and the loop that carries it out.

Owns the choice of a brain by its name. Not in here: the queue (engine), tools (tools, skills).
"""

from __future__ import annotations

from typing import Final

from goclaw.brains.loop import BrainRunner, check_brain
from goclaw.brains.named import NamedBrains
from goclaw.brains.script import load_script

__all__ = ["REPEATABLE", "BrainRunner", "NamedBrains", "check_brain", "load_script"]

REPEATABLE: Final = frozenset({"direct", "script"})
"""Brains that answer the same turn the same way every time, without a network."""
