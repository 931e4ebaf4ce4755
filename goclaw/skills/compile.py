"""From module to machine code: a capped child compiles, a cache keeps (K-5, K-6).

Owns the cache folder and the child process. Not in here: the engine's settings
(``cranelift.py``), and loading code into an engine (``sandbox.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NoReturn, Protocol

from goclaw.core import limits
from goclaw.core.errors import InternalError, SkillCancelled, SkillRefused, StorageFailed
from goclaw.skills import cranelift

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from goclaw.core.processes import Children

__all__ = ["Digests", "ModuleCache", "count_functions"]


class Digests(Protocol):
    """Where the digests of compiled code are kept: out of reach of whoever can write the cache."""

    def get(self, key: str) -> str | None:
        """The digest last put under the key, None when there is none. Called on any thread."""

    def put(self, key: str, digest: str) -> None:
        """Keeps the digest; returns when it would be found again. Called on any thread."""


_SLICE_S: Final = 0.05  # of waiting for the child, between two looks at the cancel
_STDERR_BYTES_MAX: Final = 4 * limits.KIB
_ENVIRONMENT: Final = {"MALLOC_ARENA_MAX": "1"}  # one arena saves address space


class ModuleCache:
    """Compiled modules in a folder of mode 0700, keyed by content, ABI, engine and settings.

    Nothing of the folder is trusted: an entry counts only when its bytes have the digest that
    ``digests`` holds, and exactly those bytes are handed out. Safe on any thread; one module is
    compiled at a time.
    """

    def __init__(self, folder: Path, digests: Digests, children: Children) -> None:
        self._folder = folder
        self._digests = digests
        self._children = children
        self._compiling = threading.Lock()
        self._engine = ""

    def artefact(
        self,
        sha256: str,
        module_abi: str,
        read_module: Callable[[], bytes],
        cancel: threading.Event | None = None,
        *,
        renew: bool = False,
    ) -> bytes:
        """The machine code of the module with that hash; ``read_module`` is asked on a miss.

        ``renew`` compiles anew: this machine could not load what the cache holds.
        Blocks while a child compiles. Raises SkillRefused when the module is over a cap or no
        valid WebAssembly, SkillCancelled when ``cancel`` is set meanwhile, StorageFailed when the
        folder cannot be written.
        """
        key = self._key(sha256, module_abi)
        code = None if renew else self._load(key)
        if code is not None:
            return code
        with _held(self._compiling, cancel):
            # another thread may have compiled it while this one waited
            code = None if renew else self._load(key)
            if code is None:
                module = read_module()
                _check_caps(module)
                try:
                    code = self._compile(key, module, cancel)
                except OSError as error:
                    raise StorageFailed(
                        f"The cache of compiled skills cannot be written: {error}.",
                        hint=f"{self._folder} may be removed; it is made anew.",
                    ) from error
            return code

    def _key(self, sha256: str, module_abi: str) -> str:
        if not self._engine:
            version = importlib.metadata.version("wasmtime")
            machine = f"{sys.platform}-{platform.machine()}"
            self._engine = f"wasmtime {version} {machine} {cranelift.SETTINGS!r}"
        text = "\n".join((sha256, module_abi, self._engine))
        return hashlib.sha256(text.encode()).hexdigest()

    def _load(self, key: str) -> bytes | None:
        expected = self._digests.get(key)
        if expected is None:
            return None
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(self._folder / key, flags)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            with open(fd, "rb", closefd=False) as file:
                code = _read_bounded(file)
            if code is None or hashlib.sha256(code).hexdigest() != expected:
                return None
            with contextlib.suppress(OSError):
                os.utime(fd)  # the trim goes by the last use
        finally:
            os.close(fd)
        return code

    def _compile(self, key: str, module: bytes, cancel: threading.Event | None) -> bytes:
        self._open_folder()
        handle, path = tempfile.mkstemp(dir=self._folder)
        try:
            with open(handle, "r+b") as output:
                _run_child(self._children, module, output, cancel)
                output.seek(0)
                code = _read_bounded(output)
            if code is None:
                raise InternalError("The compiler's output is larger than its cap.")
            os.replace(path, self._folder / key)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            raise
        self._digests.put(key, hashlib.sha256(code).hexdigest())
        self._trim(keep=key)
        return code

    def _open_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(self._folder.stat().st_mode) != 0o700:
            self._folder.chmod(0o700)

    def _trim(self, keep: str) -> None:
        """Removes the entries that were not used for longest until the rest is within bounds."""
        entries = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                entries.append((entry.name == keep, status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, _, size, _ in entries)
        for is_kept, _, size, path in sorted(entries):
            if total <= limits.WASM_CACHE_BYTES_MAX or is_kept:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


def count_functions(module: bytes) -> int:
    """How many functions a module defines, read from its section headers alone.

    Raises SkillRefused where the bytes are no WebAssembly module. Bounded by the number of
    sections, whatever the bytes say.
    """
    if module[:8] != b"\0asm\1\0\0\0":
        raise SkillRefused("The module is no WebAssembly 1 binary.")
    at, found = 8, 0
    while at < len(module):
        section = module[at]
        size, start = _unsigned(module, at + 1)
        if section == 3:  # the function section begins with its count
            found += _unsigned(module, start)[0]
        at = start + size
    return found


def _unsigned(module: bytes, at: int) -> tuple[int, int]:
    """A LEB128 number of at most 32 bits and the offset behind it."""
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(module):
            break
        byte = module[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise SkillRefused("The module is cut off or damaged.")


def _check_caps(module: bytes) -> None:
    if len(module) > limits.WASM_MODULE_BYTES_MAX:
        raise SkillRefused(
            f"The module has {len(module)} bytes, more than {limits.WASM_MODULE_BYTES_MAX}."
        )
    functions = count_functions(module)
    if functions > limits.WASM_FUNCTIONS_MAX:
        raise SkillRefused(
            f"The module has {functions} functions, more than {limits.WASM_FUNCTIONS_MAX}."
        )


def _run_child(
    children: Children, module: bytes, output: IO[bytes], cancel: threading.Event | None
) -> None:
    """Compiles ``module`` into ``output``; files, not pipes, so that their size is capped too."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as messages:
        source.write(module)
        source.seek(0)
        process = children.start(
            _command(), env=_ENVIRONMENT, cwd="/", stdin=source, stdout=output, stderr=messages
        )
        try:
            status = _wait(process, cancel)
        finally:
            children.end(process.pid)
            process.wait()
        if status != 0:
            messages.seek(0)
            _refuse(status, messages.read(_STDERR_BYTES_MAX).decode("utf-8", "replace"))


def _command() -> list[str]:
    found = importlib.util.find_spec("wasmtime")
    if found is None or found.origin is None:
        raise InternalError("wasmtime is not installed.", hint="pip install wasmtime")
    return [
        sys.executable,
        "-ISB",
        cranelift.__file__,
        str(Path(found.origin).parent.parent),
        str(limits.WASM_COMPILE_MS_MAX),
        str(limits.WASM_COMPILE_BYTES_MAX),
        str(limits.WASM_ARTEFACT_BYTES_MAX),
    ]


def _wait(process: subprocess.Popen[bytes], cancel: threading.Event | None) -> int:
    waited_s = 0.0
    while waited_s * 1000 < limits.WASM_COMPILE_WALL_MS_MAX:
        if cancel is not None and cancel.is_set():
            raise SkillCancelled("The call was cancelled while its module was compiled.")
        try:
            return process.wait(_SLICE_S)
        except subprocess.TimeoutExpired:
            waited_s += _SLICE_S
    raise SkillRefused(f"Compiling took longer than {limits.WASM_COMPILE_WALL_MS_MAX} ms.")


def _refuse(status: int, message: str) -> NoReturn:
    if status == -signal.SIGPROF:
        raise SkillRefused(
            f"Compiling needs more than {limits.WASM_COMPILE_MS_MAX} ms of processor time."
        )
    if status < 0 or "MemoryError" in message:
        raise SkillRefused(
            f"Compiling needs more than {limits.WASM_COMPILE_BYTES_MAX // limits.MIB} MiB,"
            " or the compiler crashed.",
            signal=-status,
        )
    raise SkillRefused(f"The module is not valid: {message.strip()[: limits.LABEL_CHARS_MAX]}.")


def _read_bounded(file: IO[bytes]) -> bytes | None:
    data = file.read(limits.WASM_ARTEFACT_BYTES_MAX + 1)
    return data if len(data) <= limits.WASM_ARTEFACT_BYTES_MAX else None


@contextlib.contextmanager
def _held(lock: threading.Lock, cancel: threading.Event | None) -> Iterator[None]:
    while not lock.acquire(timeout=_SLICE_S):
        if cancel is not None and cancel.is_set():
            raise SkillCancelled("The call was cancelled before its module was compiled.")
    try:
        yield
    finally:
        lock.release()
