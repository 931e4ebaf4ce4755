"""The command line: one verb, its module, its exit code (SPEC 12).

Owns the edge where every error becomes one sentence on stderr and an exit code. A verb's module is
imported when the verb is used. Not in here: the verbs, the grammar (``grammar.py``).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from goclaw.core.errors import GoclawError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

INTERNAL = 70
INTERRUPTED = 130


def main(
    arguments: Sequence[str] | None = None, *, ready: Callable[[], None] = lambda: None
) -> int:
    """Carry out a command line; the exit code. Never raises, but for ``--help`` and SIGTERM.

    ``ready`` is called when the verb begins: from there on Ctrl-C is KeyboardInterrupt.
    """
    _hold_descriptors()
    try:
        return _carry_out(sys.argv[1:] if arguments is None else arguments, ready)
    except GoclawError as error:
        _tell(str(error))
        return error.exit
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _mute()  # whoever read us has enough
        return 1
    except Exception as error:  # the edge: a fault of ours is one line here and whole in the log
        if isinstance(error, OSError) and _is_of_output(error):
            _mute()
            _tell(f"The output cannot be written: {error.strerror}. Send it where there is room.")
            return 1
        where = _keep(error)
        _tell(f"An internal error: {type(error).__name__}: {error}. {where}")
        return INTERNAL


def _carry_out(arguments: Sequence[str], ready: Callable[[], None]) -> int:
    options = _of_the_bridge(arguments)
    if options is None:
        from goclaw.cli.grammar import parse

        options = parse(arguments)
    module = importlib.import_module(f"goclaw.cli.{options.module}")
    ready()
    code: int = getattr(module, options.function)(options)
    sys.stdout.flush()
    return code


def _of_the_bridge(arguments: Sequence[str]) -> Any:
    """The options of `goclaw acp` where they are plain pairs, as the grammar has them; None for all
    else. An editor waits for this one, and argparse would be a third of its start."""
    names, values = arguments[1::2], arguments[2::2]
    if arguments[:1] != ["acp"] or len(names) != len(values):
        return None
    if not {*names} <= {"--home", "--brain"}:
        return None
    if any(value.startswith("-") or not value.isascii() for value in values):
        return None
    given = dict(zip(names, values, strict=True))
    return SimpleNamespace(
        module="acp", function="acp", home=given.get("--home"), brain=given.get("--brain")
    )


def _hold_descriptors() -> None:
    """Take 0, 1 and 2 where the caller closed them: a socket or a file of ours would get there,
    and whatever is printed into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    if sys.__stdin__ is None:
        sys.stdin = os.fdopen(0)
    if sys.__stdout__ is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.__stderr__ is None:
        sys.stderr = os.fdopen(2, "w")


def _is_of_output(error: OSError) -> bool:
    """True when printing raised it: files have names, sockets are none of this package's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return error.filename is None and f"{where}.".startswith(f"{__name__}.")


def _mute() -> None:
    """Nothing more can be said, not even at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"goclaw: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _keep(error: Exception) -> str:
    """Write the traceback to the home's log, when there is a home; what to tell the user."""
    import traceback

    from goclaw.core.clock import SystemClock, rfc3339
    from goclaw.core.files import open_to_append
    from goclaw.core.home import Home

    try:
        path = Home.locate(None, os.environ).logs / "cli.log"
        with os.fdopen(open_to_append(path), "w", errors="backslashreplace") as file:
            file.write(f"{rfc3339(SystemClock().wall_ms())}\n")
            file.write("".join(traceback.format_exception(error)))
    except (OSError, GoclawError):
        return "Set GOCLAW_HOME to a home that can be written to have the details logged."
    return f"The details are in {path}."
