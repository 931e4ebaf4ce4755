"""The audit: any record removed, changed or moved is found, and it holds after kill -9 (A-8)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from effects_support import World, first_life, sink_process
from hypothesis import given, settings
from hypothesis import strategies as st
from roof_support import World as Roof
from roof_support import world as roof
from wire_support import House, Lines, text, wire

from goclaw.core import limits
from goclaw.core.decisions import Context, Decision, Origin, Subject, SubjectKind, Verdict
from goclaw.engine.audit import Audit, link_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("A-8", "I-6")

WHO = Subject(SubjectKind.CLIENT, "me", Origin.UNIX)


def decision(number: int) -> Decision:
    return Decision(
        f"decision_{number}", number, WHO, "admin.stop", "all", Context(), Verdict.DENY, "r", "w",
        "v", (),
    )  # fmt: skip


@pytest.fixture
def sink(home: Path) -> Iterator[Path]:
    with sink_process(home / "sink") as socket:
        yield socket


def audited(
    home: Path, sink: Path, tamper: Callable[[apsw.Connection, Path], object] | None = None,
    count: int = 9,
) -> Any:  # fmt: skip
    """``count`` records are written, a life ends, somebody has their way, another life looks."""
    file = home / "audit.jsonl"

    async def body() -> Any:
        async with World(home, sink, open_lanes=False) as world:
            audit = Audit(world.database, world.clock, file)
            await audit.start()
            for number in range(count):
                await world.engine.audit(decision(number))
            await audit.close()
        if tamper is not None:
            connection = apsw.Connection(str(home / "goclaw.db"))
            tamper(connection, file)
            connection.close()
        async with World(home, sink, open_lanes=False) as world:
            audit = Audit(world.database, world.clock, file)
            if tamper is None:
                await audit.start()
                await audit.close()
            else:
                audit._copied = count  # as the life that copied them
            return await audit.verify()

    return asyncio.run(body())


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def sql(statement: str) -> Callable[[apsw.Connection, Path], object]:
    return lambda connection, _file: connection.execute(statement).fetchall()


def both(connection: apsw.Connection, file: Path) -> None:
    """Nothing but the chain itself can tell."""
    connection.execute(
        "UPDATE audit SET record = CAST(replace(record, 'deny', 'allow') AS BLOB) WHERE seq = 5"
    )
    rewrite(file, lambda all_: [*all_[:4], all_[4].replace("deny", "allow"), *all_[5:]])


SWAP = """
CREATE TEMP TABLE two AS SELECT seq, at, record, link FROM audit WHERE seq IN (3, 6);
UPDATE audit SET (at, record, link) = (SELECT at, record, link FROM two WHERE seq = 9 - audit.seq)
 WHERE seq IN (3, 6);
"""
TAMPERED: dict[str, tuple[Callable[[apsw.Connection, Path], object], int]] = {
    "removed": (sql("DELETE FROM audit WHERE seq = 4"), 4),
    "the first removed": (sql("DELETE FROM audit WHERE seq = 1"), 1),
    "the last removed": (sql("DELETE FROM audit WHERE seq = 9"), 9),
    "all removed": (sql("DELETE FROM audit"), 1),
    "removed and closed up": (
        sql("DELETE FROM audit WHERE seq = 4; UPDATE audit SET seq = seq - 1 WHERE seq > 4"), 4,
    ),
    "changed": (sql("UPDATE audit SET record = replace(record, 'deny', 'allow') WHERE seq = 5"), 5),
    "changed in both": (lambda connection, file: both(connection, file), 5),
    "another time": (sql("UPDATE audit SET at = at + 1 WHERE seq = 5"), 5),
    "moved": (sql(SWAP), 3),
    "the head moved back": (sql("UPDATE audit_head SET seq = 8"), 0),
    "a line removed": (lambda _, file: rewrite(file, lambda all_: all_[:3] + all_[4:]), 4),
    "the last line removed": (lambda _, file: rewrite(file, lambda all_: all_[:-1]), 9),
    "a line changed": (
        lambda _, file: rewrite(
            file, lambda all_: [*all_[:4], all_[4].replace("deny", "allow"), *all_[5:]]
        ), 5,
    ),
    "lines moved": (
        lambda _, file: rewrite(file, lambda all_: [*all_[:2], all_[3], all_[2], *all_[4:]]), 3,
    ),
    "the file removed": (lambda _, file: file.unlink(), 1),
    "no file any more": (lambda _, file: file.write_text("no\n"), 1),
}  # fmt: skip


def test_an_honest_chain_has_no_fault(home: Path, sink: Path) -> None:
    found = audited(home, sink)
    assert (found.records, found.faults, found.more) == (9, [], False)
    lines = (home / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, 10))
    assert json.loads(lines[-1])["link"] == found.link
    assert (home / "audit.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", TAMPERED)
def test_whatever_is_done_to_a_record_is_found(how: str, home: Path, sink: Path) -> None:
    tamper, seq = TAMPERED[how]
    found = audited(home, sink, tamper)
    assert found.faults, how
    if seq:
        assert seq in {fault.seq for fault in found.faults}, found.faults


def test_the_file_is_cut_short_in_the_middle_of_a_line_and_goes_on(home: Path, sink: Path) -> None:
    def tear(_: apsw.Connection, file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-20])

    audited(home, sink)
    tear(None, home / "audit.jsonl")  # type: ignore[arg-type]
    assert audited(home, sink, count=0).faults == []


def test_a_file_of_another_chain_is_put_aside(home: Path, sink: Path) -> None:
    audited(home, sink)
    rewrite(
        home / "audit.jsonl",
        lambda lines: [line.replace('"link":"', '"link":"0') for line in lines],
    )
    assert audited(home, sink, count=0).faults == []
    assert len(list(home.glob("audit-*.jsonl"))) == 1


@settings(max_examples=50)
@given(st.binary(min_size=32, max_size=32), st.integers(1, 2**40), st.integers(0, 2**45),
       st.binary(max_size=60), st.integers(0, 3), st.integers(0, 40))  # fmt: skip
def test_every_part_of_a_record_is_in_its_link(
    before: bytes, seq: int, at: int, record: bytes, part: int, place: int
) -> None:
    changed: list[Any] = [before, seq, at, record]
    if part in (1, 2):
        changed[part] += 1
    else:
        data = bytearray(changed[part] or b"\0")
        data[place % len(data)] ^= 1
        changed[part] = bytes(data)
    assert link_of(before, seq, at, record) != link_of(*changed)


@pytest.mark.parametrize(
    "point", ["before_intent", "after_intent", "before_result", "after_result"]
)
def test_the_chain_holds_after_a_kill(point: str, home: Path, sink: Path) -> None:
    """And what was dispatched has its decision on record: they commit together."""
    job = {"tool": "irreversible", "arguments": {"n": 1}}
    assert first_life(home, sink, job, f"{point}:kill") == -9

    async def body() -> None:
        async with World(home, sink, open_lanes=False) as world:
            audit = Audit(world.database, world.clock, home / "audit.jsonl")
            found = await audit.verify()
            assert found.faults == []
            rows = await world.database.read("audit_after", seq=0, limit=100)
            actions = [json.loads(row[2])["action"] for row in rows]
            assert ("tool.call" in actions) == (point != "before_intent")

    asyncio.run(body())


# -- retention -------------------------------------------------------------------------------------


class Later:
    """The clock, so many milliseconds on; it stands still."""

    def __init__(self, world: World, on_ms: int = 0) -> None:
        self._wall_ms, self._mono_ms = world.clock.wall_ms() + on_ms, world.clock.mono_ms()

    def wall_ms(self) -> int:
        return self._wall_ms

    def mono_ms(self) -> int:
        return self._mono_ms


def audit_of(world: World, home: Path, on_ms: int = 0) -> Audit:
    audit = Audit(world.database, Later(world, on_ms), home / "audit.jsonl")  # type: ignore[arg-type]
    audit._prune_due_ms = 1 << 62  # when the test says
    return audit


async def written(world: World, home: Path, count: int = 9) -> None:
    """The file is written like the daemon's: where it ends, it goes on."""
    audit = audit_of(world, home)
    await audit.start()
    for number in range(count):
        await world.engine.audit(decision(number))
    await audit.close()


OLD_MS = limits.AUDIT_RETENTION_MS + 60_000


@pytest.mark.req("S-5")
def test_what_is_old_goes_and_the_rest_is_proved_as_before(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, open_lanes=False) as world:
            await written(world, home)
            assert await audit_of(world, home).prune() == 0
            assert (await audit_of(world, home).verify()).records == 9
            later = audit_of(world, home, OLD_MS)
            assert await later.prune() == 9
            assert await later.prune() == 0
            found = await later.verify()
            assert (found.records, found.faults) == (2, [])
            rows = await world.database.read("audit_after", seq=0, limit=100)
            told = [json.loads(row[2]) for row in rows]
            assert [(one["type"], one["upTo"], one["records"]) for one in told] == [
                ("audit.pruned", 8, 8), ("audit.pruned", 9, 1),
            ]  # fmt: skip
            lines = (home / "audit.jsonl").read_text().splitlines()
            assert [json.loads(line)["seq"] for line in lines] == [10, 11]
            assert (home / "audit.jsonl").stat().st_mode & 0o777 == 0o600
            # what comes after goes on in the same chain
            await written(world, home, 3)
        async with World(home, sink, open_lanes=False) as world:
            audit = audit_of(world, home)
            await audit.start()
            await audit.close()
            found = await audit.verify()
            assert (found.records, found.faults) == (5, [])
            assert not list(home.glob("audit-*.jsonl")), "the file is of this chain"

    asyncio.run(body())


@pytest.mark.req("S-5", "A-8")
def test_nothing_is_forgotten_while_the_chain_is_read(home: Path, sink: Path) -> None:
    """A record that goes under a walk would look like one that somebody removed."""

    async def body() -> None:
        async with World(home, sink, open_lanes=False) as world:
            await written(world, home, 2 * limits.READ_ROWS_MAX)
            later = audit_of(world, home, OLD_MS)
            await later.start()
            found, gone = await asyncio.gather(later.verify(), later.prune())
            assert (found.records, found.faults) == (2 * limits.READ_ROWS_MAX, [])
            assert gone == 2 * limits.READ_ROWS_MAX
            assert (await later.verify()).faults == []
            await later.close()

    asyncio.run(body())


@pytest.mark.req("S-5")
def test_many_old_records_go_in_lots(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, open_lanes=False) as world:
            await written(world, home, 2 * limits.READ_ROWS_MAX + 5)
            later = audit_of(world, home, OLD_MS)
            assert await later.prune() == 2 * limits.READ_ROWS_MAX + 5
            assert (await later.verify()).faults == []

    asyncio.run(body())


@pytest.mark.req("S-5")
def test_a_crash_before_the_file_is_shortened_leaves_no_fault(
    home: Path, sink: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with World(home, sink, open_lanes=False) as world:
            await written(world, home)
            with monkeypatch.context() as broken:
                broken.setattr("goclaw.engine.audit._shorten", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    await audit_of(world, home, OLD_MS).prune()
            again = audit_of(world, home, OLD_MS)
            assert (await again.verify()).faults == []
            assert (home / "audit.jsonl").read_text().count("\n") == 11
            await again.prune()
            assert (await again.verify()).faults == []
            assert (home / "audit.jsonl").read_text().count("\n") == 2

    asyncio.run(body())


def anchored_at(seq: int) -> str:
    return (
        f"DELETE FROM audit WHERE seq <= {seq};"
        f"INSERT INTO meta (key, value) SELECT 'audit_anchor', '{seq} ' || lower(hex(link))"
        f" FROM gone"
    )


PRUNED_BY_OTHERS = {
    "a beginning that nobody told of": (
        "CREATE TEMP TABLE gone AS SELECT link FROM audit WHERE seq = 4;" + anchored_at(4), 4,
    ),
    "more than was told": (
        "UPDATE meta SET value = '10 ' || (SELECT lower(hex(link)) FROM audit WHERE seq = 10)"
        " WHERE key = 'audit_anchor'; DELETE FROM audit WHERE seq <= 10", 10,
    ),
    "the anchor taken away": ("DELETE FROM meta WHERE key = 'audit_anchor'", 1),
    "the anchor unreadable": ("UPDATE meta SET value = 'no' WHERE key = 'audit_anchor'", 1),
}  # fmt: skip


@pytest.mark.parametrize("how", PRUNED_BY_OTHERS)
def test_a_beginning_cut_off_by_others_is_found(how: str, home: Path, sink: Path) -> None:
    statement, seq = PRUNED_BY_OTHERS[how]

    async def body() -> None:
        async with World(home, sink, open_lanes=False) as world:
            await written(world, home)
            if "nobody" not in how:
                await audit_of(world, home, OLD_MS).prune()
                await written(world, home, 3)
        connection = apsw.Connection(str(home / "goclaw.db"))
        connection.execute(statement)
        connection.close()
        async with World(home, sink, open_lanes=False) as world:
            faults = (await audit_of(world, home).verify()).faults
            assert seq in {fault.seq for fault in faults}, faults

    asyncio.run(body())


def test_a_chain_with_a_fault_is_kept_as_it_is(home: Path, sink: Path) -> None:
    async def body() -> None:
        async with World(home, sink, open_lanes=False) as world:
            await written(world, home)
        connection = apsw.Connection(str(home / "goclaw.db"))
        connection.execute("UPDATE audit SET record = replace(record, 'deny', 'allow') WHERE seq=5")
        connection.close()
        async with World(home, sink, open_lanes=False) as world:
            assert await audit_of(world, home, OLD_MS).prune() == 0
            assert (await audit_of(world, home).verify()).faults[0].seq == 5

    asyncio.run(body())


# -- what is refused is on record ------------------------------------------------------------------


async def records(house: House) -> list[dict[str, Any]]:
    rows = await house.engine.database.read("audit_after", seq=0, limit=1000)
    return [json.loads(row[2]) for row in rows]


@wire(loops=["asyncio"])
async def test_every_method_before_the_handshake_is_refused_and_audited(house: House) -> None:
    from goclaw.gateway.server import METHODS

    asked = sorted(set(METHODS) - {"initialize"})
    link = await house.unix_link()
    assert isinstance(link, Lines)
    for number, method in enumerate(asked):
        await link.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method}).encode())
        answer = json.loads(await link.receive() or b"{}")
        assert answer["error"]["code"] in (-31008, -32600), (method, answer)
    await link.close()
    await house.gateway.close()
    refused = {
        one["resource"] for one in await records(house) if one.get("ruleId") == "(handshake)"
    }
    assert refused == set(asked)


@wire(loops=["asyncio"])
async def test_every_method_with_too_small_a_scope_is_refused_and_audited(house: House) -> None:
    from goclaw.gateway.scopes import ATTEMPT_METHODS
    from goclaw.gateway.server import METHODS

    client = await house.unix()
    session = (await client.call("session/new", {"cwd": "/tmp", "mcpServers": []}))["sessionId"]
    await client.call("_goclaw/task/submit", {"sessionId": session, "pool": "p", "payload": 1})
    claim = {"pool": "p", "max": 1, "waitMs": 0, "workerId": "w"}
    (task,) = (await client.call("_goclaw/worker/claim", claim))["tasks"]
    small = await house.unix(
        _meta={
            "goclaw": {"version": 1, "notifications": True, "attemptToken": task["attemptToken"]}
        }
    )
    asked = sorted(set(METHODS) - ATTEMPT_METHODS - {"initialize"})
    for method in asked:
        assert (await small.refused(method))["code"] == -31013, method
    await house.gateway.close()
    refused = {one["resource"] for one in await records(house) if one.get("ruleId") == "(scope)"}
    assert refused == set(asked)


@wire(loops=["asyncio"])
async def test_a_wrong_token_and_a_token_in_the_url_are_audited(house: House) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    for path, header in (("/ws", "Bearer wrong"), ("/ws?token=secret-in-url", None), ("/ws", None)):
        headers = {} if header is None else {"Authorization": header}
        with pytest.raises(InvalidStatus):
            await connect(f"ws://127.0.0.1:{house.port}{path}", additional_headers=headers)
    await house.gateway.close()
    refused = [one for one in await records(house) if one.get("ruleId") == "(unauthenticated)"]
    assert sum(one.get("count", 1) for one in refused) == 3
    assert "secret-in-url" not in json.dumps(refused)
    assert "wrong" not in json.dumps(refused)


@wire(loops=["asyncio"])
async def test_what_is_allowed_on_the_wire_is_counted(house: House) -> None:
    client = await house.unix()
    for _ in range(5):
        await client.call("_goclaw/system/status")
    session = (await client.call("session/new", {"cwd": "/tmp", "mcpServers": []}))["sessionId"]
    await client.call("session/prompt", {"sessionId": session, "prompt": text("say:x")})
    page = await client.call("_goclaw/admin/audit", {"limit": 1})
    assert page["records"][0]["record"]["action"] == "run.submit"
    verified = await client.call("_goclaw/admin/audit", {"verb": "verify"})
    assert (verified["ok"], verified["faults"]) == (True, [])
    await house.gateway.close()
    (counted,) = [one for one in await records(house) if one.get("type") == "protocol.counts"]
    counts = {one["method"]: one["count"] for one in counted["allowed"]}
    assert (counts["_goclaw/system/status"], counts["session/prompt"]) == (5, 1)


@pytest.fixture
def place(home: Path) -> Iterator[Roof]:
    with roof(home) as made:
        yield made


def test_the_command_line(place: Roof) -> None:
    place.goclaw("run", "/sleep 0")
    place.serve()
    (verified,) = place.lines("audit", "verify")
    assert verified["ok"]
    shown = place.lines("audit", "show", "--last", "3")
    assert [one["seq"] for one in shown] == [verified["records"] - 2 + n for n in range(3)]
    assert "tool.call" in place.goclaw("audit", "show").stdout
    place.end()
    connection = apsw.Connection(str(place.home.root / "goclaw.db"))
    connection.execute("UPDATE audit SET at = at + 1 WHERE seq = 2")
    connection.close()
    done = place.goclaw("audit", "verify", code=1)
    assert "record 2" in done.stdout
