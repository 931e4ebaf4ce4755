"""The terminal UI (U-4): a client of the protocol and nothing more.

Owns the screens. Not in here: anything that another client could not do.
"""

from __future__ import annotations

from goclaw.tui.app import GoclawApp

__all__ = ["GoclawApp"]
