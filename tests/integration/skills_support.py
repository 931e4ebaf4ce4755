"""Skills made on the spot from WebAssembly text, and the parts a sandbox needs.

Owns what the skill tests share. Not in here: tests.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from typing import TYPE_CHECKING

import wasmtime

from goclaw.core.clock import SystemClock
from goclaw.core.processes import Children
from goclaw.skills.catalog import Skill, load_skill
from goclaw.skills.compile import ModuleCache
from goclaw.skills.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = """
name = "{name}"
version = "1.0.0"
abi = "wasi-command/1"
sha256 = "{digest}"
description = "made by a test"
effect = "pure"
capabilities = {wants}
input = {{ type = "object" }}
output = {{ type = "object" }}
[limits]
{limits}
"""


class MemoryDigests:
    """The digests of a process that keeps them nowhere; counts what is put."""

    def __init__(self) -> None:
        self.rows: dict[str, str] = {}
        self.puts_count = 0
        self.lock = threading.Lock()

    def get(self, key: str) -> str | None:
        with self.lock:
            return self.rows.get(key)

    def put(self, key: str, digest: str) -> None:
        with self.lock:
            self.rows[key] = digest
            self.puts_count += 1


def new_cache(folder: Path, digests: MemoryDigests) -> ModuleCache:
    return ModuleCache(folder, digests, children_of(folder))


def children_of(folder: Path) -> Children:
    return Children(folder.with_name("children"), SystemClock())


def new_sandbox(cache: Path, digests: MemoryDigests | None = None) -> Sandbox:
    digests = digests if digests is not None else MemoryDigests()
    return Sandbox(cache, digests, SystemClock(), children_of(cache))


def skill_from_bytes(
    folder: Path, module: bytes, limits: str = "", name: str = "made", wants: str = "[]"
) -> Skill:
    place = folder / name
    place.mkdir(exist_ok=True, parents=True)
    (place / "skill.wasm").write_bytes(module)
    digest = hashlib.sha256(module).hexdigest()
    text = MANIFEST.format(name=name, digest=digest, limits=limits, wants=wants)
    (place / "skill.toml").write_text(text, "utf-8")
    return load_skill(place, "installed")


def skill_from_wat(
    folder: Path, wat: str, limits: str = "", name: str = "made", wants: str = "[]"
) -> Skill:
    return skill_from_bytes(folder, bytes(wasmtime.wat2wasm(wat)), limits, name, wants)


# fd_write, fd_read, proc_exit and the page every module below uses; text at 1024, iovec at 16
PRELUDE = """
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read"
    (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (func $put (param $fd i32) (param $at i32) (param $size i32)
    (i32.store (i32.const 16) (local.get $at))
    (i32.store (i32.const 20) (local.get $size))
    (drop (call $fd_write (local.get $fd) (i32.const 16) (i32.const 1) (i32.const 24))))
"""


def command(body: str, *, text: str = "{}", memory: str = "1", more: str = "") -> str:
    """A module whose _start is ``body``; ``text`` lies at 1024, $size is its length."""
    escaped = "".join(f"\\{byte:02x}" for byte in text.encode())
    return f"""(module {PRELUDE}
      (memory (export "memory") {memory})
      (data (i32.const 1024) "{escaped}")
      (global $size i32 (i32.const {len(text.encode())}))
      {more}
      (func (export "_start") {body}))"""


PUT_TEXT = "(call $put (i32.const 1) (i32.const 1024) (global.get $size))"


def run_on_bytes(sandbox: Sandbox, skill: Skill, data: bytes, request: bytes = b"{}") -> bytes:
    """Calls the skill with ``data`` as its file and returns the output."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return sandbox.call(skill, request, file.fileno()).output


def pipe_with(data: bytes) -> int:
    """The reading end of a pipe that holds ``data`` (a few KiB at most) and its end."""
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return reading
