"""Becomes another program, once whoever started it has written down that it exists (Q-6).

Owns what a process can only do to itself: its group, the signal at its parent's death. Not in
here: the record (``processes.py``). It runs as a file of its own in an isolated interpreter, so it
imports nothing of goclaw.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """``arguments``: the descriptor of a socket, then the command.

    Says ``r`` when a group of its own exists and the signal is set, and goes on at ``g``; the end
    of the socket means that the parent is gone. The socket closes when the program has begun; what
    hinders it is said there as four bytes of errno.
    """
    door, command = int(arguments[0]), arguments[1:]
    os.setpgid(0, 0)
    _die_with_parent()
    # asyncio and uvloop may leave the far ends of the pipes open: what outlives the program must
    # not hold its output open
    os.closerange(3, door)
    os.closerange(door + 1, os.sysconf("SC_OPEN_MAX"))
    for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ"):  # this interpreter ignores them
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.write(door, b"r")
        if os.read(door, 1) != b"g":
            return 1
    except OSError:
        return 1
    os.set_inheritable(door, False)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(door, (error.errno or 0).to_bytes(4, "little"))
    return 127


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
