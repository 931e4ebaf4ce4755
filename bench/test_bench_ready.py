"""From `goclaw serve` to ready, and what an idle daemon holds.

Owns P-5: ready within 3 times the bare import of what the daemon is built on, in the same run; idle
memory under 60 MiB. Not in here: `goclaw run` and the bridge, which have tests of their own.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROUNDS = 7
IDLE_BYTES_MAX = 60 << 20
FLOOR = "import asyncio, apsw, orjson, uvloop, websockets.asyncio.server"


def import_floor() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", FLOOR], check=True)
    return time.perf_counter() - began


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def serve(home: Path) -> tuple[float, int]:
    """Seconds to the ready line, resident bytes then; the daemon is stopped in good order."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "goclaw", "serve", "--home", str(home)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "GOCLAW_HOME": str(home)},
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    elapsed = time.perf_counter() - began
    assert "ready" in line, line
    held = resident_bytes(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    return elapsed, held


@pytest.mark.req("P-5")
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_ready_beside_the_bare_imports(benchmark: Any, tmp_path: Path) -> None:
    """Ready <= 3 times the import floor; idle < 60 MiB."""
    home = tmp_path / "home"
    serve(home)  # the first start makes the home
    floors: list[float] = []
    starts: list[float] = []
    sizes: list[int] = []

    def one_round() -> None:
        floors.append(import_floor())
        elapsed, held = serve(home)
        starts.append(elapsed)
        sizes.append(held)

    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
    ratio = statistics.median(starts) / statistics.median(floors)
    held = statistics.median(sizes)
    benchmark.extra_info.update(
        ready_to_floor=round(ratio, 2),
        ready_ms=round(statistics.median(starts) * 1000),
        idle_mib=round(held / (1 << 20), 1),
    )
    print(benchmark.extra_info)
    assert ratio <= 3
    assert held < IDLE_BYTES_MAX
