"""Names, places and small files that a person or another program chose, checked before use.

Owns the refusal of what is no text, no place and no regular file: opening a pipe waits for its
writer, a device has no end. Not in here: files of tools, which are opened beneath their session's
roots (``tools/files.py``).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from goclaw.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["absolute", "is_text", "open_to_append", "read_regular", "sync_folder"]


def is_text(name: str) -> bool:
    """False for a path, an argument or a variable whose bytes are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def absolute(path: str | Path = ".") -> str:
    """The whole path, from where the process works; links and what is there are not looked at.

    UsageError when that is nowhere, or a path that could not be sent.
    """
    try:
        whole = os.path.abspath(path)
    except FileNotFoundError:
        raise UsageError("The present directory is gone.", hint="Go to one that exists.") from None
    if not is_text(whole):
        raise UsageError(
            f"The path {whole!a} is not UTF-8 text.", hint="Choose another one, or rename it."
        )
    return whole


def open_to_append(path: Path) -> int:
    """A descriptor of a log, made with mode 0600 where there is none; a pipe is refused.

    Never waits. Raises OSError with a ``strerror`` to show.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _irregular(path) from None
        raise
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return descriptor


def read_regular(path: Path, bytes_max: int) -> bytes:
    """The content, of which one byte above ``bytes_max`` is as much as is read.

    Never waits. Raises OSError with a ``strerror`` to show, also for what is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise _irregular(path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(bytes_max + 1)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Put the names in a folder on disk. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _irregular(path: Path) -> OSError:
    return OSError(errno.EINVAL, "It is no regular file", str(path))
