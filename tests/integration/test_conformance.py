"""Proves the conformance kit: goclaw passes it, and no wrong server does.

Owns nothing but the tests. Not in here: the lies (``conformance_liar.py``).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import apsw
import pytest
from conformance_liar import FAULTS, lying
from roof_support import CLOCK, DEADLINE_MS, ROOT, script_file, world
from wire_support import TOKEN, House, opened, wire

from goclaw.conformance import CHECKS, Kit, Plan
from goclaw.conformance.client import dial
from goclaw.conformance.laws import Ledger, Seen

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from goclaw.conformance import Result


async def trimmed(house: House) -> str:
    """A session whose first events are no longer kept."""
    client = await house.unix()
    session = await client.new_session()
    await client.turn(session, "chunks:9")
    with apsw.Connection(str(house.engine.database.path)) as connection:
        connection.execute(
            "UPDATE sessions SET oldest = 5 WHERE session_id = ?1; DELETE FROM events"
            " WHERE event_id < 5 AND sid = (SELECT sid FROM sessions WHERE session_id = ?1)",
            (session, session),
        )  # fmt: skip
    house.engine.hub._channels.clear()
    return session


def broken(results: list[Result]) -> list[tuple[str, str]]:
    return [(one.check.promise, one.why) for one in results if one.verdict != "pass"]


async def judged(
    house: House, target: str, rules: Collection[str] = (), deadline_s: float = 10
) -> list[Result]:
    plan = Plan(
        say="chunks:3", slow="begun wait:kit", ask="ask:may", trimmed=await trimmed(house),
        deadline_s=deadline_s,
    )  # fmt: skip

    async def let_go() -> None:
        while not (gate := house.gates.setdefault("kit", asyncio.Event()))._waiters:
            await house.clients[0].call("session/list")
        house.gates.pop("kit").set()
        assert gate.is_set()

    kit = Kit(
        dial(target, TOKEN), plan, lambda: CLOCK.new_id("kit"), lines=not target.startswith("ws"),
        let_go=let_go,
    )  # fmt: skip
    return [await kit.run(check) for check in CHECKS if not rules or check.rule in rules]


@wire(loops=["uvloop"])
@pytest.mark.req("W-12")
async def test_goclaw_keeps_every_promise_on_its_socket(house: House) -> None:
    assert broken(await judged(house, f"unix:{house.socket}")) == []


@wire(loops=["asyncio"])
@pytest.mark.req("W-12")
async def test_goclaw_keeps_every_promise_on_its_port(house: House) -> None:
    assert broken(await judged(house, f"ws://127.0.0.1:{house.port}/ws")) == []


@pytest.mark.req("W-12")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_server_is_noticed(home: Path, fault: str) -> None:
    liar, rule = FAULTS[fault]

    async def main() -> None:
        async with opened(home) as house:
            target = home / "liar"
            async with lying(target, house.socket, liar):
                results = await judged(house, f"unix:{target}", (rule,), deadline_s=1)
            assert any(one.verdict == "fail" for one in results), fault

    asyncio.run(main())


@pytest.mark.req("W-12")
def test_every_rule_of_the_wire_that_a_server_can_show_has_a_check() -> None:
    assert len({check.promise for check in CHECKS}) == len(CHECKS)
    # W-9 takes a socket that nobody reads for megabytes, W-13 a bridge: test_wire_slow.py and
    # test_bridge_acp.py have them.
    expected = {f"W-{n}" for n in range(1, 13)} - {"W-9"}
    assert {check.rule for check in CHECKS} == expected
    assert {rule for _, rule in FAULTS.values()} == expected


# -- the laws ----------------------------------------------------------------------------------


def event(event_id: int, session: str = "s", **params: object) -> dict[str, object]:
    update = {"sessionUpdate": "plan", "entries": []}
    meta = {"goclaw": {"eventId": event_id}}
    return {
        "jsonrpc": "2.0", "method": "session/update",
        "params": {"sessionId": session, "update": update, "_meta": meta, **params},
    }  # fmt: skip


def attached(cursor: int) -> Ledger:
    """A ledger behind a subscription at that cursor."""
    ledger = Ledger(Seen())
    ledger.sent({
        "id": 1, "method": "initialize",
        "params": {"clientCapabilities": {"_meta": {"goclaw": {"notifications": True}}}},
    })  # fmt: skip
    ledger.received({"jsonrpc": "2.0", "id": 1, "result": {}})
    params = {"sessionId": "s", "fromEventId": cursor}
    ledger.sent({"id": 2, "method": "_goclaw/session/subscribe", "params": params})
    block = {"headEventId": 9, "oldestEventId": 1}
    ledger.received({"jsonrpc": "2.0", "id": 2, "result": block})
    return ledger


@pytest.mark.req("W-12")
def test_the_laws_let_pass_what_is_right() -> None:
    ledger = attached(3)
    for n in (4, 5, 6):
        ledger.received(event(n))
    ledger.sent({"id": 3, "method": "session/prompt", "params": {"sessionId": "s"}})
    ledger.received(event(7))
    barrier = {"stopReason": "end_turn", "_meta": {"goclaw": {"eventId": 7}}}
    ledger.received({"jsonrpc": "2.0", "id": 3, "result": barrier})
    ledger.received({"jsonrpc": "2.0", "id": 9, "method": "session/request_permission"})
    assert ledger.breaches == []


@pytest.mark.req("W-12")
@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([event(5)], "a hole"),
        ([event(4), event(4)], "came after"),
        ([event(4), event(3)], "came after"),
        ([event(4, "other")], "has not been given"),
        ([{"jsonrpc": "2.0", "id": 7, "result": {}}], "never asked"),
        ([{"jsonrpc": "2.0", "id": 2, "result": {}}], "a second time"),
        ([{"id": 7, "result": {}}], "no JSON-RPC"),
        ([{"jsonrpc": "2.0", "id": 7}], "a result or an error"),
        ([event(4, update={"sessionUpdate": "plan", "entries": [1]})], "not what it was"),
    ],
)
def test_the_laws_see_what_is_wrong(messages: list[dict[str, object]], said: str) -> None:
    ledger = attached(3)
    assert ledger._seen.same("s", 4, event(4))
    for message in messages:
        ledger.received(message)
    assert any(said in breach for breach in ledger.breaches), ledger.breaches


# -- the command -------------------------------------------------------------------------------


def run_kit(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "goclaw.conformance", *words], capture_output=True, text=True,
        env=environ, cwd=ROOT, timeout=2 * DEADLINE_MS / 1000, check=False,
    )  # fmt: skip


@pytest.mark.req("W-12", "W-13")
def test_the_command_judges_a_daemon_and_a_bridge(tmp_path: Path) -> None:
    with world(tmp_path) as place:
        steps = [{"say": "one two three", "chunks": 3}]
        place.serve("--listen", "127.0.0.1:0", "--brain", script_file(tmp_path, steps, ""))
        record = place.home.read_daemon_json()
        assert record is not None
        assert record.ws is not None
        done = run_kit(record.ws, "--only", "W-3", "--only", "W-2", **place.environ)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (
            0, "5 passed, 0 failed, 0 skipped",
        ), done  # fmt: skip
        bridge = f"stdio:{sys.executable} -m goclaw acp"
        done = run_kit(bridge, "--only", "W-3", **place.environ)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (
            0, "3 passed, 0 failed, 0 skipped",
        ), done  # fmt: skip
        # a plan that says nothing true: a check fails, and so does the command
        done = run_kit(
            record.ws, "--only", "W-8", "--ask", "x", "--timeout", "0.5", **place.environ
        )
        assert (done.returncode, "fail W-8" in done.stdout) == (1, True)
        done = run_kit("ws://127.0.0.1:9/ws", **place.environ)
        assert (done.returncode, "cannot be reached" in done.stderr) == (1, True)
        assert run_kit(record.ws, "--token-file", "none", **place.environ).returncode == 2
