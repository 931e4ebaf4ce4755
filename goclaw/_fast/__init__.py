"""The only door to native code: four nouns, or their plain-Python twins.

Owns the choice between the two builds. ``GOCLAW_PURE=1`` forces the twin; a missing compiler at
installation leaves nothing but the twin. Not in here: anything that computes.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["NATIVE", "WHY_PURE", "describe", "frame", "open_writer", "ring", "rules", "writer"]

WHY_PURE: str | None = None
"""None when native code runs, else one sentence for `status` and `doctor`."""

if os.environ.get("GOCLAW_PURE") == "1":
    WHY_PURE = "GOCLAW_PURE=1 is set"
else:
    try:
        from goclaw._fast import frame, ring, rules, writer
    except ImportError as error:
        WHY_PURE = f"the native modules are not built ({error})"

if WHY_PURE is not None:
    from goclaw._pure import frame, ring, rules, writer  # type: ignore[no-redef]

NATIVE: bool = WHY_PURE is None


def describe() -> str:
    """Where the native code lies, or why it does not run."""
    return WHY_PURE or str(writer.__file__)


def open_writer(*arguments: Any, **options: Any) -> Any:
    """A Writer; the native one only if it can speak to apsw's own SQLite, else the twin."""
    global NATIVE, WHY_PURE, writer
    if NATIVE:
        try:
            writer.attach()
        except RuntimeError as error:
            from goclaw._pure import writer as twin

            NATIVE, WHY_PURE = False, str(error)
            writer = twin
    return writer.Writer(*arguments, **options)
