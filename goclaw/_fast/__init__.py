"""The only door to native code: four nouns, or their plain-Python twins.

Owns the choice between the two builds. ``GOCLAW_PURE=1`` forces the twin; a missing compiler at
installation leaves nothing but the twin. Not in here: anything that computes.
"""

from __future__ import annotations

import os

__all__ = ["NATIVE", "WHY_PURE", "frame", "ring", "rules", "writer"]

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
