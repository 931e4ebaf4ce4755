"""The engine's settings, and the program that compiles one module under caps (K-6).

Owns both, so that child and host cannot differ. Not in here: the cache (``compile.py``). It runs
as a file of its own in an isolated interpreter, so it imports nothing of goclaw.
"""

from __future__ import annotations

import resource
import signal
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import wasmtime

__all__ = ["SETTINGS", "main", "new_engine"]

SETTINGS: Final[tuple[tuple[str, bool | int | str], ...]] = (
    ("consume_fuel", True),
    ("epoch_interruption", True),
    ("max_wasm_stack", 512 * 1024),  # core/limits.py: WASM_STACK_BYTES_MAX; a test compares them
    ("cranelift_nan_canonicalization", True),  # the same bits on every machine (K-11)
    ("wasm_relaxed_simd_deterministic", True),
    ("wasm_threads", False),
    ("wasm_memory64", False),
    ("wasm_multi_memory", False),
    ("parallel_compilation", False),  # one thread: the cap on processor time is the cap on time
)


def new_engine() -> wasmtime.Engine:
    """An engine with the house's settings; the first one loads the native library (10 MiB)."""
    import wasmtime

    config = wasmtime.Config()
    for name, value in SETTINGS:
        setattr(config, name, value)
    return wasmtime.Engine(config)


def main(arguments: list[str]) -> int:
    """Module on stdin, artefact on stdout, one line of refusal on stderr.

    ``arguments``: the folder that holds wasmtime; processor milliseconds; bytes of address space;
    bytes of output. The caps are in force before the first byte of the module is read.
    """
    folder, compile_ms, address_bytes, output_bytes = arguments[0], *map(int, arguments[1:])
    sys.path.append(folder)
    import wasmtime

    engine = new_engine()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    if sys.platform != "darwin":  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, compile_ms / 1000)

    module = sys.stdin.buffer.read()
    try:
        artefact = wasmtime.Module(engine, module).serialize()
    except wasmtime.WasmtimeError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    sys.stdout.buffer.write(artefact)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
