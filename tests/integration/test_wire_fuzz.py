"""Fuzz of the session machine: random words of two clients to a real gateway, over both transports.

Whatever comes, each request gets one answer, the connection lives, no handler fails, and at the end
nothing is left behind. GOCLAW_FUZZ_S sets for how long; the seed is printed when it fails. Not in
here: the decoder (``tests/fuzz``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from wire_support import LOOPS, OPTED_IN, Client, House, opened

from goclaw.core.clock import SystemClock
from goclaw.gateway import executors, handlers, operators, work

if TYPE_CHECKING:
    from collections.abc import Callable

FUZZ_MS = int(float(os.environ.get("GOCLAW_FUZZ_S", "3")) * 1000)
SEED = int(os.environ.get("GOCLAW_FUZZ_SEED", "0"))
WORDS = 40  # of one burst; then both sides are asked whether they live
GROWTH_BYTES_MAX = 64 << 20
METHODS = sorted(
    (handlers.METHODS | work.METHODS | operators.METHODS | executors.METHODS).keys()
    # These end the daemon or the connection, close the door, or take long: on purpose.
    - {"_goclaw/admin/shutdown", "_goclaw/admin/token", "_goclaw/admin/stop", "initialize"}
)
SHAPES: list[Any] = [
    None, True, 0, -1, 1, 1.5, 2**53, "", "x", "/", "/tmp", "\u0000", "é" * 200, [], {},
    [[]], {"a": None}, [{"type": "text", "text": "say:hi"}], [{"type": "image"}], "_system",
]  # fmt: skip
PROMPTS = ("say:hi", "chunks:5", "bulk:20x2000", "wait:never", "fail:x", "stop:refusal", "")
JUNK = (
    b"", b"\x00", b"[]", b"{}", b"nul", b'{"jsonrpc":"2.0"}', b"[" * 300, b'"' + b"x" * 5000,
    b'{"jsonrpc":"2.0","id":1,"id":2,"method":"session/list"}', b"\xff\xfe", b"1e999",
)  # fmt: skip


class Fuzzer:
    """One client and what it owes and is owed."""

    def __init__(self, client: Client, chance: random.Random, known: list[Any]) -> None:
        self.client, self._chance, self._known = client, chance, known
        self.sent: dict[Any, str] = {}
        self._next_id = 1_000_000

    async def word(self) -> None:
        chance = self._chance
        kind = chance.random()
        if kind < 0.08:
            await self.client.link.send(chance.choice(JUNK))
        elif kind < 0.14:
            answer = {"id": chance.choice((1, "x", None)), "result": chance.choice(SHAPES)}
            await self.client.send(answer)
        elif kind < 0.2:
            target = {"requestId": chance.choice([*self.sent, 5, None])}
            await self.client.notify("$/cancel_request", target)
        elif kind < 0.26:
            await self.client.notify(chance.choice(("session/cancel", "x", "_x")), self.params())
        elif kind < 0.4:
            blocks = [{"type": "text", "text": chance.choice(PROMPTS)}]
            params = {**self.params(), "sessionId": self.some_id(), "prompt": blocks}
            await self.request("session/prompt", params)
        else:
            await self.request(chance.choice(METHODS), self.params())

    async def request(self, method: str, params: Any) -> None:
        self._next_id += 1
        name = self._chance.choice((self._next_id, f"id-{self._next_id}"))
        self.sent[name] = method
        await self.client.send({"id": name, "method": method, "params": params})

    def params(self) -> dict[str, Any]:
        names = (
            "sessionId", "fromEventId", "limit", "cwd", "mcpServers", "runId", "taskId", "pool",
            "role", "mode", "optionId", "approvalId", "name", "states", "waitMs", "max", "prompt",
            "verb", "leaseToken", "ordinal", "phase", "kind", "requestHash", "update", "tool",
            "arguments", "streamId", "cursor", "outcome", "idempotencyKey", "dryRun", "at",
        )  # fmt: skip
        found = {
            name: self.some_id() if self._chance.random() < 0.5 else self._chance.choice(SHAPES)
            for name in self._chance.sample(names, self._chance.randrange(7))
        }
        found.setdefault("sessionId", self.some_id())
        if "waitMs" in found:
            found["waitMs"] = self._chance.choice((0, 5, -1))
        if self._chance.random() < 0.2:
            keys = self._chance.choice(SHAPES)
            found["_meta"] = {"goclaw": {"idempotencyKey": keys, "fromEventId": 0}}
        return found

    def some_id(self) -> Any:
        return self._chance.choice(self._known)

    async def judged(self) -> None:
        """It lives, and whatever it was told was an answer to something, once."""
        assert not self.client.closed
        await self.client.call("session/list")
        answered: dict[Any, int] = {}
        for message in self.client.messages:
            if "method" in message or message.get("id") not in self.sent:
                continue
            answered[message["id"]] = answered.get(message["id"], 0) + 1
            code = (message.get("error") or {}).get("data", {})
            assert (code or {}).get("name") != "internal", (self.sent[message["id"]], message)
            self.learn(message.get("result"))
        assert set(answered.values()) <= {1}
        for name in answered:
            del self.sent[name]
        self.client.messages.clear()
        self.client.raw.clear()

    def learn(self, result: Any) -> None:
        """Ids that there are: half of the words to come are about them."""
        for name in ("sessionId", "runId", "taskId", "approvalId"):
            if isinstance(result, dict) and isinstance(result.get(name), str):
                self._known.append(result[name])
        del self._known[1:-30]


@pytest.mark.req("A-14", "W-1", "I-5", "W-12")
@pytest.mark.timeout(120 + FUZZ_MS // 500)
def test_no_words_break_the_session_machine(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    seed = SEED or random.SystemRandom().randrange(1 << 32)
    try:
        with asyncio.Runner(loop_factory=LOOPS["uvloop"]) as runner:
            bursts = runner.run(fuzz(home, random.Random(seed)))
    except BaseException:
        print(f"\nGOCLAW_FUZZ_SEED={seed} repeats it")
        raise
    print(f"\n{bursts} bursts of {WORDS} words, seed {seed}")
    broken = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert not broken, broken


async def fuzz(home: Path, chance: random.Random) -> int:
    clock = SystemClock()
    async with opened(home) as house:
        until, bursts, half = clock.mono_ms() + FUZZ_MS, 0, 0
        while clock.mono_ms() < until:
            await burst(house, chance)
            bursts += 1
            if not half and until - clock.mono_ms() < FUZZ_MS // 2:
                half = resident_bytes()
        assert resident_bytes() - half < GROWTH_BYTES_MAX
        async with asyncio.timeout(30):
            probe = await house.unix()
            while house.gateway.connections > 1:
                await probe.call("session/list")
        return bursts


async def burst(house: House, chance: random.Random) -> None:
    """Two clients, their words in any order; then they leave, in the middle of whatever it was."""
    known: list[Any] = ["session_none"]
    makers: list[Callable[..., Any]] = [house.unix, house.ws]
    fuzzers = [
        Fuzzer(await make(**chance.choice(({}, OPTED_IN))), chance, known) for make in makers
    ]
    known.append(await fuzzers[0].client.new_session())
    for _ in range(WORDS):
        await chance.choice(fuzzers).word()
    async with asyncio.timeout(30):
        for fuzzer in fuzzers:
            await fuzzer.judged()
    for fuzzer in fuzzers:
        house.clients.remove(fuzzer.client)
        await fuzzer.client.close()


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_the_shapes_are_json() -> None:
    assert all(orjson.loads(orjson.dumps(shape)) == shape for shape in SHAPES)
