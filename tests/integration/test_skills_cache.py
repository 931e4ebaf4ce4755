"""skills/compile.py: caps of the compiling child, and a cache in which nothing is trusted."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import select
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import skills_support as support
import wasmtime
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.core.errors import SkillCancelled, SkillRefused, StorageFailed
from goclaw.core.processes import MARK
from goclaw.skills import compile as compiling
from goclaw.skills import cranelift
from goclaw.skills.compile import count_functions

ABI = "wasi-command/1"


def module_of(functions: int, body: str = "") -> bytes:
    text = "".join(f"(func (param i32) (result i32) {body} local.get 0)" for _ in range(functions))
    return bytes(wasmtime.wat2wasm(f"(module {text})"))


class Counted:
    """A reader of one module that counts how often it was asked."""

    def __init__(self, module: bytes) -> None:
        self.module = module
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return self.module


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.req("K-5", "G-16")
def test_a_module_is_compiled_once(tmp_path: Path) -> None:
    digests = support.MemoryDigests()
    read = Counted(module_of(1))
    code = support.new_cache(tmp_path / "c", digests).artefact("h", ABI, read)
    assert support.new_cache(tmp_path / "c", digests).artefact("h", ABI, read) == code
    assert (read.count, digests.puts_count, len(entries(tmp_path / "c"))) == (1, 1, 1)
    wasmtime.Module.deserialize(cranelift.new_engine(), code)


@pytest.mark.req("K-5")
def test_the_folder_is_private_again_at_every_compilation(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    support.new_cache(folder, support.MemoryDigests()).artefact("h", ABI, Counted(module_of(1)))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in entries(folder)] == [0o600]


@pytest.mark.req("K-5")
def test_hash_abi_engine_and_settings_are_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = support.MemoryDigests()
    read = Counted(module_of(1))

    def ask(sha256: str, module_abi: str) -> None:
        support.new_cache(tmp_path / "c", digests).artefact(sha256, module_abi, read)

    ask("h", ABI)
    ask("h2", ABI)
    ask("h", "other/1")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    ask("h", ABI)
    monkeypatch.setattr(cranelift, "SETTINGS", (*cranelift.SETTINGS, ("wasm_simd", True)))
    ask("h", ABI)
    assert read.count == len(digests.rows) == 5
    ask("h", ABI)
    assert read.count == 5


@pytest.mark.req("K-5")
@pytest.mark.parametrize("damage", ["cut", "flip", "longer", "gone", "link", "folder", "unknown"])
def test_a_damaged_or_unknown_entry_is_compiled_again(tmp_path: Path, damage: str) -> None:
    digests = support.MemoryDigests()
    cache = support.new_cache(tmp_path / "c", digests)
    read = Counted(module_of(1))
    code = cache.artefact("h", ABI, read)
    (entry,) = entries(tmp_path / "c")
    if damage == "cut":
        entry.write_bytes(code[:-1])
    elif damage == "flip":
        entry.write_bytes(code[:-1] + bytes([code[-1] ^ 1]))
    elif damage == "longer":
        entry.write_bytes(code + b"\0")
    elif damage == "unknown":
        digests.rows.clear()
    else:
        entry.unlink()
    if damage == "link":
        (tmp_path / "elsewhere").write_bytes(code)
        entry.symlink_to(tmp_path / "elsewhere")
    if damage == "folder":
        entry.mkdir()
        with pytest.raises(StorageFailed, match="cannot be written"):
            cache.artefact("h", ABI, read)
        return
    assert cache.artefact("h", ABI, read) == code
    assert read.count == 2
    assert not entry.is_symlink()
    assert cache.artefact("h", ABI, read) == code
    assert read.count == 2


@pytest.mark.req("K-5")
def test_code_of_another_machine_is_compiled_again(tmp_path: Path) -> None:
    digests = support.MemoryDigests()
    skill = support.skill_from_wat(tmp_path, support.command(support.PUT_TEXT))
    box = support.new_sandbox(tmp_path / "c", digests)
    box.prepare(skill)
    box.close()
    (entry,) = entries(tmp_path / "c")
    foreign = b"\x7fELF of another machine"
    entry.write_bytes(foreign)
    (key,) = digests.rows
    digests.rows[key] = hashlib.sha256(foreign).hexdigest()
    box = support.new_sandbox(tmp_path / "c", digests)
    assert box.call(skill, b"{}").output == b"{}"
    assert entry.read_bytes() != foreign
    box.close()


@pytest.mark.req("K-5", "I-5")
def test_the_cache_is_bounded_and_drops_what_rested_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = support.new_cache(tmp_path / "c", support.MemoryDigests())
    read = Counted(module_of(1))
    size = len(cache.artefact("h0", ABI, read))
    monkeypatch.setattr(limits, "WASM_CACHE_BYTES_MAX", 3 * size)
    (first,) = entries(tmp_path / "c")
    for n in range(1, 6):
        for age, path in enumerate(
            sorted(entries(tmp_path / "c"), key=lambda p: p.stat().st_mtime)
        ):
            os.utime(path, (age, age))
        cache.artefact("h0", ABI, read)  # in use: stays, oldest though it is
        cache.artefact(f"h{n}", ABI, read)
        assert first.exists()
        assert len(entries(tmp_path / "c")) == min(n + 1, 3)
    assert read.count == 6


@pytest.mark.req("K-5")
def test_several_askers_wait_for_one_compilation(tmp_path: Path) -> None:
    cache = support.new_cache(tmp_path / "c", support.MemoryDigests())
    read = Counted(module_of(1))
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.artefact("h", ABI, read)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read.count == 1
    assert len(set(found)) == 1
    assert len(found) == 6


@pytest.mark.req("K-6")
def test_a_module_over_a_cap_is_refused_before_it_is_compiled(tmp_path: Path) -> None:
    cache = support.new_cache(tmp_path / "c", support.MemoryDigests())
    large = module_of(1) + b"\0" * limits.WASM_MODULE_BYTES_MAX
    with pytest.raises(SkillRefused, match="more than 8388608"):
        cache.artefact("a", ABI, Counted(large))
    many = module_of(limits.WASM_FUNCTIONS_MAX + 1)
    with pytest.raises(SkillRefused, match="20001 functions"):
        cache.artefact("b", ABI, Counted(many))
    assert not (tmp_path / "c").exists()


@pytest.mark.req("K-6")
def test_compiling_may_take_so_much_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = support.MemoryDigests()
    cache = support.new_cache(tmp_path / "c", digests)
    read = Counted(module_of(4_000, "local.get 0 i32.const 3 i32.mul drop " * 8))
    with monkeypatch.context() as patch:
        patch.setattr(limits, "WASM_COMPILE_MS_MAX", 60)
        with pytest.raises(SkillRefused, match="60 ms of processor time"):
            cache.artefact("h", ABI, read)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "WASM_COMPILE_BYTES_MAX", 64 * limits.MIB)
        with pytest.raises(SkillRefused, match="64 MiB"):
            cache.artefact("h", ABI, read)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "WASM_ARTEFACT_BYTES_MAX", 4 * limits.KIB)
        with pytest.raises(SkillRefused):
            cache.artefact("h", ABI, read)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "WASM_COMPILE_WALL_MS_MAX", 0)
        with pytest.raises(SkillRefused, match="longer than 0 ms"):
            cache.artefact("h", ABI, read)
    # nothing is left behind, and the same module within the caps is fine
    assert entries(tmp_path / "c") == []
    assert not digests.rows
    assert cache.artefact("h", ABI, read)


@pytest.mark.req("K-6")
def test_what_is_no_module_is_refused_with_the_compilers_words(tmp_path: Path) -> None:
    cache = support.new_cache(tmp_path / "c", support.MemoryDigests())
    with pytest.raises(SkillRefused, match="no WebAssembly"):
        cache.artefact("a", ABI, Counted(b"#!/bin/sh\n"))
    with pytest.raises(SkillRefused, match=r"not valid: .*section id"):
        cache.artefact("b", ABI, Counted(b"\0asm\1\0\0\0\x7f\0"))
    assert entries(tmp_path / "c") == []


@pytest.mark.req("K-6", "Q-11")
def test_a_cancel_kills_the_compilation(tmp_path: Path) -> None:
    cache = support.new_cache(tmp_path / "c", support.MemoryDigests())
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(SkillCancelled):
        cache.artefact("h", ABI, Counted(module_of(10)), cancel)
    with cache._compiling, pytest.raises(SkillCancelled):
        cache.artefact("h", ABI, Counted(module_of(10)), cancel)
    assert entries(tmp_path / "c") == []


@pytest.mark.req("K-6", "A-9")
def test_the_child_sees_neither_home_nor_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOCLAW_HOME", "/somewhere")
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    command = [sys.executable, "-ISB", "-c", "import os; print(*os.environ)"]
    child = support.children_of(tmp_path / "c").start(
        command, env=compiling._ENVIRONMENT, cwd="/", stdout=subprocess.PIPE
    )
    seen = child.communicate()[0].decode().split()
    assert set(seen) <= {"LD_LIBRARY_PATH", "LC_CTYPE", "MALLOC_ARENA_MAX", MARK}


PARENT = """
import pathlib, subprocess, sys
from goclaw.core.clock import SystemClock
from goclaw.core.processes import Children
from goclaw.skills import compile as compiling
children = Children(pathlib.Path(sys.argv[1]), SystemClock())
child = children.start(
    compiling._command(), env=compiling._ENVIRONMENT, cwd="/", stdin=0, stdout=subprocess.DEVNULL
)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.req("Q-6")
@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # the child waits for a module that never comes
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path], stdin=reading, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    handle = os.pidfd_open(child)
    capped = str(limits.WASM_ARTEFACT_BYTES_MAX)
    while capped not in Path(f"/proc/{child}/limits").read_text("ascii"):
        assert parent.poll() is None
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert select.select([handle], [], [], 20)[0], "the child lives on"
    for fd in (handle, reading, writing):
        os.close(fd)


def test_counting_functions_reads_headers_only() -> None:
    assert count_functions(module_of(0)) == 0
    assert count_functions(module_of(300)) == 300
    assert count_functions(b"\0asm\1\0\0\0\x03\x05\xff\xff\xff\xff\x0f") == 2**32 - 1


@pytest.mark.req("A-14")
@given(st.binary(max_size=200))
def test_counting_functions_is_total(tail: bytes) -> None:
    for module in (tail, b"\0asm\1\0\0\0" + tail):
        with contextlib.suppress(SkillRefused):
            assert count_functions(module) >= 0
