"""Opening the file that a call names: resolved once, decided on, then opened exactly there.

Owns path resolution and the opening without links. Not in here: whether the path may be read
(policy, by way of the gate).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from goclaw.core import limits
from goclaw.core.errors import InvalidParams

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from goclaw.core.capability import Capability

__all__ = ["Place", "open_place", "real_roots", "resolve", "write_place"]

# openat2(2): one number on every Linux port that Python runs on but alpha.
_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_O_PATH: Final = getattr(os, "O_PATH", 0)


@dataclass(frozen=True, slots=True)
class Place:
    """A path without a link in it, as decided about. ``fault`` says why it cannot be opened."""

    path: str
    bytes: int | None = None
    fault: str | None = None


def real_roots(roots: Sequence[str]) -> tuple[str, ...]:
    """The roots of a session with their links resolved, as the paths beneath them will be."""
    return tuple(dict.fromkeys(os.path.realpath(root) for root in roots))


def resolve(path: str, cwd: str) -> Place:
    """Where ``path`` leads to, links followed; relative ones begin at ``cwd``. Blocks.

    Opens nothing. A path that leads nowhere is answered as far as it goes, with its fault.
    InvalidParams for what is no path at all.
    """
    if not path or "\0" in path or len(path) > limits.PATH_CHARS_MAX:
        raise InvalidParams(
            "The path is empty, too long or holds a NUL.",
            hint=f"A path has 1 to {limits.PATH_CHARS_MAX} characters.",
        )
    try:
        # strings, not Path: what the kernel sees is what is decided about
        found = os.path.realpath(os.path.join(cwd, path))
        facts = os.stat(found)
    except UnicodeEncodeError:
        raise InvalidParams("The path is no text.") from None
    except OSError as error:
        return Place(os.path.realpath(os.path.join(cwd, path)), fault=error.strerror)
    if not stat.S_ISREG(facts.st_mode):
        folder = stat.S_ISDIR(facts.st_mode)
        return Place(found, fault="It is a directory" if folder else "It is no regular file")
    return Place(found, facts.st_size)


def open_place(right: Capability, closed: Collection[tuple[int, int]] = ()) -> int:
    """A descriptor for reading the regular file of a ``fs.read``, in which no link is followed.
    Blocks.

    ``closed``: (device, inode) of files that nobody may open; they are not touched. The caller
    closes the descriptor. OSError when it cannot be opened, or is not what was decided about.
    """
    path = right.use("fs.read")
    handle = _open_beneath_root(path)
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        if (facts.st_dev, facts.st_ino) in closed:
            raise OSError(errno.EACCES, "it is a file of goclaw's own", path)
        if not _O_PATH:
            return os.dup(handle)
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def write_place(right: Capability, data: bytes, closed: Collection[tuple[int, int]] = ()) -> None:
    """Make ``data`` the content of the regular file of a ``fs.write``, in which no link is
    followed; one that there is not is made, its folder is not. Blocks. OSError; see
    ``open_place``."""
    path = right.use("fs.write")
    folder, name = os.path.split(path)
    handle = _open_beneath_root(folder)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o666, dir_fd=handle)
    finally:
        os.close(handle)
    with os.fdopen(descriptor, "wb") as opened:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        if (facts.st_dev, facts.st_ino) in closed:
            raise OSError(errno.EACCES, "it is a file of goclaw's own", path)
        os.ftruncate(descriptor, 0)
        opened.write(data)


def _open_beneath_root(path: str) -> int:
    """A handle that reads nothing yet; every component is a directory or the file, never a link."""
    flags = (_O_PATH or os.O_RDONLY | os.O_NONBLOCK) | os.O_CLOEXEC | os.O_NOFOLLOW
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        beneath = path.lstrip("/")
        handle = _openat2(root, beneath, flags)
        return _walk(root, beneath, flags) if handle is None else handle
    finally:
        os.close(root)


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


def _openat2(root: int, beneath: str, flags: int) -> int | None:
    """None where the kernel (before 5.6) or a seccomp filter does not know the call."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    for _ in range(limits.OPEN_TRIES_MAX):
        handle: int = libc.syscall(
            _OPENAT2, root, os.fsencode(beneath), ctypes.byref(how), ctypes.sizeof(how)
        )
        if handle >= 0:
            return handle
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EPERM):
            return None
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code), f"/{beneath}")
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), f"/{beneath}")


def _walk(root: int, beneath: str, flags: int) -> int:
    """The same by hand: one component after the other, O_NOFOLLOW each time."""
    *folders, name = beneath.split("/")
    here = os.dup(root)
    try:
        for folder in folders:
            step = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            there = os.open(folder, step, dir_fd=here)
            os.close(here)
            here = there
        return os.open(name, flags, dir_fd=here)
    finally:
        os.close(here)
