"""The named checks, each one promise of the wire and the id under which PROTOCOL makes it.

Owns what is asked of a server and what must come of it. Not in here: what holds of every message
(``laws``), how a server is reached (``client``).

Every check has connections and sessions of its own. What a server cannot be brought to do (the
plan has no prompt for it) is skipped, with the reason.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from goclaw.conformance.client import Broken, Client, Refused
from goclaw.conformance.laws import Seen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from goclaw.conformance.client import Dial

__all__ = ["CHECKS", "Check", "Kit", "Plan", "Result"]

STOP_REASONS: Final = ("end_turn", "max_tokens", "max_turn_requests", "refusal", "cancelled")
ERRORS: Final[dict[int, tuple[str, ...]]] = {
    -31001: ("sessionId", "requestedEventId", "oldestEventId", "headEventId", "recover"),
    -31002: ("headEventId", "streamId", "recover"),
    -31003: ("idempotencyKey", "runId"),
    -31007: ("approvalId", "outcome"),
    -31009: ("taskId",),
    -31010: ("from", "to"),
    -31016: ("what", "id"),
    -31017: ("limit", "unit"),
    -32002: ("sessionId",),
}
"""What the data of an error holds at least (PROTOCOL 2.4)."""

_CALLS: Final = 500
"""Calls whose answers nobody takes: each of them fills a page of events."""
_ASKS_MAX: Final = 2_000  # for a state that comes by itself, within a second or two
_BLOCK: Final = ("streamId", "headEventId", "oldestEventId", "activeTurn", "queued")


class Skipped(Exception):
    """This server cannot be brought to it; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes the server that is judged do something."""

    say: str = "hello"
    """A prompt whose turn is short and says something."""
    slow: str = "/sleep 2"
    """One whose turn shows something at once and takes a second or more."""
    ask: str = ""
    """One whose turn asks for a permission; "": none does."""
    trimmed: str = ""
    """A session whose first events are no longer kept; "": there is none."""
    cwd: str = "/tmp"
    deadline_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a check: ``why`` is empty when it passed."""

    check: Check
    verdict: str
    """pass, fail or skip."""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise."""

    rule: str
    """The W-id."""
    promise: str
    run: Callable[[Kit], Awaitable[None]] = field(compare=False, repr=False)


CHECKS: Final[list[Check]] = []
"""All of them, in the order of PROTOCOL."""


def _promise(
    rule: str, promise: str
) -> Callable[[Callable[[Kit], Awaitable[None]]], Callable[[Kit], Awaitable[None]]]:
    def kept(run: Callable[[Kit], Awaitable[None]]) -> Callable[[Kit], Awaitable[None]]:
        CHECKS.append(Check(rule, promise, run))
        return run

    return kept


class Kit:
    """Runs checks against one server. ``new_key`` makes texts that were never used before.

    ``lines``: it speaks lines, not frames. ``bridge``: each connection is a program of its own.
    ``let_go`` is awaited when a slow turn may end, for whoever can end it sooner than by itself;
    ``fell`` makes the server die at once, where something brings it back.
    """

    def __init__(
        self,
        dial: Dial,
        plan: Plan,
        new_key: Callable[[], str],
        *,
        lines: bool,
        bridge: bool = False,
        let_go: Callable[[], Awaitable[None]] | None = None,
        fell: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._dial, self.plan, self.new_key = dial, plan, new_key
        self.lines, self.bridge = lines, bridge
        self._let_go, self._fell = let_go, fell
        self._seen = Seen()
        self._clients: list[Client] = []

    async def run(self, check: Check) -> Result:
        """Run one check to its verdict; its connections are closed whatever happens."""
        try:
            await check.run(self)
            verdict, why = "pass", ""
        except Skipped as skipped:
            verdict, why = "skip", str(skipped)
        except Broken as broken:
            verdict, why = "fail", str(broken)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            verdict, why = "fail", f"an answer has not the shape it should have: {error!r}"
        finally:
            clients, self._clients = self._clients, []
            for client in clients:
                await client.close()
        breaches = [breach for client in clients for breach in client.ledger.breaches]
        if breaches:
            verdict, why = "fail", "; ".join(dict.fromkeys([*breaches, *([why] if why else [])]))
        return Result(check, verdict, why)

    async def let_go(self) -> None:
        """The slow turn under way is needed no more."""
        if self._let_go is not None:
            await self._let_go()

    async def stranger(self, *, small: bool = False, into: IO[bytes] | None = None) -> Client:
        """A connection that has said nothing yet; ``small`` and ``into`` as ``Dial`` has them."""
        link = await self._dial(small=small, into=into)
        client = Client(link, self._seen, self.plan.deadline_s)
        self._clients.append(client)
        return client

    async def client(
        self, *, vanilla: bool = False, client_id: str = "", small: bool = False
    ) -> Client:
        """A connection that has been greeted."""
        client = await self.stranger(small=small)
        extension: dict[str, Any] = {"version": 1, "notifications": True}
        if client_id:
            extension["clientId"] = client_id
        capabilities = {} if vanilla else {"_meta": {"goclaw": extension}}
        await client.call("initialize", {"protocolVersion": 1, "clientCapabilities": capabilities})
        return client

    async def session(self, client: Client) -> str:
        """A new session's id."""
        params = {"cwd": self.plan.cwd, "mcpServers": []}
        session: str = (await client.call("session/new", params))["sessionId"]
        return session

    async def turn(self, client: Client, session: str, words: str = "", **meta: Any) -> Turn:
        """A whole turn; its words are the plan's short ones unless given."""
        return turn_of(await client.answer(await self.ask(client, session, words, **meta)))

    async def ask(self, client: Client, session: str, words: str = "", **meta: Any) -> int:
        """Send a prompt; the request's id."""
        params = prompt(session, words or self.plan.say)
        return await client.request(
            "session/prompt", {**params, "_meta": {"goclaw": meta}} if meta else params
        )

    async def flood(self, client: Client, session: str, size: int) -> Turn:
        """A turn whose prompt alone becomes ``size`` bytes of events."""
        text = "goclaw " * (size // 7)
        resource = {"type": "resource", "resource": {"uri": "file:///flood", "text": text}}
        params = prompt(session, self.plan.say)
        params["prompt"].append(resource)
        return turn_of(await client.answer(await client.request("session/prompt", params)))

    async def fell(self) -> None:
        """Make the server die; Skipped when nobody can."""
        if self._fell is None:
            raise Skipped("nothing makes the server die")
        await self._fell()

    async def begun(self, client: Client, session: str, words: str) -> tuple[int, str]:
        """A turn under way: the request's id, and the run's once its events have begun."""
        since = len(client.messages)
        request = await self.ask(client, session, words)
        event = await client.wait(
            "an event of the turn",
            lambda m: "runId" in (m.get("params") or {}).get("_meta", {}).get("goclaw", {}),
            since=since,
        )
        run: str = event["params"]["_meta"]["goclaw"]["runId"]
        await self.state(client, run, "RUNNING", "SUSPENDED")  # a durable sleep suspends it
        return request, run

    async def state(self, client: Client, run: str, *states: str) -> None:
        """Ask until the run is in one of the states."""
        for _ in range(_ASKS_MAX):
            if (await client.call("_goclaw/run/get", {"runId": run}))["state"] in states:
                return
        raise Broken(f"{run} did not become {' or '.join(states)}")


@dataclass(frozen=True, slots=True)
class Turn:
    """The answer to a prompt."""

    stop_reason: str
    run: str
    event_id: int
    duplicate: bool


def turn_of(answer: dict[str, Any]) -> Turn:
    """Read the answer to a prompt; Broken when it is none."""
    if "error" in answer:
        raise Refused("session/prompt", answer["error"])
    result = answer["result"]
    meta = result["_meta"]["goclaw"]
    expect(result["stopReason"] in STOP_REASONS, f"stopReason {result['stopReason']!r}")
    return Turn(result["stopReason"], meta["runId"], meta["eventId"], meta.get("duplicate", False))


def prompt(session: str, words: str) -> dict[str, Any]:
    """The params of a prompt."""
    return {"sessionId": session, "prompt": [{"type": "text", "text": words}]}


def expect(holds: bool, otherwise: str) -> None:
    """Broken unless it holds."""
    if not holds:
        raise Broken(otherwise)


def expect_error(refused: Refused, code: int) -> None:
    """Broken unless it is that error with all of its data."""
    expect(refused.code == code, f"{code} was expected: {refused}")
    missing = [name for name in ERRORS.get(code, ()) if name not in refused.data]
    expect(not missing, f"the data of {code} lacks {', '.join(missing)}")


def expect_ids(found: list[int], wanted: list[int]) -> None:
    """Broken unless these ids came, in this order, and no others."""
    expect(found == wanted, f"events {found} came, {wanted} should have")


# -- W-1: rules of the wire --------------------------------------------------------------------


@_promise("W-1", "initialize comes first")
async def _initialize_first(kit: Kit) -> None:
    client = await kit.stranger()
    expect_error(await client.refusal("session/list"), -32600)
    if not kit.lines:
        await client.ended()
        expect(client.link.close_code == 1002, f"closed with {client.link.close_code}, not 1002")


@_promise("W-5", "a method of goclaw before initialize is handshake_required")
async def _handshake_required(kit: Kit) -> None:
    client = await kit.stranger()
    expect_error(await client.refusal("_goclaw/system/status"), -31008)


@_promise("W-1", "a newer protocol version is answered with 1, a broken one with an error")
async def _version(kit: Kit) -> None:
    client = await kit.stranger()
    result = await client.call("initialize", {"protocolVersion": 99, "clientCapabilities": {}})
    expect(result["protocolVersion"] == 1, f"protocolVersion {result['protocolVersion']}")
    expect_error(await client.refusal("initialize", {"protocolVersion": 1}), -32600)
    client = await kit.stranger()
    expect_error(await client.refusal("initialize", {"protocolVersion": "one"}), -32602)


@_promise("W-1", "what is no message is answered, and the connection lives")
async def _nonsense(kit: Kit) -> None:
    client = await kit.client()
    for value, code in (
        ([{"jsonrpc": "2.0", "id": 1, "method": "session/list"}], -32600),
        ([], -32600), (7, -32600), ("x", -32600), (None, -32600),
        ({"jsonrpc": "1.0", "id": None, "method": "session/list"}, -32600),
        ({"jsonrpc": "2.0", "id": None, "method": 7}, -32600),
    ):  # fmt: skip
        since = len(client.messages)
        await client.link.send(json.dumps(value).encode())
        await _told(client, code, since, json.dumps(value))
    for data in (b"{", b'{"a":1}}', b"\xff\xfe", b'{"jsonrpc":"2.0","id":1,"id":2}'):
        since = len(client.messages)
        await client.link.send(data)
        await _told(client, -32700, since, repr(data))
    await client.call("session/list")


async def _told(client: Client, code: int, since: int, of: str) -> None:
    answer = await client.wait(
        f"an error for {of}",
        lambda m: isinstance(m, dict) and m.get("id", 0) is None and "error" in m,
        since=since,
    )
    expect(answer["error"]["code"] == code, f"{of} is {code}, not {answer['error']['code']}")


@_promise("W-1", "an id is echoed as it was sent")
async def _ids_echoed(kit: Kit) -> None:
    client = await kit.client()
    for request_id in ("x", "", 0, -7, 2**53, "ä\n"):
        since = len(client.messages)
        await client.send({"jsonrpc": "2.0", "id": request_id, "method": "session/list"})
        await _echoed(client, request_id, since)


async def _echoed(client: Client, request_id: object, since: int) -> None:
    await client.wait(
        f"an answer to id {request_id!r}",
        lambda m: m.get("id") == request_id and "result" in m,
        since=since,
    )


@_promise("W-1", "an unknown request is -32601, an unknown notification is ignored")
async def _unknown_methods(kit: Kit) -> None:
    client = await kit.client()
    for method in ("session/none", "_goclaw/none", "_other/none"):
        expect_error(await client.refusal(method), -32601)
        await client.notify(method)
    await client.call("session/list")


@_promise("W-1", "params that do not fit are -32602")
async def _bad_params(kit: Kit) -> None:
    client = await kit.client()
    session = await kit.session(client)
    for method, params in (
        ("session/new", {"cwd": "here", "mcpServers": []}),
        ("session/prompt", {"sessionId": session}),
        ("session/prompt", {"sessionId": session, "prompt": [{"type": "poem"}]}),
        ("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": -1}),
        ("_goclaw/session/subscribe", {"sessionId": session, "mode": "lazy"}),
        ("_goclaw/session/subscribe", {"sessionId": session, "role": "king"}),
    ):
        expect_error(await client.refusal(method, params), -32602)


# -- W-2: advertising --------------------------------------------------------------------------


@_promise("W-2", "the greeting says what there is")
async def _greeting(kit: Kit) -> None:
    client = await kit.stranger()
    result = await client.call("initialize", {"protocolVersion": 1, "clientCapabilities": {}})
    agent = result["agentCapabilities"]
    expect(agent["loadSession"] is True, "loadSession is not advertised")
    for name in ("list", "resume", "close", "delete"):
        expect(agent["sessionCapabilities"].get(name) is not None, f"{name} is not advertised")
    extension = agent["_meta"]["goclaw"]
    expect(extension["version"] == 1, "another version of the extension")
    expect(extension["replay"] is True and extension["attach"] is True, "no replay or attach")
    expect(extension["queue"]["limit"] >= 1, "no limit of the queue")
    expect(extension["idempotency"]["windowSeconds"] >= 1, "no window of idempotency")
    for name in ("frameBytes", "lagEvents", "lagBytes", "answerBytes", "stallSeconds"):
        expect(extension["limits"][name] >= 1, f"no limit {name}")
    expect(bool(extension["daemonId"]), "no daemonId")


@_promise("W-2", "a client that did not opt in is sent nothing of goclaw's, and may still ask")
async def _vanilla(kit: Kit) -> None:
    client = await kit.client(vanilla=True)
    session = await kit.session(client)
    turn = await kit.turn(client, session)
    await client.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    await client.call("_goclaw/system/watch", {})
    found = await client.call("_goclaw/run/get", {"runId": turn.run})
    expect(found["eventId"] == turn.event_id, "run/get names another end than the answer")


# -- W-3: ids and barriers ---------------------------------------------------------------------


@_promise("W-3", "session/new is answered before anything of the session, with its block")
async def _new_first(kit: Kit) -> None:
    client = await kit.client()
    result = await client.call("session/new", {"cwd": kit.plan.cwd, "mcpServers": []})
    block = result["_meta"]["goclaw"]
    expect(all(name in block for name in _BLOCK), f"the block lacks some of {_BLOCK}")
    expect((block["headEventId"], block["queued"]) == (0, 0), f"a new session is not new: {block}")


@_promise("W-3", "ids are dense from 1, and an answer comes behind its events")
async def _dense(kit: Kit) -> None:
    client = await kit.client()
    session = await kit.session(client)
    for _ in range(3):
        turn = await kit.turn(client, session)
        expect(client.ids(session)[-1] >= turn.event_id, "an answer before its last event")
    ids = client.ids(session)
    expect_ids(ids, list(range(1, len(ids) + 1)))


@_promise("W-3", "events of a session go to whoever is attached, and to nobody else")
async def _attached_only(kit: Kit) -> None:
    one, two = await kit.client(), await kit.client()
    session = await kit.session(one)
    await kit.session(two)
    turn = await kit.turn(one, session)
    await two.call("session/list")
    expect(two.ids(session) == [], "events were sent to a client that is not attached")
    await two.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    await two.until(session, turn.event_id)


# -- W-4: subscribe, replay, gap ---------------------------------------------------------------


@_promise("W-4", "a subscription is answered first, then replays, then is live, with no seam")
async def _replay(kit: Kit) -> None:
    one = await kit.client()
    session = await kit.session(one)
    await kit.turn(one, session)
    turn = await kit.turn(one, session)
    for cursor in (0, 1, turn.event_id // 2, turn.event_id - 1, turn.event_id):
        two = await kit.client()
        request = await two.request(
            "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": cursor}
        )
        block = (await two.answer(request))["result"]
        expect(all(name in block for name in _BLOCK), f"the block lacks some of {_BLOCK}")
        last = (await kit.turn(one, session)).event_id
        await two.until(session, last)
        expect_ids(two.ids(session), list(range(cursor + 1, last + 1)))
        turn = await kit.turn(two, session)


@_promise("W-4", "without a cursor a subscription is live only")
async def _live_only(kit: Kit) -> None:
    one, two = await kit.client(), await kit.client()
    session = await kit.session(one)
    turn = await kit.turn(one, session)
    await two.call("_goclaw/session/subscribe", {"sessionId": session})
    last = (await kit.turn(one, session)).event_id
    await two.until(session, last)
    ids = two.ids(session)
    expect(ids[0] > turn.event_id - 1, "events of the past were sent")
    expect_ids(ids, list(range(ids[0], last + 1)))


@_promise("W-4", "a cursor beyond the log, or of another log, is cursor_ahead and changes nothing")
async def _ahead(kit: Kit) -> None:
    client = await kit.client()
    session = await kit.session(client)
    turn = await kit.turn(client, session)
    for wish in ({"fromEventId": turn.event_id + 1000}, {"fromEventId": 1, "streamId": "other"}):
        refused = await client.refusal("_goclaw/session/subscribe", {"sessionId": session, **wish})
        expect_error(refused, -31002)
    await kit.turn(client, session)  # still attached where it was: the ledger looks


@_promise("W-4", "a cursor behind what is kept is replay_gap, and nothing is sent")
async def _gap(kit: Kit) -> None:
    if not kit.plan.trimmed:
        raise Skipped("there is no session whose first events are gone")
    client, session = await kit.client(), kit.plan.trimmed
    refused = await client.refusal(
        "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 1}
    )
    expect_error(refused, -31001)
    await client.call("session/list")
    expect(client.ids(session) == [], "events were sent behind a replay_gap")
    block = await client.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    oldest = block["oldestEventId"]
    expect(oldest == refused.data["oldestEventId"] > 1, "another oldest event than the error said")
    await client.until(session, block["headEventId"])
    expect(client.ids(session)[0] == oldest, "0 is not from the oldest that is kept")


@_promise("W-4", "unsubscribe ends it, twice is fine")
async def _unsubscribe(kit: Kit) -> None:
    one, two = await kit.client(), await kit.client()
    session = await kit.session(one)
    await two.call("_goclaw/session/subscribe", {"sessionId": session})
    for _ in range(2):
        expect(
            await two.call("_goclaw/session/unsubscribe", {"sessionId": session}) == {},
            "unsubscribe answers {}",
        )
    await kit.turn(one, session)
    await two.call("session/list")


@_promise("W-4", "events can be pulled, as they were pushed")
async def _pull(kit: Kit) -> None:
    client = await kit.client()
    session = await kit.session(client)
    turn = await kit.turn(client, session)
    pulled: list[Any] = []
    position = 0
    while position < turn.event_id:
        page = await client.call(
            "_goclaw/session/events", {"sessionId": session, "fromEventId": position, "limit": 3}
        )
        expect(1 <= len(page["events"]) <= 3, f"a page of 3 has {len(page['events'])} events")
        expect(page["nextEventId"] > position, "a page leads nowhere")
        pulled += page["events"]
        position = page["nextEventId"]
    expect(pulled == client.events(session)[: len(pulled)], "pulled is not what was pushed")


@_promise("W-4", "resume answers first, then tells what was missed")
async def _resume(kit: Kit) -> None:
    one, two = await kit.client(), await kit.client()
    session = await kit.session(one)
    turn = await kit.turn(one, session)
    request = await two.request(
        "session/resume",
        {"sessionId": session, "cwd": kit.plan.cwd, "_meta": {"goclaw": {"fromEventId": 1}}},
    )
    answer = await two.answer(request)
    expect("_meta" in answer["result"], "resume without its block")
    before = two.messages[: two.messages.index(answer)]
    expect(not any("eventId" in json.dumps(m) for m in before), "resume replayed before its answer")
    await two.until(session, turn.event_id)
    expect(two.ids(session)[0] == 2, "resume did not begin behind its cursor")


@_promise("W-4", "a conflated subscription ends with the newest event")
async def _latest(kit: Kit) -> None:
    one, two = await kit.client(), await kit.client()
    session = await kit.session(one)
    turn = await kit.turn(one, session)
    await two.call(
        "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0, "mode": "latest"}
    )
    await two.until(session, turn.event_id)


@_promise("W-4", "who watches the daemon is told its state")
async def _watch(kit: Kit) -> None:
    client = await kit.client()
    expect(await client.call("_goclaw/system/watch", {"minIntervalMs": 100}) == {}, "not {}")
    state = await client.wait(
        "the first state", lambda m: m.get("method") == "_goclaw/system/state"
    )
    expect({"lanes", "queue", "health"} <= state["params"].keys(), "a state lacks some fields")


# -- W-5: errors -------------------------------------------------------------------------------


@_promise("W-5", "what there is not is named, with its data")
async def _unknown_ids(kit: Kit) -> None:
    client = await kit.client()
    session = await kit.session(client)
    for method in ("session/load", "session/prompt", "_goclaw/session/subscribe"):
        params = {**prompt("session_none", "x"), "cwd": kit.plan.cwd, "mcpServers": []}
        expect_error(await client.refusal(method, params), -32002)
    for method, params in (
        ("_goclaw/run/get", {"runId": "run_none"}),
        ("_goclaw/run/get", {"sessionId": session, "idempotencyKey": "none"}),
        ("_goclaw/run/cancel", {"runId": "run_none"}),
        ("_goclaw/task/get", {"taskId": "task_none"}),
        ("_goclaw/approvals/resolve", {"approvalId": "none", "optionId": "x"}),
    ):
        expect_error(await client.refusal(method, params), -31016)


@_promise("W-5", "a message that is too long is refused by name")
async def _too_long(kit: Kit) -> None:
    client = await kit.stranger()
    greeting = await client.call("initialize", {"protocolVersion": 1, "clientCapabilities": {}})
    most = greeting["agentCapabilities"]["_meta"]["goclaw"]["limits"]["frameBytes"]
    since = len(client.messages)
    await client.link.send(b'"' + b"x" * most + b'"')
    if kit.lines:
        await _told(client, -31017, since, "a message over frameBytes")
        await client.call("session/list")
    else:
        await client.ended()
        expect(client.link.close_code == 1009, f"closed with {client.link.close_code}, not 1009")


# -- W-6: submission keys ----------------------------------------------------------------------


@_promise("W-6", "the same key and prompt are the same run, another prompt is a conflict")
async def _same_key(kit: Kit) -> None:
    one, two = await kit.client(), await kit.client()
    session, key = await kit.session(one), kit.new_key()
    first = await kit.turn(one, session, idempotencyKey=key)
    expect(not first.duplicate, "the first of a key is called a duplicate")
    for client in (one, two):
        again = await kit.turn(client, session, idempotencyKey=key)
        expect(again.duplicate and again.run == first.run, "the same key ran again")
        expect(again.stop_reason == first.stop_reason, "another stopReason for the same key")
    found = await one.call("_goclaw/run/get", {"sessionId": session, "idempotencyKey": key})
    expect(found["runId"] == first.run, "run/get finds another run under the key")
    request = await kit.ask(one, session, "another prompt", idempotencyKey=key)
    answer = await one.answer(request)
    expect("error" in answer, "another prompt was taken under the key")
    expect_error(Refused("session/prompt", answer["error"]), -31003)
    expect(answer["error"]["data"]["runId"] == first.run, "the conflict names another run")


@_promise("W-6", "the same key joins a run that is under way")
async def _joins(kit: Kit) -> None:
    one, two = await kit.client(), await kit.client()
    session, key = await kit.session(one), kit.new_key()
    first = await kit.ask(one, session, kit.plan.slow, idempotencyKey=key)
    await one.wait("the turn", lambda m: "runId" in json.dumps(m))
    second = await kit.ask(two, session, kit.plan.slow, idempotencyKey=key)
    await kit.let_go()
    turns = [turn_of(await one.answer(first)), turn_of(await two.answer(second))]
    expect(turns[0].run == turns[1].run, "the same key ran twice")
    expect(turns[1].duplicate, "who joined is not told duplicate")


@_promise("W-6", "the same key makes one session")
async def _one_session(kit: Kit) -> None:
    client, key = await kit.client(), kit.new_key()
    params = {"cwd": kit.plan.cwd, "mcpServers": [], "_meta": {"goclaw": {"idempotencyKey": key}}}
    first = await client.call("session/new", params)
    again = await client.call("session/new", params)
    expect(first["sessionId"] == again["sessionId"], "the same key made two sessions")
    expect_error(await client.refusal("session/new", {**params, "cwd": "/"}), -31003)


# -- W-7: queue and cancel ---------------------------------------------------------------------


@_promise("W-7", "a prompt during a turn waits for it")
async def _queue(kit: Kit) -> None:
    client = await kit.client()
    session = await kit.session(client)
    first, _ = await kit.begun(client, session, kit.plan.slow)
    second = await kit.ask(client, session)
    await kit.let_go()
    turns = [turn_of(await client.answer(first)), turn_of(await client.answer(second))]
    expect(turns[0].event_id < turns[1].event_id, "the second turn ended before the first")
    runs = [
        params["_meta"]["goclaw"]["runId"]
        for params in client.events(session)
        if params.get("event", {}).get("type") == "task.running"
    ]
    # a turn that was suspended runs more than once
    expect(
        list(dict.fromkeys(runs)) == [turn.run for turn in turns],
        "the prompts did not run in their order",
    )


@_promise("W-7", "session/cancel ends the turn and the queued prompts of this client, not others'")
async def _cancel(kit: Kit) -> None:
    one, two = await kit.client(), await kit.client()
    session = await kit.session(one)
    running, _ = await kit.begun(one, session, kit.plan.slow)
    queued = await kit.ask(one, session)
    await two.call("_goclaw/session/subscribe", {"sessionId": session})
    others = await kit.ask(two, session)
    await _until_queued(kit, two, session, 2)
    await one.notify("session/cancel", {"sessionId": session})
    for request in (running, queued):
        turn = turn_of(await one.answer(request))
        expect(turn.stop_reason == "cancelled", f"a cancelled turn answers {turn.stop_reason}")
    turn = turn_of(await two.answer(others))
    expect(turn.stop_reason != "cancelled", "a prompt of another client was cancelled")


async def _until_queued(kit: Kit, client: Client, session: str, count: int) -> None:
    """Ask until so many prompts wait behind the turn."""
    for _ in range(_ASKS_MAX):
        block = await client.call("_goclaw/session/subscribe", {"sessionId": session})
        if block["queued"] >= count:
            return
    raise Broken(f"{count} prompts never waited in the session")


@_promise("W-7", "$/cancel_request ends one prompt")
async def _cancel_request(kit: Kit) -> None:
    client = await kit.client()
    session = await kit.session(client)
    running, _ = await kit.begun(client, session, kit.plan.slow)
    queued = await kit.ask(client, session)
    await client.notify("$/cancel_request", {"requestId": queued})
    answer = await client.answer(queued)  # without a run, when it was cancelled before it had one
    expect(answer["result"]["stopReason"] == "cancelled", f"a cancelled prompt answers {answer}")
    await kit.let_go()
    turn = turn_of(await client.answer(running))
    expect(turn.stop_reason != "cancelled", "the running turn was cancelled, too")


@_promise("W-7", "a client that comes back under its clientId owns its prompts")
async def _owner(kit: Kit) -> None:
    name = kit.new_key()
    one, other = await kit.client(client_id=name), await kit.client()
    session = await kit.session(one)
    _, run = await kit.begun(one, session, kit.plan.slow)
    queued = await kit.ask(one, session)
    await other.call("_goclaw/session/subscribe", {"sessionId": session})
    await _until_queued(kit, other, session, 1)
    await one.close()
    back = await kit.client(client_id=name)
    await back.notify("session/cancel", {"sessionId": session})
    await kit.state(back, run, "CANCELED")
    await other.wait(
        f"the end of the queued prompt {queued}",
        lambda m: (
            (m.get("params") or {}).get("event", {}).get("type") == "run.ended"
            and m["params"]["_meta"]["goclaw"]["runId"] != run
        ),
    )
    ends = [
        params["event"]["state"]
        for params in other.events(session)
        if params.get("event", {}).get("type") == "run.ended"
    ]
    expect(ends == ["CANCELED", "CANCELED"], f"the prompts ended {ends}")


@_promise("W-7", "a run can be cancelled by its id, and once is enough")
async def _cancel_run(kit: Kit) -> None:
    client = await kit.client()
    session = await kit.session(client)
    request, run = await kit.begun(client, session, kit.plan.slow)
    receipt = await client.call("_goclaw/run/cancel", {"runId": run})
    expect(receipt["outcome"] in ("stopped", "stopping"), f"the receipt says {receipt}")
    turn = turn_of(await client.answer(request))
    expect(turn.stop_reason == "cancelled", f"a cancelled run answers {turn.stop_reason}")
    receipt = await client.call("_goclaw/run/cancel", {"runId": run})
    expect(receipt["outcome"] == "already_finished", f"the second receipt says {receipt}")


# -- W-8: permissions --------------------------------------------------------------------------


async def _asked(client: Client) -> dict[str, Any]:
    """The next question."""
    found: dict[str, Any] = await client.wait(
        "session/request_permission", lambda m: m.get("method") == "session/request_permission"
    )
    return found


def _option(question: dict[str, Any], kind: str) -> str:
    for option in question["params"]["options"]:
        if option["kind"].startswith(kind):
            name: str = option["optionId"]
            return name
    raise Broken(f"the question has no option to {kind}")


@_promise("W-8", "every controller is asked, the first answer wins, the others are told")
async def _first_answer(kit: Kit) -> None:
    if not kit.plan.ask:
        raise Skipped("no prompt of the plan asks for a permission")
    one, two, watcher = await kit.client(), await kit.client(), await kit.client()
    session = await kit.session(one)
    await two.call("_goclaw/session/subscribe", {"sessionId": session})
    await watcher.call("_goclaw/session/subscribe", {"sessionId": session, "role": "observer"})
    request = await kit.ask(one, session, kit.plan.ask)
    asked = [await _asked(one), await _asked(two)]
    approvals = [question["params"]["_meta"]["goclaw"]["approvalId"] for question in asked]
    expect(approvals[0] == approvals[1], "two controllers were asked two questions")
    option = _option(asked[1], "allow")
    await two.reply(asked[1]["id"], {"outcome": {"outcome": "selected", "optionId": option}})
    await one.wait(
        "$/cancel_request to the one who was not quick enough",
        lambda m: (
            m.get("method") == "$/cancel_request" and m["params"]["requestId"] == asked[0]["id"]
        ),
    )
    for client in (one, two, watcher):
        await client.wait(
            "_goclaw/approval/resolved",
            lambda m: m.get("method") == "_goclaw/approval/resolved"
            and m["params"]["approvalId"] == approvals[0] and m["params"]["outcome"] == option,
        )  # fmt: skip
    turn = turn_of(await one.answer(request))
    await watcher.until(session, turn.event_id)
    expect(
        not any(m.get("method") == "session/request_permission" for m in watcher.messages),
        "an observer was asked",
    )
    refused = await one.refusal(
        "_goclaw/approvals/resolve", {"approvalId": approvals[0], "optionId": option}
    )
    expect_error(refused, -31007)


@_promise("W-8", "who attaches is asked what is still open, and a cancel takes the question back")
async def _asked_again(kit: Kit) -> None:
    if not kit.plan.ask:
        raise Skipped("no prompt of the plan asks for a permission")
    one = await kit.client()
    session = await kit.session(one)
    request = await kit.ask(one, session, kit.plan.ask)
    first = await _asked(one)
    two = await kit.client(vanilla=True)
    await two.call("session/load", {"sessionId": session, "cwd": kit.plan.cwd, "mcpServers": []})
    again = await _asked(two)
    for name in ("approvalId",):
        expect(
            first["params"]["_meta"]["goclaw"][name] == again["params"]["_meta"]["goclaw"][name],
            f"another {name} for the same question",
        )
    call = "toolCall"
    expect(
        first["params"][call]["toolCallId"] == again["params"][call]["toolCallId"],
        "another toolCallId for the same question",
    )
    listed = await two.call("_goclaw/approvals/list", {"sessionId": session})
    expect(len(listed["approvals"]) == 1, f"{len(listed['approvals'])} open questions, not 1")
    await one.notify("session/cancel", {"sessionId": session})
    turn = turn_of(await one.answer(request))
    expect(turn.stop_reason == "cancelled", f"a cancelled turn answers {turn.stop_reason}")
    await two.wait("$/cancel_request", lambda m: m.get("method") == "$/cancel_request")


# -- W-9: backpressure -------------------------------------------------------------------------

_FLOOD_BYTES: Final = 6 << 20
"""One prompt of it: below any frameBytes, and there are few of them."""
_BUFFERS_BYTES: Final = 8 << 20
"""What kernels and libraries take on the way before a server can notice that nobody reads."""
_ENDS: Final = (1013, 1006)
"""A peer whose socket is full may not get the close frame any more."""


def _expect_close(close: dict[str, Any], reason: str) -> None:
    expect(
        (close["code"], close["reason"]) == (1013, f"goclaw:backpressure {reason}"),
        f"the connection was closed for {reason}, and lastClose says {close}",
    )


async def _expect_ended(kit: Kit, client: Client, reason: str) -> None:
    """It was closed, and where that could be said, it was."""
    client.link.resume()
    await client.ended()
    code, said = client.link.close_code, client.link.close_reason
    if not kit.lines:
        expect(code in _ENDS, f"who takes nothing was closed with {code}")
    if code == 1013:
        expect(said == f"goclaw:backpressure {reason}", f"the close frame says {said!r}")
    for message in client.messages:
        if message.get("method") == "_goclaw/backpressure":
            expect(message["params"]["reason"] == reason, f"the farewell says {message}")


@_promise("W-9", "who takes no events is closed for it, told why on return, and misses none")
async def _slow_reader(kit: Kit) -> None:
    if kit.bridge:
        raise Skipped("a bridge has no connection that could be closed")
    one, name = await kit.stranger(), kit.new_key()
    greeting = await one.call("initialize", {"protocolVersion": 1, "clientCapabilities": {}})
    bounds = greeting["agentCapabilities"]["_meta"]["goclaw"]["limits"]
    session = await kit.session(one)
    two = await kit.client(client_id=name, small=True)
    await two.call("_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0})
    two.link.pause()
    last = 0
    for _ in range(-(-(bounds["lagBytes"] + _BUFFERS_BYTES) // _FLOOD_BYTES)):
        last = (await kit.flood(one, session, _FLOOD_BYTES)).event_id  # it waits for nobody
    await _expect_ended(kit, two, "lag")
    got = two.ids(session)
    expect(len(got) < last, "who took nothing was not closed")
    back = await kit.client(client_id=name)
    where = {"sessionId": session, "fromEventId": got[-1] if got else 0}
    block = await back.call("_goclaw/session/subscribe", where)
    expect("lastClose" in block, "the subscription does not say why the last one ended")
    _expect_close(block["lastClose"], "lag")
    sent = block["lastClose"]["sent"].get(session, 0)
    expect(sent >= len(got), f"lastClose says {sent} was sent last, and {len(got)} had come")
    await back.until(session, last)
    expect_ids(got + back.ids(session), list(range(1, last + 1)))
    block = await back.call("_goclaw/session/subscribe", where)
    expect("lastClose" not in block, "lastClose is told twice")


@_promise("W-9", "who takes no answers is closed for it, and told why on return")
async def _slow_caller(kit: Kit) -> None:
    if kit.bridge:
        raise Skipped("a bridge has no connection that could be closed")
    one, name = await kit.client(), kit.new_key()
    session = await kit.session(one)
    await kit.flood(one, session, _FLOOD_BYTES // 6)
    two = await kit.client(client_id=name, small=True)
    two.link.pause()
    for _ in range(_CALLS):
        await two.request("_goclaw/session/events", {"sessionId": session, "fromEventId": 0})
    back = await kit.client(client_id=name)
    for _ in range(_ASKS_MAX):
        block = await back.call("_goclaw/session/subscribe", {"sessionId": session})
        if "lastClose" in block:
            break
    else:
        raise Broken("who takes no answers was not closed, or is not told why")
    _expect_close(block["lastClose"], "bytes")
    await _expect_ended(kit, two, "bytes")


# -- W-10: a vanilla client --------------------------------------------------------------------


@_promise("W-10", "load tells the past, then answers, then goes on")
async def _load(kit: Kit) -> None:
    one = await kit.client(vanilla=True)
    session = await kit.session(one)
    await kit.turn(one, session)
    two = await kit.client(vanilla=True)
    request = await two.request(
        "session/load", {"sessionId": session, "cwd": kit.plan.cwd, "mcpServers": []}
    )
    answer = await two.answer(request)
    expect("result" in answer, f"load was refused: {answer}")
    at = two.messages.index(answer)
    told = [m["params"]["update"] for m in two.messages[:at] if m.get("method") == "session/update"]
    kinds = [update["sessionUpdate"] for update in told]
    expect("user_message_chunk" in kinds, "load did not tell the user's words")
    expect("agent_message_chunk" in kinds, "load did not tell the agent's words")
    words = [u["content"].get("text") for u in told if u["sessionUpdate"] == "user_message_chunk"]
    expect(kit.plan.say in words, f"load told {words} for the user's words")
    keyed = [u["messageId"] for u in told if u["sessionUpdate"] == "agent_message_chunk"]
    expect(len(keyed) == len(set(keyed)), "a message of the past came in pieces")
    await kit.turn(two, session)


@_promise("W-10", "a turn outlives its connection; its end is told to who came back")
async def _outlives(kit: Kit) -> None:
    one = await kit.client(vanilla=True)
    session = await kit.session(one)
    _, run = await kit.begun(one, session, kit.plan.slow)
    await one.close()
    two = await kit.client(vanilla=True)
    result = await two.call(
        "session/load", {"sessionId": session, "cwd": kit.plan.cwd, "mcpServers": []}
    )
    active = result["_meta"]["goclaw"]["activeTurn"]
    expect(active is not None and active["runId"] == run, f"the active turn is {active}")
    await kit.let_go()
    await two.wait("session_info_update", lambda m: "session_info_update" in json.dumps(m))
    await kit.state(two, run, "SUCCEEDED")


@_promise("W-10", "resume tells no history; a cancel from a new connection reaches the old turn")
async def _cancel_after_resume(kit: Kit) -> None:
    one = await kit.client(vanilla=True)
    session = await kit.session(one)
    await kit.turn(one, session)
    request, run = await kit.begun(one, session, kit.plan.slow)
    two = await kit.client(vanilla=True)
    await two.call("session/resume", {"sessionId": session, "cwd": kit.plan.cwd})
    expect(
        all(u["sessionUpdate"] == "available_commands_update" for u in two.updates(session)),
        "resume told some history",
    )
    await two.notify("session/cancel", {"sessionId": session})
    turn = turn_of(await one.answer(request))
    expect(turn.stop_reason == "cancelled", f"a cancelled turn answers {turn.stop_reason}")
    await kit.state(two, run, "CANCELED")


@_promise("W-10", "sessions are listed, closed and deleted; deleting twice is fine")
async def _sessions(kit: Kit) -> None:
    client = await kit.client(vanilla=True)
    session = await kit.session(client)

    async def listed() -> bool:
        cursor: str | None = None
        while True:
            page = await client.call("session/list", {"cursor": cursor} if cursor else {})
            if any(one["sessionId"] == session for one in page["sessions"]):
                return True
            cursor = page.get("nextCursor")
            if cursor is None:
                return False

    expect(await listed(), "a new session is not listed")
    await client.call("session/close", {"sessionId": session})
    for _ in range(2):
        await client.call("session/delete", {"sessionId": session})
    expect(not await listed(), "a deleted session is listed")
    expect_error(await client.refusal("session/prompt", prompt(session, "x")), -32002)


# -- W-11: tasks and workers -------------------------------------------------------------------


@_promise("W-11", "a task of a pool is claimed once, and only its token counts")
async def _worker(kit: Kit) -> None:
    client, pool = await kit.client(), kit.new_key()
    session = await kit.session(client)
    submit = {"sessionId": session, "pool": pool, "payload": {"n": 1}, "idempotencyKey": pool}
    task = await client.call("_goclaw/task/submit", submit)
    expect((await client.call("_goclaw/task/submit", submit))["duplicate"], "not a duplicate")
    claim = {"pool": pool, "max": 2, "waitMs": 1000, "workerId": "kit"}
    (work,) = (await client.call("_goclaw/worker/claim", claim))["tasks"]
    expect((work["taskId"], work["payload"]) == (task["taskId"], {"n": 1}), "another task")
    expect((await client.call("_goclaw/worker/claim", {**claim, "waitMs": 0}))["tasks"] == [],
           "the same task was claimed twice")  # fmt: skip
    held = {"taskId": work["taskId"], "leaseToken": work["leaseToken"]}
    stale = {**held, "leaseToken": "00" * (len(work["leaseToken"]) // 2)}
    for method, more in (("heartbeat", {}), ("complete", {"result": 1}), ("release", {})):
        refused = await client.refusal(f"_goclaw/worker/{method}", {**stale, **more})
        expect_error(refused, -31009)
    expect((await client.call("_goclaw/worker/heartbeat", held))["leaseMs"] > 0, "no lease")
    effect = {
        **held, "ordinal": 0, "kind": "tool", "name": "t", "requestHash": "h", "class": "keyed",
    }  # fmt: skip
    for _ in range(2):
        going = await client.call("_goclaw/worker/effect", {**effect, "phase": "intent"})
        expect(going["go"] is True, "an intent under one lease was answered in two ways")
    for _ in range(2):
        await client.call("_goclaw/worker/effect", {**effect, "phase": "result", "result": 2})
    for _ in range(2):
        done = await client.call("_goclaw/worker/complete", {**held, "result": 3})
        expect(done["state"] == "SUCCEEDED", f"a completed task is {done['state']}")
    refused = await client.refusal("_goclaw/worker/complete", {**held, "result": 4})
    expect_error(refused, -31009)
    expect_error(await client.refusal("_goclaw/task/redrive", {"taskId": task["taskId"]}), -31010)


@_promise("W-11", "tasks are listed in pages, explained and cancelled")
async def _tasks(kit: Kit) -> None:
    client, pool = await kit.client(), kit.new_key()
    session = await kit.session(client)
    made = [
        (await client.call(
            "_goclaw/task/submit",
            {"sessionId": session, "pool": pool, "payload": n, "parallel": True},
        ))["taskId"]
        for n in range(3)
    ]  # fmt: skip
    found: list[str] = []
    after: str | None = None
    while True:
        params = {"sessionId": session, "limit": 2, **({"after": after} if after else {})}
        page = await client.call("_goclaw/task/list", params)
        found += [task["taskId"] for task in page["tasks"]]
        after = page.get("next")
        if after is None:
            break
    expect(sorted(found) == sorted(made), f"{len(found)} tasks are listed of {len(made)}")
    why = await client.call("_goclaw/task/why", {"taskId": made[0]})
    expect(why["state"] == "QUEUED" and why["because"], f"why says {why}")
    for task in made:
        receipt = await client.call("_goclaw/task/cancel", {"taskId": task})
        expect(receipt["outcome"] == "stopped", f"the receipt says {receipt}")


# -- W-12: the table ---------------------------------------------------------------------------

_MOVES: Final = ("from the start", "from here", "ahead", "leave", "turn")


@_promise("W-12", "every three moves of a subscription keep its table")
async def _walk(kit: Kit) -> None:
    speaker = await kit.client()
    session = await kit.session(speaker)
    for path in itertools.product(_MOVES, repeat=3):
        client = await kit.client()
        for move in path:
            await _move(kit, speaker, client, session, move)
        # whatever the way: subscribed from here it is complete from here
        block = await client.call(
            "_goclaw/session/subscribe", {"sessionId": session, "fromEventId": 0}
        )
        if block["headEventId"]:
            await client.until(session, block["headEventId"])
        await client.close()


async def _move(kit: Kit, speaker: Client, client: Client, session: str, move: str) -> None:
    params: dict[str, Any] = {"sessionId": session}
    if move == "turn":
        await kit.turn(speaker, session)
    elif move == "leave":
        await client.call("_goclaw/session/unsubscribe", params)
    elif move == "ahead":
        params["fromEventId"] = 1 << 40
        expect_error(await client.refusal("_goclaw/session/subscribe", params), -31002)
    else:
        if move == "from the start":
            params["fromEventId"] = 0
        await client.call("_goclaw/session/subscribe", params)


# -- W-13: the bridge ----------------------------------------------------------------------------

_LONG_BYTES: Final = 3 << 20


def _bridge_only(kit: Kit) -> None:
    if not kit.bridge:
        raise Skipped("it is no bridge: stdio:COMMAND is one")


@_promise("W-13", "at the end of its input the bridge leaves with 0, and the turn goes on")
async def _leaves(kit: Kit) -> None:
    _bridge_only(kit)
    one, two = await kit.client(), await kit.client()
    session = await kit.session(one)
    _, run = await kit.begun(one, session, kit.plan.slow)
    await two.call("_goclaw/session/subscribe", {"sessionId": session})
    await one.close()
    expect(one.link.exit_code == 0, f"the bridge left with {one.link.exit_code}, not 0")
    state = (await two.call("_goclaw/run/get", {"runId": run}))["state"]
    expect(
        state in ("QUEUED", "RUNNING", "SUSPENDED"), f"the bridge left when its turn had {state}"
    )
    await kit.let_go()
    end = await two.wait(
        "the end of the turn",
        lambda m: (m.get("params") or {}).get("event", {}).get("type") == "run.ended",
    )
    state = end["params"]["event"]["state"]
    expect(state == "SUCCEEDED", f"the turn that was left alone ended {state}")


@_promise("W-13", "its output may be a file, and holds nothing but messages")
async def _into_a_file(kit: Kit) -> None:
    _bridge_only(kit)
    other = await kit.client()
    with tempfile.TemporaryFile() as file:
        client = await kit.stranger(into=file)
        await client.request("initialize", {"protocolVersion": 1, "clientCapabilities": {}})
        await client.request("session/list")
        written = b""
        for _ in range(_ASKS_MAX):
            await other.call("session/list")
            file.seek(0)
            written = file.read()
            if written.count(b"\n") >= 2:
                break
    try:
        messages = [json.loads(line) for line in written.splitlines()]
    except ValueError:
        messages = []
    ids = [message.get("id") for message in messages if isinstance(message, dict)]
    expect(len(messages) == len(ids) and ids == [1, 2], f"the file holds {written[:200]!r}")


@_promise("W-13", "a prompt of 3 MB goes through on one line")
async def _long_line(kit: Kit) -> None:
    _bridge_only(kit)
    client = await kit.client()
    session = await kit.session(client)
    turn = await kit.flood(client, session, _LONG_BYTES)
    shown = sum(len(json.dumps(update)) for update in client.updates(session))
    expect(shown >= _LONG_BYTES, f"of {_LONG_BYTES} bytes {shown} came back")
    expect(turn.stop_reason != "cancelled", "the turn of a long prompt was cancelled")


@_promise("W-13", "the death of its server is not noticed: each update once, each answer once")
async def _rides_out(kit: Kit) -> None:
    _bridge_only(kit)
    client = await kit.client()
    session = await kit.session(client)
    request, run = await kit.begun(client, session, kit.plan.slow)
    queued = await kit.ask(client, session)
    await kit.fell()
    await kit.let_go()
    turns = [turn_of(await client.answer(request)), turn_of(await client.answer(queued))]
    expect(turns[0].run == run, "the turn was answered with another run")
    ids = client.ids(session)
    expect(ids[-1] >= turns[1].event_id, "an answer before its last event")
    expect_ids(ids, list(range(1, len(ids) + 1)))
