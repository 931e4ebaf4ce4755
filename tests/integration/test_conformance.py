"""Proves the conformance kit: goclaw passes it, and no wrong server does.

Owns nothing but the tests. Not in here: the lies (``conformance_liar.py``).
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
from conformance_liar import FAULTS, Liar, lying
from conformance_splice import LIES
from roof_support import CLOCK, DEADLINE_MS, ROOT, script_file, world
from wire_support import TOKEN, House, opened, wire

from goclaw.conformance import CHECKS, Kit, Plan
from goclaw.conformance.client import dial
from goclaw.conformance.laws import Ledger, Seen
from goclaw.gateway import server

if TYPE_CHECKING:
    from collections.abc import Collection

    from goclaw.conformance import Result


SPLICE = Path(__file__).parent / "conformance_splice.py"
SERVER = [f"W-{n}" for n in range(1, 13)]
"""What a server shows; W-13 takes a bridge."""


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
    house: House,
    target: str,
    rules: Collection[str] = SERVER,
    *,
    promise: str = "",
    deadline_s: float = 10,
) -> list[Result]:
    """What the kit says of the rules, or of those of their promises that hold these words."""
    plan = Plan(
        say="chunks:3", slow="begun wait:kit", ask="ask:may", trimmed=await trimmed(house),
        deadline_s=deadline_s,
    )  # fmt: skip

    async def let_go() -> None:
        while not (gate := house.gates.setdefault("kit", asyncio.Event()))._waiters:
            await house.clients[0].call("session/list")
        house.gates.pop("kit").set()
        assert gate.is_set()

    async def fell() -> None:
        for connection in tuple(house.gateway._connections):
            connection._transport.abort()
        gone, house.clients[0] = (
            house.clients[0],
            await house.unix(),
        )  # that of let_go was among them
        await gone.close()

    kit = Kit(
        dial(target, TOKEN), plan, lambda: CLOCK.new_id("kit"), lines=not target.startswith("ws"),
        bridge=target.startswith("stdio"), let_go=let_go, fell=fell,
    )  # fmt: skip
    return [
        await kit.run(check) for check in CHECKS
        if check.rule in rules and promise in check.promise
    ]  # fmt: skip


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
                # megabytes go through before a slow reader shows
                patience, promise = (4, "takes no events") if rule == "W-9" else (1, "")
                results = await judged(
                    house, f"unix:{target}", (rule,), promise=promise, deadline_s=patience
                )
            assert any(one.verdict == "fail" for one in results), fault

    asyncio.run(main())


@pytest.mark.req("W-12", "W-9")
def test_a_server_behind_one_that_tells_no_lie_is_not_blamed(home: Path) -> None:
    async def main() -> None:
        async with opened(home) as house:
            target = home / "honest"
            async with lying(target, house.socket, Liar):
                assert broken(await judged(house, f"unix:{target}", ("W-9", "W-3"))) == []

    asyncio.run(main())


@pytest.mark.req("W-12", "W-13")
def test_a_wrong_bridge_is_noticed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A splice of lines keeps what needs no restart; each of its lies breaks its own promise."""
    # The house is this very process, and its children have no say in it.
    monkeypatch.setattr(server, "descends", lambda _pid: False)

    async def main() -> None:
        async with opened(home) as house:
            splice = f"stdio:{sys.executable} -S -E {SPLICE} {house.socket} "
            results = await judged(house, splice + "honest", ("W-13",))
            ((noticed, _),) = broken(results)
            assert "the death of its server" in noticed
            for lie, promise in LIES.items():
                (result,) = await judged(
                    house, f"{splice}'{lie}'", ("W-13",), promise=promise, deadline_s=3
                )
                assert result.verdict == "fail", lie

    asyncio.run(main())


@pytest.mark.req("W-12")
def test_every_rule_of_the_wire_that_a_server_can_show_has_a_check() -> None:
    assert len({check.promise for check in CHECKS}) == len(CHECKS)
    assert {check.rule for check in CHECKS} == {*SERVER, "W-13"}
    assert {rule for _, rule in FAULTS.values()} == set(SERVER)


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
def test_the_command_judges_a_bridge_whose_daemon_dies(tmp_path: Path) -> None:
    with world(tmp_path) as place:
        place.serve()
        record = place.home.read_daemon_json()
        assert record is not None
        done = run_kit(
            "--only", "W-13", "--fell", f"kill -9 {record.pid}", "--timeout", "30",
            "--", sys.executable, "-m", "goclaw", "acp", **place.environ,
        )  # fmt: skip
        assert (done.returncode, done.stdout.splitlines()[-1]) == (
            0, "4 passed, 0 failed, 0 skipped",
        ), done  # fmt: skip
        again = place.home.read_daemon_json()
        assert again is not None
        assert again.pid != record.pid


@pytest.mark.req("W-12")
def test_the_command_judges_a_daemon(tmp_path: Path) -> None:
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
        # a plan that says nothing true: a check fails, and so does the command
        done = run_kit(
            record.ws, "--only", "W-8", "--ask", "x", "--timeout", "0.5", **place.environ
        )
        assert (done.returncode, "fail W-8" in done.stdout) == (1, True)
        done = run_kit("ws://127.0.0.1:9/ws", **place.environ)
        assert (done.returncode, "cannot be reached" in done.stderr) == (1, True)
        assert run_kit(record.ws, "--token-file", "none", **place.environ).returncode == 2
