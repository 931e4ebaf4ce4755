"""The host's side of ``wasi-command/1``: what a module may ask of us while it runs (K-2).

Owns the WASI preview 1 functions: arguments, one input, one output, a log; clock and chance for who
was given them; no file, no environment, no socket. Not in here: engines, limits of the engine
(``sandbox.py``).
"""

from __future__ import annotations

import ctypes
import os
import select
import stat
import struct
from typing import TYPE_CHECKING, Final

from goclaw.core import limits as house
from goclaw.core.errors import (
    SkillHostCallsExceeded,
    SkillLogExceeded,
    SkillOutputExceeded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import wasmtime

    from goclaw.core.clock import Clock
    from goclaw.skills.manifest import Limits

__all__ = ["IMPORTS", "MODULE", "Host", "link"]

MODULE: Final = "wasi_snapshot_preview1"

# errno of WASI preview 1
_SUCCESS, _EBADF, _EFAULT, _EINVAL, _EIO, _ENOSYS, _ESPIPE = 0, 8, 21, 28, 29, 52, 70
_ENOTCAPABLE: Final = 76
_IOVECS_MAX: Final = 1_024  # IOV_MAX of Linux
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_RIGHT_READ, _RIGHT_WRITE = 1 << 1, 1 << 6


class Host:
    """One call's state, and the functions the module may import. Used by one thread.

    ``given``: which of ``abi.HOST_CALLS`` the call holds.

    No function raises: wasmtime keeps one exception for all threads, which would meet the wrong
    call. What must end the call is kept in ``ended`` or ``exit_code``, and ``interrupt`` is
    called, which makes the module trap at its next loop or call; until then it is answered EIO.
    """

    def __init__(
        self,
        *,
        argv: tuple[bytes, ...],
        stdin_fd: int | None,
        limits: Limits,
        clock: Clock,
        interrupt: Callable[[], None],
        given: Collection[str] = (),
    ) -> None:
        self.exit_code: int | None = None
        self.ended: BaseException | None = None
        self.output = bytearray()
        self.log = bytearray()
        self.calls_count = 0
        self.stop_requested = False
        """Set by another thread together with the epoch: a blocked read gives up."""
        self._argv = argv
        self._stdin_fd = stdin_fd
        self._stdin_blocks = stdin_fd is not None and not stat.S_ISREG(os.fstat(stdin_fd).st_mode)
        self._limits = limits
        self._clock = clock
        self._interrupt = interrupt
        self._given = given
        self._memory: wasmtime.Memory | None = None
        self._store: wasmtime.Store | None = None
        self._view = memoryview(b"")

    def attach(self, store: wasmtime.Store, memory: wasmtime.Memory) -> None:
        """Gives the host its instance's memory. Before it every address is a bad one."""
        self._store = store
        self._memory = memory

    def detach(self) -> None:
        """Forgets the memory; to be called before the store is closed. Twice is fine."""
        self._view = memoryview(b"")
        self._store = self._memory = None

    def memory_bytes(self) -> int:
        """The size of the module's memory now; 0 when it has none."""
        self._look_at_memory()
        return len(self._view)

    def enter(self, function: Callable[..., int], arguments: tuple[int, ...]) -> int:
        """Runs one imported function and returns its errno."""
        if self.exit_code is not None or self.ended is not None:
            return _EIO
        self.calls_count += 1
        if self.calls_count > self._limits.host_calls:
            return self._end(
                SkillHostCallsExceeded(
                    f"The skill called the host more than {self._limits.host_calls} times."
                )
            )
        try:
            self._look_at_memory()
            return function(self, *arguments)
        except (struct.error, IndexError):
            return _EFAULT
        except BaseException as error:  # the edge to native code; call() raises it again
            return self._end(error)

    # -- memory --------------------------------------------------------------------------------

    def _look_at_memory(self) -> None:
        """Makes the view cover all of the module's memory. It moves only when it grows, and it
        grows only between two host calls, so its length tells whether to look again.
        """
        if self._memory is None or self._store is None:
            return
        size = self._memory.data_len(self._store)
        if size != len(self._view):
            start = ctypes.addressof(self._memory.data_ptr(self._store).contents)
            array = (ctypes.c_ubyte * size).from_address(start)
            self._view = memoryview(array).cast("B")

    def _slice(self, address: int, size: int) -> memoryview:
        address, size = _u32(address), _u32(size)
        if address + size > len(self._view):
            raise IndexError
        return self._view[address : address + size]

    def _put(self, layout: str, address: int, *values: int) -> None:
        struct.pack_into(layout, self._view, _u32(address), *values)

    def _iovecs(self, address: int, count: int) -> list[memoryview]:
        pairs = self._slice(address, 8 * count)
        found = (self._slice(start, size) for start, size in struct.iter_unpack("<II", pairs))
        return [part for part in found if len(part)]

    # -- endings -------------------------------------------------------------------------------

    def _end(self, error: BaseException) -> int:
        self.ended = error
        self._interrupt()
        return _EIO

    def _proc_exit(self, code: int) -> int:
        self.exit_code = _u32(code)
        self._interrupt()
        return _SUCCESS

    # -- arguments and environment -------------------------------------------------------------

    def _args_sizes_get(self, count: int, size: int) -> int:
        self._put("<I", count, len(self._argv))
        self._put("<I", size, sum(len(argument) + 1 for argument in self._argv))
        return _SUCCESS

    def _args_get(self, pointers: int, buffer: int) -> int:
        at = _u32(buffer)
        for index, argument in enumerate(self._argv):
            self._slice(at, len(argument) + 1)[:] = argument + b"\0"
            self._put("<I", _u32(pointers) + 4 * index, at)
            at += len(argument) + 1
        return _SUCCESS

    def _environ_sizes_get(self, count: int, size: int) -> int:
        self._put("<I", count, 0)
        self._put("<I", size, 0)
        return _SUCCESS

    def _environ_get(self, pointers: int, buffer: int) -> int:
        return _SUCCESS

    # -- the three descriptors -----------------------------------------------------------------

    def _fd_read(self, fd: int, iovecs: int, count: int, got: int) -> int:
        if fd != _STDIN:
            return _EBADF
        if not 0 <= count <= _IOVECS_MAX:
            return _EINVAL
        parts = self._iovecs(iovecs, count)
        self._put("<I", got, 0)
        if self._stdin_fd is None or not parts:
            return _SUCCESS
        if self._stdin_blocks and not self._wait_for_input(self._stdin_fd):
            return _EIO
        try:
            size = os.readv(self._stdin_fd, parts)
        except OSError:
            return _EIO
        self._put("<I", got, size)
        return _SUCCESS

    def _wait_for_input(self, fd: int) -> bool:
        """False when the call is to stop; the epoch does not reach a thread that waits here."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not poll.poll(house.WASM_TICK_MS):
            if self.stop_requested:
                return False
        return True

    def _fd_write(self, fd: int, iovecs: int, count: int, put: int) -> int:
        if fd not in (_STDOUT, _STDERR):
            return _EBADF
        if not 0 <= count <= _IOVECS_MAX:
            return _EINVAL
        parts = self._iovecs(iovecs, count)
        size = sum(map(len, parts))
        if size > _u32(-1):
            return _EINVAL
        target, bound, error = (
            (self.output, self._limits.output_bytes, SkillOutputExceeded)
            if fd == _STDOUT
            else (self.log, self._limits.log_bytes, SkillLogExceeded)
        )
        if len(target) + size > bound:
            name = "stdout" if fd == _STDOUT else "stderr"
            return self._end(error(f"The skill wrote more than {bound} bytes to {name}."))
        for part in parts:
            target += part
        self._put("<I", put, size)
        return _SUCCESS

    def _fd_close(self, fd: int) -> int:
        return _SUCCESS if fd in (_STDIN, _STDOUT, _STDERR) else _EBADF

    def _fd_seek(self, fd: int, offset: int, whence: int, result: int) -> int:
        return _ESPIPE if fd in (_STDIN, _STDOUT, _STDERR) else _EBADF

    def _fd_tell(self, fd: int, result: int) -> int:
        return _ESPIPE if fd in (_STDIN, _STDOUT, _STDERR) else _EBADF

    def _fd_fdstat_get(self, fd: int, result: int) -> int:
        if fd not in (_STDIN, _STDOUT, _STDERR):
            return _EBADF
        # file type 0 (unknown): anything but a terminal, so that output is written in blocks
        self._put("<BxHxxxxQQ", result, 0, 0, _RIGHT_READ if fd == _STDIN else _RIGHT_WRITE, 0)
        return _SUCCESS

    def _fd_prestat_get(self, fd: int, result: int) -> int:
        return _EBADF  # the answer that ends a C library's search for opened folders

    # -- clock and chance ----------------------------------------------------------------------

    def _clock_res_get(self, clock: int, result: int) -> int:
        if "clock" not in self._given:
            return _ENOTCAPABLE
        self._put("<Q", result, 1_000_000)
        return _SUCCESS

    def _clock_time_get(self, clock: int, precision: int, result: int) -> int:
        if "clock" not in self._given:
            return _ENOTCAPABLE
        now_ms = self._clock.wall_ms() if clock == 0 else self._clock.mono_ms()
        self._put("<Q", result, now_ms * 1_000_000)
        return _SUCCESS

    def _random_get(self, buffer: int, size: int) -> int:
        if "random" not in self._given:
            return _ENOTCAPABLE
        into = self._slice(buffer, size)
        into[:] = self._clock.random_bytes(len(into))
        return _SUCCESS

    def _sched_yield(self) -> int:
        return _SUCCESS

    def _not_here(self, *arguments: int) -> int:
        return _ENOSYS


def _u32(value: int) -> int:
    """Addresses and sizes arrive as signed numbers."""
    return value & 0xFFFF_FFFF


# Every function of preview 1, so that a module of any language links; i: i32, I: i64. All return
# an errno except proc_exit. What Host does not have is answered ENOSYS.
IMPORTS: Final[dict[str, str]] = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "iIi",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "fd_advise": "iIIi",
    "fd_allocate": "iII",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "iII",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "iI",
    "fd_filestat_set_times": "iIIi",
    "fd_pread": "iiiIi",
    "fd_prestat_dir_name": "iii",
    "fd_prestat_get": "ii",
    "fd_pwrite": "iiiIi",
    "fd_read": "iiii",
    "fd_readdir": "iiiIi",
    "fd_renumber": "ii",
    "fd_seek": "iIii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiiIIi",
    "path_link": "iiiiiii",
    "path_open": "iiiiiIIii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "ii",
    "sched_yield": "",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}


def link(linker: wasmtime.Linker, current: Callable[[], Host]) -> None:
    """Defines all of IMPORTS in ``linker``; ``current`` says whose call it is."""
    import wasmtime

    kinds = {"i": wasmtime.ValType.i32, "I": wasmtime.ValType.i64}
    for name, parameters in IMPORTS.items():
        results = [] if name == "proc_exit" else [wasmtime.ValType.i32()]
        kind = wasmtime.FuncType([kinds[code]() for code in parameters], results)
        linker.define_func(MODULE, name, kind, _entry(name, current))


def _entry(name: str, current: Callable[[], Host]) -> Callable[..., int | None]:
    function: Callable[..., int] = getattr(Host, f"_{name}", Host._not_here)

    def entry(*arguments: int) -> int | None:
        errno = current().enter(function, arguments)
        return None if name == "proc_exit" else errno

    return entry
