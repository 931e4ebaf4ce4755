"""`goclaw secret`: set, list, rm, rotate. A value is read from a prompt or stdin, never from argv.

Owns the reading of values. Not in here: their keeping (``store.secrets``).
"""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING, Any

from goclaw.cli import show
from goclaw.cli.place import Place, home_of
from goclaw.core import limits
from goclaw.core.errors import UsageError

if TYPE_CHECKING:
    import argparse

__all__ = ["list_secrets", "remove", "rotate", "set_value"]

_METHOD = "_goclaw/admin/secret"


def set_value(options: argparse.Namespace) -> int:
    """Keep a value, bound to hosts and tools."""
    return _keep(options, {"verb": "set", "hosts": options.host, "tools": options.tool})


def rotate(options: argparse.Namespace) -> int:
    """Another value under the same name and bindings."""
    return _keep(options, {"verb": "rotate"})


def _keep(options: argparse.Namespace, params: dict[str, Any]) -> int:
    value = _value(options.name)
    with Place(home_of(options)) as client:
        kept = client.call(_METHOD, {**params, "name": options.name, "value": value})
    if options.json:
        show.json_line(kept)
    else:
        print(f"kept: write {kept['reference'].partition('#')[0]} where its value is to be")
    return 0


def list_secrets(options: argparse.Namespace) -> int:
    """What may be told of each."""
    with Place(home_of(options)) as client:
        found = client.call(_METHOD, {"verb": "list"})["secrets"]
    if options.json:
        for secret in found:
            show.json_line(secret)
        return 0
    show.table(
        ("secret", "reference", "hosts", "tools", "since"),
        (
            (one["name"], one["reference"], " ".join(one["hosts"]), " ".join(one["tools"]),
             one["updatedAt"])
            for one in found
        ),
    )  # fmt: skip
    return 0


def remove(options: argparse.Namespace) -> int:
    """Forget one."""
    with Place(home_of(options)) as client:
        client.call(_METHOD, {"verb": "rm", "name": options.name})
    print(f"removed: {options.name}")
    return 0


def _value(name: str) -> str:
    """A line that nobody sees being typed, or all of stdin without the line break at its end."""
    if sys.stdin is not None and sys.stdin.isatty():
        value = getpass.getpass(f"value of {name}: ")
    else:
        value = sys.stdin.read(limits.SECRET_CHARS_MAX + 2) if sys.stdin is not None else ""
        value = value.removesuffix("\n").removesuffix("\r")
    if not value:
        raise UsageError(
            "There is no value.", hint=f"Type it at the prompt, or: goclaw secret set {name} < FILE"
        )
    return value
