"""``python -m goclaw.conformance TARGET``: judge a server, print each check, exit 1 when one fails.

Owns the command line. Not in here: the checks.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goclaw.conformance.checks import CHECKS, Kit, Plan
from goclaw.conformance.client import Broken, dial
from goclaw.core.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from goclaw.conformance.checks import Result

__all__ = ["main"]

_FORMS: Final = ("ws://", "wss://", "unix:", "stdio:")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every check passed or was skipped, 1 when one failed, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    target = _target(options.target)
    frames, program = target.startswith("ws"), target.startswith("stdio:")
    try:
        token = _token(options.token_file) if frames else ""
    except (OSError, UnicodeError) as error:
        print(f"conformance: the token cannot be read: {error}", file=sys.stderr)
        return 2
    plan = Plan(
        say=options.say, slow=options.slow, ask=options.ask, trimmed=options.trimmed,
        cwd=options.cwd, deadline_s=options.timeout,
    )  # fmt: skip
    clock = SystemClock()
    kit = Kit(
        dial(target, token), plan, lambda: clock.new_id("kit"), lines=not frames, bridge=program,
        fell=_felling(options.fell) if options.fell else None,
    )  # fmt: skip
    try:
        results = asyncio.run(_judge(kit, options.only))
    except KeyboardInterrupt:
        return 130
    except Broken as broken:
        print(f"conformance: {broken}", file=sys.stderr)
        return 1
    return 1 if _summed_up(results) else 0


async def _judge(kit: Kit, only: list[str]) -> list[Result]:
    await kit.stranger()  # nothing is to be judged where nobody answers
    results = []
    for check in CHECKS:
        if only and check.rule not in only:
            continue
        result = await kit.run(check)
        why = f": {result.why}" if result.why else ""
        print(f"{result.verdict:<4} {check.rule:<5} {check.promise}{why}", flush=True)
        results.append(result)
    return results


def _summed_up(results: Sequence[Result]) -> int:
    counts = {verdict: sum(one.verdict == verdict for one in results)
              for verdict in ("pass", "fail", "skip")}  # fmt: skip
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    return counts["fail"]


def _target(words: list[str]) -> str:
    """The target as it was named; several words, or one of no known form, are a command."""
    if len(words) == 1 and words[0].startswith(_FORMS):
        return words[0]
    return f"stdio:{shlex.join(words)}"


def _felling(command: str) -> Callable[[], Awaitable[None]]:
    async def fell() -> None:
        process = await asyncio.create_subprocess_exec(*shlex.split(command))
        if await process.wait():
            raise Broken(f"the command that kills the server failed: {command}")

    return fell


def _token(name: str | None) -> str:
    home = Path(os.environ.get("GOCLAW_HOME") or "~/.goclaw").expanduser()
    return (Path(name) if name else home / "auth.token").read_text("ascii").strip()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m goclaw.conformance", description=__doc__)
    plan = Plan()
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="+",
        help='ws://HOST:PORT/ws, unix:PATH, "stdio:COMMAND WORDS" or, behind --, COMMAND WORDS',
    )
    parser.add_argument("--token-file", metavar="FILE", help="of ws; else the home's auth.token")
    parser.add_argument(
        "--only", action="append", default=[], metavar="W-N", help="checks of this id; repeatable"
    )
    for name in ("say", "slow", "ask", "trimmed", "fell", "cwd"):
        default = getattr(plan, name, "")
        about = {
            "say": "a prompt with a short answer", "slow": "one that takes a second or more",
            "ask": "one that asks for a permission", "cwd": "the sessions' folder",
            "trimmed": "a session whose first events are no longer kept",
            "fell": "a command that kills the server, which something brings back",
        }[name]  # fmt: skip
        parser.add_argument(
            f"--{name}", default=default, metavar="TEXT", help=f"{about} ({default or 'none'})"
        )
    parser.add_argument(
        "--timeout", type=float, default=plan.deadline_s, metavar="S", help="of each wait"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
