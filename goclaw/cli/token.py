"""`goclaw token rotate`: the token in auth.token.

Owns what is said of it; a token is never printed. Not in here: what a rotation cuts off (gateway).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli.place import Place, home_of

if TYPE_CHECKING:
    import argparse

__all__ = ["rotate"]


def rotate(options: argparse.Namespace) -> int:
    """Put another token in place of the old one, which is dead when this returns."""
    home = home_of(options)
    with Place(home) as client:
        client.rotate_token()
    print(f"A new token is in {home.auth_token}. The old one opens nothing any more.")
    return 0
