"""Skills: a warm call against the bare engine, and a large file against wc, in one run.

Owns the ratios of P-4. Not in here: compilation, policy, the journal around a call.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
import wasmtime

from goclaw.core.clock import SystemClock
from goclaw.core.processes import Children
from goclaw.skills import cranelift
from goclaw.skills.catalog import Catalog
from goclaw.skills.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

    from goclaw.skills.catalog import Skill

ROUNDS = 7  # interleaved, so that a slow moment of the machine meets both
CALLS = 100
FILE_BYTES = 50_000_000
# The bare engine here is wasmtime with its own WASI, a fresh instance and the same fuel metering,
# but no other limit, no catalog, no check of the output.
WARM_FLOOR = 0.5


class Digests(dict[str, str]):
    """Kept in memory."""

    put = dict.__setitem__


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    folder, clock = tmp_path_factory.mktemp("cache"), SystemClock()
    made = Sandbox(folder, Digests(), clock, Children(folder / "children", clock))
    yield made
    made.close()


def builtin(name: str) -> Skill:
    found = Catalog().get(name)
    assert found is not None
    return found


def medians(contenders: list[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds of one call of each, by the medians of interleaved rounds."""
    measured: list[list[float]] = [[] for _ in contenders]
    for _ in range(ROUNDS):
        for function, results in zip(contenders, measured, strict=True):
            begin = time.perf_counter_ns()
            for _ in range(repeats):
                function()
            results.append((time.perf_counter_ns() - begin) / repeats / 1e9)
    return [statistics.median(results) for results in measured]


def bare_engine(skill: Skill, argv: list[str], path: Path) -> Callable[[], bytes]:
    """The shortest way to run the module with wasmtime's own WASI."""
    engine = cranelift.new_engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    prepared = linker.instantiate_pre(wasmtime.Module(engine, skill.read_module()))

    def call() -> bytes:
        output: list[bytes] = []
        config = wasmtime.WasiConfig()
        config.argv = argv
        config.stdin_file = str(path)
        config.stdout_custom = output.append
        with wasmtime.Store(engine) as store:
            store.set_wasi(config)
            store.set_fuel(10**12)
            store.set_epoch_deadline(1)
            start = prepared.instantiate(store).exports(store)["_start"]
            assert isinstance(start, wasmtime.Func)
            start(store)
        return b"".join(output)

    return call


@pytest.mark.req("P-4", "P-7")
@pytest.mark.parametrize("name", ["word-count", "sha256"])
def test_warm_call(benchmark: BenchmarkFixture, box: Sandbox, tmp_path: Path, name: str) -> None:
    skill, path = builtin(name), tmp_path / "file"
    path.write_bytes(b"one two\n" * 100)
    request = b'{"file": "file"}'

    def ours() -> bytes:
        fd = os.open(path, os.O_RDONLY)
        try:
            return box.call(skill, request, fd).output
        finally:
            os.close(fd)

    bare = bare_engine(skill, [name, request.decode()], path)
    assert ours() == bare()
    our_s, bare_s = medians([ours, bare], CALLS)
    benchmark.extra_info["us a call"] = round(our_s * 1e6)
    benchmark.extra_info["us of the bare engine"] = round(bare_s * 1e6)
    benchmark.extra_info["sandbox : bare engine"] = round(bare_s / our_s, 2)
    run: Any = benchmark.pedantic
    run(ours, rounds=ROUNDS, iterations=CALLS, warmup_rounds=1)
    assert bare_s / our_s >= WARM_FLOOR


@pytest.mark.req("P-4")
def test_word_count_of_50_mb(benchmark: BenchmarkFixture, box: Sandbox, tmp_path: Path) -> None:
    wc = shutil.which("wc")
    assert wc is not None
    skill, path = builtin("word-count"), tmp_path / "file"
    line = b"The quick brown fox jumps over the lazy dog, and then it sleeps.\n"
    path.write_bytes(line * (FILE_BYTES // len(line)))

    def ours() -> dict[str, int]:
        fd = os.open(path, os.O_RDONLY)
        try:
            found: dict[str, int] = json.loads(box.call(skill, b"{}", fd).output)
        finally:
            os.close(fd)
        return found

    def counted(options: str) -> list[int]:
        environment = {**os.environ, "LC_ALL": "C"}
        out = subprocess.run(
            [wc, options, path], capture_output=True, check=True, env=environment
        ).stdout
        return [int(word) for word in out.split()[:-1]]

    found = ours()
    assert [found["lines"], found["words"], found["bytes"]] == counted("-lwc")
    assert [found["lines"], found["bytes"]] == counted("-lc")
    our_s, all_s, lines_s = medians([ours, lambda: counted("-lwc"), lambda: counted("-lc")], 1)
    benchmark.extra_info["MB/s"] = round(path.stat().st_size / our_s / 1e6)
    benchmark.extra_info["word-count : wc -lwc"] = round(all_s / our_s, 1)
    benchmark.extra_info["word-count : wc -lc"] = round(lines_s / our_s, 1)
    run: Any = benchmark.pedantic
    run(ours, rounds=ROUNDS, iterations=1)
