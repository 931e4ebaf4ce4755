"""Redaction on the way of everything that is written: what registered secrets add to it (A-6).

Owns its ceilings. The same redactor without any secret stands beside it, on the same updates, in
interleaved rounds: plain sentences, and JSON as it mostly is, full of escaped quotes and line ends.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from goclaw.policy.redact import Redactor, Registered

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 15
SEED = 7
FEW, MANY = 10, 100
FEW_MAX = 3.0  # ten secrets : none
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
WORDS = [
    "the",
    "agent",
    "looks",
    "at",
    "a",
    "file",
    "of",
    "words",
    "and",
    "says",
    "what",
    "it",
    "has",
    "found",
    "in",
    "it",
    "so",
    "far",
]


def secrets(count: int) -> list[Registered]:
    chance = random.Random(SEED)
    return [
        Registered(f"s{n}", f"{n:012x}", "".join(chance.choices(LETTERS, k=32)))
        for n in range(count)
    ]


def update(size: int, *, escapes: bool) -> bytes:
    chance = random.Random(SEED)
    text = ""
    while len(text) < size:
        text += chance.choice(WORDS)
        text += '\n\t"so"\n' if escapes and chance.random() < 0.1 else " "
    content = {"type": "text", "text": text}
    return orjson.dumps({"sessionUpdate": "agent_message_chunk", "content": content})


@pytest.mark.req("A-6", "P-7")
@pytest.mark.parametrize("size", [400, 4_096, 65_536])
@pytest.mark.parametrize("escapes", [False, True], ids=["plain", "escapes"])
def test_redact(benchmark: BenchmarkFixture, size: int, escapes: bool) -> None:
    data = update(size, escapes=escapes)
    redactors = {count: Redactor(secrets(count)) for count in (0, FEW, MANY)}
    assert all(one.data(data) is data for one in redactors.values()), "nothing to take out"
    times = dict.fromkeys(redactors, float("inf"))
    repeats = max(1, 20_000 // size)
    for _ in range(ROUNDS):
        for count, redactor in redactors.items():
            begin = time.perf_counter_ns()
            for _ in range(repeats):
                redactor.data(data)
            times[count] = min(times[count], (time.perf_counter_ns() - begin) / repeats)
    for count, nanoseconds in times.items():
        benchmark.extra_info[f"{count} secrets, us"] = round(nanoseconds / 1_000, 1)
    benchmark.extra_info[f"{FEW} : none"] = round(times[FEW] / times[0], 2)
    benchmark.extra_info[f"{MANY} : none"] = round(times[MANY] / times[0], 2)
    run: Any = benchmark.pedantic
    run(redactors[FEW].data, args=(data,), rounds=ROUNDS)
    assert times[FEW] <= FEW_MAX * times[0]
