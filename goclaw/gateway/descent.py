"""Who was started by this process, however indirectly: A-9 gives such peers nothing of the user's.

Owns the look into the kernel's table of processes, and the adoption of orphans: without it a child
that lets its own parent die would be a stranger's child, and look like the user. Not in here: what
follows from being one (``connection``, ``server``).

Linux tells by /proc, macOS by libproc (untested). Who cannot be told apart counts as a descendant.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
import sys
from typing import Final

__all__ = ["Orphans", "adopt_orphans", "descends", "holds", "peer_pid"]

_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>
_LOCAL_PEERPID: Final = 2  # of macOS: <sys/un.h>
_PROC_PIDTBSDINFO: Final = 3  # of macOS: <sys/proc_info.h>
_BSDINFO_BYTES: Final = 136
_WALKS_MAX: Final = 3  # a parent that dies on the way hands its child on: then the way is another


def peer_pid(peer: socket.socket) -> int:
    """The process that connected a Unix socket; 0 for one of another namespace. OSError."""
    if hasattr(socket, "SO_PEERCRED"):
        found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _uid, _gid = struct.unpack("3i", found)
    else:
        pid = peer.getsockopt(0, _LOCAL_PEERPID)
    return int(pid)


def descends(pid: int) -> bool:
    """True when ``pid`` was started by this process, or nobody can tell; False for this process.

    ProcessLookupError when it has gone.
    """
    own = os.getpid()
    if pid == own:
        return False
    if not _has_children():
        return False
    if pid <= 0:
        return True
    for _ in range(_WALKS_MAX):
        at = pid
        while at > 1:
            parent = _parent(at)
            if parent is None:
                break
            if parent == own:
                return True
            at = parent
        else:
            return False
        if at == pid:
            raise ProcessLookupError(pid)
    return True


def holds(peer: tuple[str, int], own: tuple[str, int]) -> bool:
    """True when a descendant has the far end of a TCP connection open: ``peer`` its address and
    port, ``own`` ours. Reads much of /proc: not for the loop."""
    if not _has_children():
        return False
    inode = _inode(peer, own)
    if inode is None:
        return False  # another machine's
    wanted, parents = f"socket:[{inode}]", _parents()
    found = _descendants(parents)
    theirs = [_descriptors(pid) for pid in found]
    if any(wanted in names for names in theirs if names is not None):
        return True
    if None not in theirs:
        return False
    # One of them hides what it has open: then somebody else has to be seen with it.
    others = (_descriptors(pid) for pid in parents if pid not in found)
    return not any(wanted in names for names in others if names is not None)


def _has_children() -> bool:
    """False spares everybody the walk: most daemons have started nothing most of the time."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _parent(pid: int) -> int | None:
    """None when there is no such process."""
    if sys.platform == "darwin":
        info = ctypes.create_string_buffer(_BSDINFO_BYTES)
        size = ctypes.CDLL(None).proc_pidinfo(pid, _PROC_PIDTBSDINFO, 0, info, _BSDINFO_BYTES)
        return int(struct.unpack_from("=5I", info)[4]) if size == _BSDINFO_BYTES else None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(b")")[2].split()[1])  # the name before it may hold anything


def _parents() -> dict[int, int]:
    """Of every process that can be seen."""
    names = os.listdir("/proc") if os.path.isdir("/proc") else []
    pids = (int(name) for name in names if name.isdigit())
    return {pid: parent for pid in pids if (parent := _parent(pid)) is not None}


def _descendants(parents: dict[int, int]) -> set[int]:
    found, fresh = set[int](), {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh and pid not in found}
        found |= fresh
    return found


def _descriptors(pid: int) -> set[str] | None:
    """What a process has open; None when it may not be seen."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    except (FileNotFoundError, ProcessLookupError):
        return set()  # it has gone
    except PermissionError:
        return None
    return found


def _inode(peer: tuple[str, int], own: tuple[str, int]) -> str | None:
    """Of the socket whose own address is ``peer``, when it is one of this machine."""
    ends = [_as_kernel_writes(*peer), _as_kernel_writes(*own)]
    table = "tcp6" if len(ends[0]) > 16 else "tcp"
    try:
        with open(f"/proc/net/{table}", encoding="ascii") as file:
            for line in file:
                fields = line.split()
                if fields[1:3] == ends:
                    return fields[9]
    except FileNotFoundError:
        pass
    return None


def _as_kernel_writes(host: str, port: int) -> str:
    packed = ipaddress.ip_address(host.partition("%")[0]).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, as long as the process lives.

    Nothing where the kernel has no such thing. Somebody has to call ``Orphans.bury`` then.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Orphans:
    """Buries adopted children. A child of our own is waited for by whoever started it, at once;
    what is still dead at the second look has nobody else."""

    def __init__(self) -> None:
        self._seen: int | None = None

    def bury(self) -> None:
        """One look; to be called again and again, some time apart."""
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None and found.si_pid == self._seen:
                os.waitpid(found.si_pid, os.WNOHANG)
                found = None
        except ChildProcessError:
            found = None
        self._seen = None if found is None else found.si_pid
