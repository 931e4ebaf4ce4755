"""The default policy: what is written to a new home as policy.toml (A-3, U-5).

Owns the text, shipped beside this module as default.toml. Not in here: when it is written.
"""

from __future__ import annotations

import importlib.resources
from typing import Final

__all__ = ["TEXT"]

TEXT: Final[str] = importlib.resources.read_text("goclaw.policy", "default.toml", encoding="utf-8")
"""Read once, at import."""
