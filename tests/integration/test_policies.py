"""The policies of a home: stored before active, pinned, reloaded or kept, and tried on the past."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from effects_support import POLICY, World, sink_process
from roof_support import World as Roof
from roof_support import world as roof
from wire_support import House, text, wire

from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.core.home import Home
from goclaw.engine.policies import Policies
from goclaw.policy import default, document

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("A-3")

RUN = Subject(SubjectKind.RUN, "direct", Origin.INTERNAL)
SHUT = """
[[rule]]
id = "shut"
effect = "deny"
actions = ["tool.call"]
"""
RATED = default.TEXT + (
    '\n[[rule]]\nid = "few"\neffect = "allow"\nactions = ["tool.call"]\n'
    'resources = [{ exact = "x/y" }]\n'
    "conditions = { rate_max = { calls = 2, per_s = 3600 } }\n"
)


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


async def versions(house: House, client: Any) -> list[str]:
    found = await client.call("_goclaw/admin/policy", {"verb": "history"})
    return [one["version"] for one in reversed(found["versions"])]


async def own_events(house: House, kind: str) -> list[dict[str, Any]]:
    found = await house.engine.database.read(
        "events_after", sid=house.services.system_sid, cursor=0, limit=100
    )
    return [orjson.loads(row[8]) for row in found if row[2] == kind]


@wire(loops=["asyncio"])
async def test_a_reload_stores_the_policy_before_it_is_in_force(house: House) -> None:
    client = await house.unix()
    first = document.load(default.TEXT, home=str(house.home)).version
    assert await versions(house, client) == [first]
    (house.home / "policy.toml").write_text(default.TEXT + SHUT)
    loaded = await client.call("_goclaw/admin/policy", {"verb": "reload"})
    second = document.load(default.TEXT + SHUT, home=str(house.home)).version
    assert loaded == {
        "version": second,
        "was": first,
        "changed": True,
        "warnings": loaded["warnings"],
    }
    assert "builtin-skills" in loaded["warnings"][0]["message"]
    assert await versions(house, client) == [first, second]
    stored = await house.engine.database.read("policy_get", version=second)
    assert stored == [(default.TEXT + SHUT,)]
    again = await client.call("_goclaw/admin/policy", {"verb": "reload"})
    assert (again["version"], again["changed"]) == (second, False)
    assert await versions(house, client) == [first, second], "what is in force is told once"
    told = await own_events(house, "policy.activated")
    assert [one["version"] for one in told] == [first, second]
    assert told[1]["was"] == first


@wire(loops=["asyncio"])
async def test_a_bad_reload_keeps_the_old_one_and_says_so(house: House) -> None:
    client = await house.unix()
    before = await client.call("_goclaw/admin/policy", {"verb": "history"})
    for bad, line in (
        (default.TEXT + "\n[[rule]]\nid = 7\n", None),
        ("version = 2", 1),
        ("\x00", 1),
    ):
        (house.home / "policy.toml").write_text(bad)
        error = await client.refused("_goclaw/admin/policy", {"verb": "reload"})
        assert error["data"]["line"] == line or line is None
        assert "stays" in error["data"]["hint"]
    (house.home / "policy.toml").unlink()
    await client.refused("_goclaw/admin/policy", {"verb": "reload"})
    assert await client.call("_goclaw/admin/policy", {"verb": "history"}) == before
    assert len(await own_events(house, "policy.refused")) == 4
    allowed = {"subject": "run/direct", "action": "brain.call", "resource": "direct"}
    explained = await client.call("_goclaw/admin/policy", {"verb": "explain", **allowed})
    assert explained["effect"] == "allow", "the policy in force goes on"


@wire(loops=["asyncio"])
async def test_reloads_under_load_lose_no_prompt(house: House) -> None:
    """Good and bad files by turns, while prompts run: each is decided by one of the two."""
    client = await house.unix()
    session = (await client.call("session/new", {"cwd": "/tmp", "mcpServers": []}))["sessionId"]
    path = house.home / "policy.toml"

    async def reload(number: int) -> None:
        path.write_text("no policy" if number % 2 else default.TEXT + "#" * number)
        await client.request("_goclaw/admin/policy", {"verb": "reload"})

    async def talk(number: int) -> str:
        answer = await client.call(
            "session/prompt", {"sessionId": session, "prompt": text(f"say:{number}")}
        )
        return str(answer["stopReason"])

    ends, *_ = await asyncio.gather(
        asyncio.gather(*(talk(number) for number in range(20))),
        *(reload(number) for number in range(20)),
    )
    assert ends == ["end_turn"] * 20
    assert len(await own_events(house, "policy.activated")) == 1, "comments are no other policy"


def policies(world: World, folder: Path) -> Policies:
    return Policies(world.clock, world.database, Home(folder))


def says(found: Policies, version: str | None = None, what: str = "builtin/sleep") -> Verdict:
    return found.decide(RUN, "tool.call", what, Context(), version=version).effect


@pytest.mark.req("A-3", "G-12")
def test_a_pinned_version_decides_while_work_is_pinned_to_it(home: Path, sink: Path) -> None:
    async def body() -> None:
        file = home / "policy.toml"
        async with World(home, sink) as world:
            file.write_text(default.TEXT)
            found = policies(world, home)
            old = (await found.load()).version
            world.policy = found.current
            # it is refused an answer and stays SUSPENDED, pinned to the old version
            accepted = await world.tool("irreversible", {"n": 1, "mode": "reset"})
            file.write_text(POLICY)
            world.policy = document.load(POLICY, home=str(home))
            task = await world.until(accepted.task_id)
            assert task["state"] in ("SUSPENDED", "SUCCEEDED", "FAILED")
            file.write_text(default.TEXT + SHUT)
            new = (await found.load()).version
            assert (says(found), says(found, new)) == (Verdict.DENY, Verdict.DENY)
            assert says(found, old) is Verdict.ALLOW, "the one of a moment ago is still known"

    asyncio.run(body())


@pytest.mark.req("A-3", "G-12")
def test_a_restart_still_knows_what_waiting_work_is_pinned_to(home: Path, sink: Path) -> None:
    async def body() -> None:
        file = home / "policy.toml"
        async with World(home, sink) as world:
            file.write_text(POLICY)
            found = policies(world, home)
            old = (await found.load()).version
            world.policy = found.current
            accepted = await world.tool("irreversible", {"n": 1, "mode": "reset"})
            task = await world.until(accepted.task_id)
            assert (task["state"], task["policy_version"]) == ("SUSPENDED", old)
        async with World(home, sink, open_lanes=False) as world:
            file.write_text(default.TEXT + SHUT)
            found = policies(world, home)
            await found.load()
            assert (says(found), says(found, old)) == (Verdict.DENY, Verdict.ALLOW)
            assert says(found, old, "sink/denied") is Verdict.DENY

    asyncio.run(body())


def test_a_restart_gives_no_new_allowance(home: Path, sink: Path) -> None:
    async def use(found: Policies, world: World) -> Verdict:
        decision = found.decide(RUN, "tool.call", "x/y", Context())
        await world.engine.audit(decision)
        return decision.effect

    async def body() -> None:
        (home / "policy.toml").write_text(RATED)
        async with World(home, sink) as world:
            found = policies(world, home)
            await found.load()
            assert await use(found, world) is Verdict.ALLOW
            assert found.explain(RUN, "tool.call", "x/y", Context()).effect is Verdict.ALLOW
        async with World(home, sink) as world:
            found = policies(world, home)
            await found.load()
            verdicts = [await use(found, world) for _ in range(3)]
            assert verdicts == [Verdict.ALLOW, Verdict.DENY, Verdict.DENY]
            (home / "policy.toml").write_text(RATED + "# the same\n")
            await found.load()
            assert await use(found, world) is Verdict.DENY

    asyncio.run(body())


def test_a_record_is_enough_to_decide_again() -> None:
    context = Context(roots=("/r",), interactive=True, risk=3, bytes=7, args_digest="d")
    for action, resource in (("fs.read", "/r/x"), ("tool.call", "builtin/sleep")):
        made = Decision(
            "d_1", 1_700_000_000_123, RUN, action, resource, context, Verdict.ASK, "r", "w", "v",
            ("notify",),
        )  # fmt: skip
        again = Decision.of_record(orjson.loads(orjson.dumps(made.to_record())))
        assert again.to_json() == made.to_json()
        assert again.context.interactive
        assert again.context.roots == (("/r",) if action == "fs.read" else ())


@wire(loops=["asyncio"])
async def test_another_policy_is_tried_on_what_is_on_record(house: House) -> None:
    client = await house.unix()
    engine, found = house.engine, house.services.policies

    async def record(action: str, what: str, times: int = 1, **context: Any) -> None:
        await engine.audit(found.decide(RUN, action, what, Context(**context)), count=times)

    await record("tool.call", "builtin/sleep", 3)
    await record("tool.call", "builtin/sha256")
    await record("fs.read", "/r/x", roots=("/r",))
    await record("fs.write", "/r/x", roots=("/r",), interactive=False)
    await record("fs.write", "/r/y", roots=("/r",), interactive=True)
    await record("mcp.call", "\ud800")
    denial = found.decide(RUN, "exec.run", "", Context())
    await engine.database.write(
        "audit", record=orjson.dumps(denial.to_json()), now=engine.clock.wall_ms()
    )

    async def tried(more: str, **params: Any) -> dict[str, Any]:
        body = {"verb": "test", "text": default.TEXT + more, **params}
        answer: dict[str, Any] = await client.call("_goclaw/admin/policy", body)
        return answer

    same = await tried("")
    assert (same["flips"], same["skipped"]) == ([], 2)
    made = same["decisions"]
    shut = await tried(SHUT)
    assert shut["decisions"] == made
    assert {(flip["resource"], flip["nowRule"], flip["count"]) for flip in shut["flips"]} == {
        ("builtin/sleep", "shut", 3),
        ("builtin/sha256", "shut", 1),
    }
    assert {(flip["was"], flip["now"]) for flip in shut["flips"]} == {("allow", "deny")}
    body = default.TEXT.replace("conditions = { interactive = false }", "", 1)
    loose = await client.call(
        "_goclaw/admin/policy", {"verb": "test", "text": body.replace("{root}", "/r")}
    )
    assert [
        (flip["action"], flip["resource"], flip["was"], flip["now"]) for flip in loose["flips"]
    ] == [("fs.write", "/r/y", "allow", "ask")]
    rated = default.TEXT.replace(
        'reason = "they can neither write nor reach',
        'conditions = { rate_max = { calls = 2, per_s = 60 } }\nreason = "they can neither write',
    )
    over = await client.call("_goclaw/admin/policy", {"verb": "test", "text": rated})
    assert [flip["resource"] for flip in over["flips"]] == ["builtin/sha256"]
    error = await client.refused("_goclaw/admin/policy", {"verb": "test", "text": "x"})
    assert error["data"]["line"] == 1
    assert (await tried("", withinMs=1))["decisions"] <= made


@pytest.mark.req("E-3")
@pytest.mark.parametrize(("form", "word"), [("task", "tell_brain"), ("prompt", "suspend")])
@pytest.mark.parametrize("way", ["reset", "lost"])
def test_the_rule_says_what_follows_an_unknown_outcome(
    form: str, word: str, way: str, home: Path, sink: Path
) -> None:
    """Against the default of its kind, in the attempt itself and when its lease is lost."""
    from test_effects_unknown import lose_lease, script

    policy = POLICY.replace('id = "sink"\n', f'id = "sink"\non_unknown = "{word}"\n')
    mode = "stall" if way == "lost" else way
    arguments = {"n": 1, "mode": mode}
    brain = script(home, {"call": "irreversible", "args": arguments}, {"say": "on"})

    async def body() -> None:
        async with World(home, sink, brain=brain, policy=policy) as world:
            world.tools.faults_left = 1
            if form == "task":
                accepted = await world.tool("irreversible", arguments)
            else:
                accepted = await world.prompt("go")
            if way == "lost":
                await world.tools.stalling.wait()
                await lose_lease(world, accepted.task_id)
            task = await world.until(accepted.task_id)
            if word == "suspend":
                assert (task["state"], task["reason"]) == ("SUSPENDED", "effect_unknown")
            else:  # a task is its one call, so what the call was told is its end
                assert task["state"] == "FAILED"
                assert "outcome unknown" in task["error"]

    asyncio.run(body())


@pytest.fixture
def place(home: Path) -> Iterator[Roof]:
    with roof(home) as made:
        yield made


def test_the_command_line(place: Roof) -> None:
    place.goclaw("run", "/sleep 0")
    place.serve()
    (first,) = place.lines("policy", "history")
    assert first["by"] == "start"
    other = place.cwd / "other.toml"
    other.write_text(default.TEXT + SHUT)
    shown = place.goclaw("policy", "check", str(other))
    assert "never decides" in shown.stderr
    flips = place.lines("policy", "test", str(other), "--since", "1d")
    assert ("builtin/sleep", "allow", "deny") in {
        (flip["resource"], flip["was"], flip["now"]) for flip in flips
    }
    place.home.policy.write_text(default.TEXT + SHUT)
    assert place.goclaw("policy", "reload").stdout.startswith("version ")
    place.home.policy.write_text("version = 3")
    assert "line 1" in place.goclaw("policy", "reload", code=3).stderr
