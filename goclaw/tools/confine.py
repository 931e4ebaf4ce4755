"""Becomes another program that can reach only what it was given: Landlock, seccomp, rlimits (K-1).

Owns what a process does to itself before the program begins. Not in here: what it is given
(``exec``). It runs as a file of its own in an isolated interpreter, so it imports nothing of
goclaw. The calls are made by number: they are the kernel's ABI, and no binding is as old.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import sys
from typing import Any

__all__ = ["REFUSED", "able", "main"]

REFUSED = 125
"""Exit code when the confinement cannot be had; the program has not begun then."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_BITS = _EXECUTE | 1 << 1 | _READ_FILE | 1 << 14 | 1 << 15
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2

# x86-64 and aarch64: (audit arch, socket, and what no tool needs). Of the rest Landlock takes care.
_ARCH: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        41,
        # ptrace, process_vm_*, mount & co., setns, unshare, bpf, perf, keys, kexec, modules,
        # userfaultfd, io_uring (which opens sockets by itself), pidfd_getfd
        (101, 310, 311, 165, 166, 155, 308, 272, 321, 298, 248, 249, 250, 246, 320, 175, 313, 176,
         323, 425, 426, 427, 438, 428, 429, 430, 431, 432, 442),
    ),
    "aarch64": (
        0xC00000B7,
        198,
        (117, 270, 271, 40, 39, 41, 268, 97, 280, 241, 217, 218, 219, 104, 294, 105, 273, 106,
         282, 425, 426, 427, 438, 428, 429, 430, 431, 432, 442),
    ),
}  # fmt: skip
_AF_UNIX = 1


class _Attributes(ctypes.Structure):
    _fields_ = [("handled_fs", ctypes.c_uint64), ("handled_net", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("yes", ctypes.c_uint8),
        ("no", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


def able() -> bool:
    """Can this kernel confine a program? Asks it, and changes nothing."""
    return sys.platform == "linux" and platform.machine() in _ARCH and _landlock_version() >= 1


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _landlock_version() -> int:
    found: int = _libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return found


def main(arguments: list[str]) -> int:
    """``arguments``: what is given, as JSON; the program's path; its argument vector."""
    try:
        given = json.loads(arguments[0])
        for name, bound in given["limits"].items():
            resource.setrlimit(getattr(resource, name), (bound, bound))
        if given["confine"]:
            _check(_libc().prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
            _restrict_files(given["read"], given["write"])
            _restrict_calls()
    except (OSError, ValueError, KeyError, OverflowError) as error:
        print(f"goclaw: not confined: {error}", file=sys.stderr, flush=True)
        return REFUSED
    try:
        os.execv(arguments[1], arguments[2:])
    except OSError as error:
        print(f"goclaw: not confined: {error}", file=sys.stderr, flush=True)
    return REFUSED


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _restrict_files(read: list[str], write: list[str]) -> None:
    """Nothing of the file system but these trees."""
    version = _landlock_version()
    everything = (1 << 13) - 1
    everything |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    attributes = _Attributes(everything, 0b11 if version >= 4 else 0)  # no TCP, either way
    size = 16 if version >= 4 else 8
    libc = _libc()
    ruleset = _check(
        libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0),
        "Landlock",
    )
    for paths, allowed in ((read, _READ), (write, everything)):
        for path in paths:
            try:
                parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            bits = allowed if os.path.isdir(path) else allowed & _FILE_BITS
            beneath = _Beneath(bits & everything, parent)
            _check(
                libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(beneath), 0),
                f"Landlock, {path}",
            )
            os.close(parent)
    _check(libc.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _restrict_calls() -> None:
    """No socket but those of this machine's own kind, and none of the calls that get out."""
    arch, socket, barred = _ARCH[platform.machine()]
    load, equal, greater, answer = 0x20, 0x15, 0x35, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
    lines: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, kill),
        (load, 0, 0, 0), (greater, 0, 1, 0x40000000), (answer, 0, 0, kill),  # x32
    ]  # fmt: skip
    for number in barred:
        lines += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    lines += [
        (equal, 0, 3, socket), (load, 0, 0, 16), (equal, 1, 0, _AF_UNIX), (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]  # fmt: skip
    filters = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    program = _Program(len(lines), filters)
    _check(_libc().prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0), "seccomp")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
