"""skills/sandbox.py and skills/wasi.py on modules made to break each rule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import skills_support as support
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.core.errors import (
    GoclawError,
    InternalError,
    InvalidParams,
    SkillCancelled,
    SkillFailed,
    SkillFault,
    SkillFuelExhausted,
    SkillHostCallsExceeded,
    SkillLogExceeded,
    SkillMemoryExceeded,
    SkillOutputExceeded,
    SkillOutputInvalid,
    SkillRefused,
    SkillStackExceeded,
    SkillTableExceeded,
    SkillTimedOut,
    SkillTrapped,
    TooLarge,
)
from goclaw.skills import abi, cranelift, sandbox, wasi
from goclaw.skills.catalog import Catalog
from goclaw.skills.manifest import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from goclaw.skills.catalog import Skill
    from goclaw.skills.sandbox import Sandbox

FOREVER = "(loop $again (br $again))"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = support.new_sandbox(tmp_path_factory.mktemp("cache"))
    yield made
    made.close()


def builtin(name: str) -> Skill:
    found = Catalog().get(name)
    assert found is not None
    return found


@pytest.mark.req("P-5")
def test_wasmtime_is_loaded_by_the_first_call_only() -> None:
    program = (
        "import sys, goclaw.skills.sandbox, goclaw.skills.catalog, goclaw.skills.rebuild\n"
        "goclaw.skills.catalog.Catalog()\n"
        "sys.exit('wasmtime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_engine_settings_follow_the_limits() -> None:
    assert dict(cranelift.SETTINGS)["max_wasm_stack"] == limits.WASM_STACK_BYTES_MAX


@pytest.mark.req("K-2")
def test_a_command_gets_its_name_and_request_and_nothing_else(box: Sandbox, tmp_path: Path) -> None:
    # writes argc, environment count, and the second argument's bytes, as JSON text
    wat = """(module
      (import "wasi_snapshot_preview1" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "environ_sizes_get"
        (func $env (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_prestat_get"
        (func $prestat (param i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_write"
        (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (func $one (param i32 i32)
        (i32.store (i32.const 32) (local.get 0)) (i32.store (i32.const 36) (local.get 1))
        (drop (call $write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 40))))
      (func (export "_start")
        (drop (call $sizes (i32.const 0) (i32.const 4)))
        (drop (call $env (i32.const 8) (i32.const 12)))
        (if (i32.ne (i32.load (i32.const 0)) (i32.const 2)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 8)) (i32.const 0)) (then unreachable))
        (if (i32.ne (call $prestat (i32.const 3) (i32.const 64)) (i32.const 8))
          (then unreachable))
        (drop (call $args (i32.const 16) (i32.const 1024)))
        ;; the second argument ends one byte before the end of the buffer
        (call $one (i32.load (i32.const 20))
          (i32.sub (i32.sub (i32.add (i32.const 1024) (i32.load (i32.const 4)))
            (i32.load (i32.const 20))) (i32.const 1)))))"""
    skill = support.skill_from_wat(tmp_path, wat)
    request = json.dumps({"text": "grüße", "n": [1, 2]}).encode()
    assert box.call(skill, request).output == request
    with pytest.raises(InvalidParams):
        box.call(skill, b'"\0"')
    with pytest.raises(TooLarge):
        box.call(skill, b'"%s"' % (b"x" * limits.PAYLOAD_BYTES_MAX))


@pytest.mark.req("K-6")
def test_every_call_gets_a_fresh_instance(box: Sandbox, tmp_path: Path) -> None:
    body = f"""(if (global.get $seen) (then unreachable))
      (if (i32.load (i32.const 8)) (then unreachable))
      (global.set $seen (i32.const 1)) (i32.store (i32.const 8) (i32.const 7)) {support.PUT_TEXT}"""
    wat = support.command(body, more="(global $seen (mut i32) (i32.const 0))")
    skill = support.skill_from_wat(tmp_path, wat)
    assert [box.call(skill, b"{}").output for _ in range(3)] == [b"{}"] * 3


GROW = f"""(loop $again
  (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) {"unreachable"}"""
PUT_FOREVER = (
    "(loop $again (call $put (i32.const {fd}) (i32.const 0) (i32.const 60000)) (br $again))"
)
LIMITS_BROKEN: list[tuple[str, str, str, type[SkillFault]]] = [
    ("fuel", FOREVER, "fuel = 1_000_000", SkillFuelExhausted),
    ("wall time", FOREVER, "wall_ms = 30", SkillTimedOut),
    ("memory", GROW, "memory_bytes = 1_048_576", SkillMemoryExceeded),
    ("stack", "(call $deep)", "", SkillStackExceeded),
    ("output", PUT_FOREVER.format(fd=1), "", SkillOutputExceeded),
    ("log", PUT_FOREVER.format(fd=2), "", SkillLogExceeded),
    ("host calls", PUT_FOREVER.format(fd=5), "host_calls = 1_000", SkillHostCallsExceeded),
    ("trap", "unreachable", "", SkillTrapped),
    ("bad address", "(drop (i32.load (i32.const -4)))", "", SkillTrapped),
    ("no JSON", "(call $put (i32.const 1) (i32.const 1024) (i32.const 1))", "", SkillOutputInvalid),
    ("no output", "", "", SkillOutputInvalid),
]


@pytest.mark.req("K-6")
@pytest.mark.parametrize(
    ("body", "bounds", "kind"),
    [row[1:] for row in LIMITS_BROKEN],
    ids=[r[0] for r in LIMITS_BROKEN],
)
def test_each_limit_has_its_own_reason(
    box: Sandbox, tmp_path: Path, body: str, bounds: str, kind: type[SkillFault]
) -> None:
    deep = "(func $deep (local i64 i64 i64) (call $deep) (call $deep))"
    skill = support.skill_from_wat(tmp_path, support.command(body, more=deep), bounds)
    with pytest.raises(SkillFault) as caught:
        box.call(skill, b"{}")
    assert type(caught.value) is kind
    # the engine that was interrupted serves the next call
    good = support.skill_from_wat(tmp_path, support.command(support.PUT_TEXT), name="good")
    assert box.call(good, b"{}").output == b"{}"


@pytest.mark.req("K-6")
def test_the_reasons_differ_from_each_other() -> None:
    kinds = [row[3] for row in LIMITS_BROKEN] + [SkillTableExceeded]
    assert len({kind.code for kind in kinds}) == len(set(kinds))


@pytest.mark.req("K-6")
@pytest.mark.parametrize(
    ("memory", "more", "kind"),
    [
        ("2000", "", SkillMemoryExceeded),
        ("1", "(table 20000 funcref)", SkillTableExceeded),
        ("1", "(table 1 funcref) (table 1 funcref)", SkillTableExceeded),
    ],
)
def test_a_module_that_starts_too_large_does_not_start(
    box: Sandbox, tmp_path: Path, memory: str, more: str, kind: type[SkillFault]
) -> None:
    skill = support.skill_from_wat(
        tmp_path, support.command(support.PUT_TEXT, memory=memory, more=more)
    )
    with pytest.raises(kind):
        box.call(skill, b"{}")


@pytest.mark.req("K-6")
def test_a_second_memory_is_no_way_around_the_bound(box: Sandbox, tmp_path: Path) -> None:
    wat = support.command(support.PUT_TEXT, more="(memory 1)")
    with pytest.raises(SkillRefused, match="memor"):
        box.call(support.skill_from_wat(tmp_path, wat), b"{}")


def test_the_call_may_set_limits_of_its_own(box: Sandbox, tmp_path: Path) -> None:
    skill = support.skill_from_wat(tmp_path, support.command(FOREVER))
    with pytest.raises(SkillFuelExhausted):
        box.call(skill, b"{}", limits=Limits(fuel=1_000))


@pytest.mark.req("K-7")
@pytest.mark.parametrize(
    ("text", "fd", "message"),
    [
        ('{"error": "no such key"}', 1, "no such key"),
        ('{"error": "no such key"}', 2, "no such key"),
        ("first\nlast line\n", 2, "last line"),
        ("", 2, "exit code 3"),
        ('{"error": 5}', 1, "exit code 3"),
    ],
)
def test_an_error_of_the_skill_is_no_fault(
    box: Sandbox, tmp_path: Path, text: str, fd: int, message: str
) -> None:
    body = f"""(call $put (i32.const {fd}) (i32.const 1024) (global.get $size))
      (call $proc_exit (i32.const 3)) unreachable"""
    skill = support.skill_from_wat(tmp_path, support.command(body, text=text))
    with pytest.raises(SkillFailed) as caught:
        box.call(skill, b"{}")
    assert (caught.value.message, caught.value.data) == (message, {"exitCode": 3})
    assert not isinstance(caught.value, SkillFault)


def test_exit_code_0_ends_well_and_what_follows_does_not_count(
    box: Sandbox, tmp_path: Path
) -> None:
    # called without a loop or function of its own between, so nothing has trapped yet
    again = "(drop (call $fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))"
    body = f"{support.PUT_TEXT} (call $proc_exit (i32.const 0)) {again} {FOREVER}"
    outcome = box.call(support.skill_from_wat(tmp_path, support.command(body)), b"{}")
    assert outcome.output == b"{}"
    assert outcome.host_calls == 2


def test_the_log_and_the_figures_of_a_call(box: Sandbox, tmp_path: Path) -> None:
    body = f"(call $put (i32.const 2) (i32.const 1024) (i32.const 1)) {support.PUT_TEXT}"
    outcome = box.call(support.skill_from_wat(tmp_path, support.command(body)), b"{}")
    assert (outcome.output, outcome.log, outcome.host_calls) == (b"{}", b"{", 2)
    assert outcome.memory_bytes == 65_536
    assert 0 < outcome.fuel_used < 100


@pytest.mark.req("Q-11", "Q-4")
def test_a_cancel_interrupts_its_call_and_no_other(box: Sandbox, tmp_path: Path) -> None:
    loop = support.skill_from_wat(tmp_path, support.command(FOREVER))
    # reads from a pipe before it goes on: runs as long as the test wants
    read = """(i32.store (i32.const 16) (i32.const 1024)) (i32.store (i32.const 20) (i32.const 2))
      (drop (call $fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))"""
    waiting = support.skill_from_wat(tmp_path, support.command(read + support.PUT_TEXT), name="w")
    reading, writing = os.pipe()
    cancels = [threading.Event() for _ in range(2)]
    ended: dict[str, object] = {}

    def run(name: str, skill: Skill, fd: int | None, cancel: threading.Event | None) -> None:
        try:
            ended[name] = box.call(skill, b"{}", fd, None, cancel).output
        except GoclawError as error:
            ended[name] = type(error)

    threads = [
        threading.Thread(target=run, args=("first", loop, None, cancels[0])),
        threading.Thread(target=run, args=("second", loop, None, cancels[1])),
        threading.Thread(target=run, args=("third", waiting, reading, None)),
    ]
    for thread in threads:
        thread.start()
    cancels[0].set()
    threads[0].join()
    assert ended == {"first": SkillCancelled}
    os.write(writing, b"[]")
    threads[2].join()
    assert ended["third"] == b"[]"
    assert "second" not in ended
    cancels[1].set()
    threads[1].join()
    assert ended["second"] is SkillCancelled
    os.close(reading)
    os.close(writing)


@pytest.mark.req("Q-11")
def test_a_cancel_reaches_a_call_that_waits_for_input(box: Sandbox) -> None:
    reading, writing = os.pipe()
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(SkillCancelled):
        box.call(builtin("word-count"), b"{}", reading, None, cancel)
    with pytest.raises(SkillTimedOut):
        box.call(builtin("word-count"), b"{}", reading, Limits(wall_ms=20))
    os.close(reading)
    os.close(writing)


def test_a_pipe_is_read_to_its_end(box: Sandbox) -> None:
    reading = support.pipe_with(b"a b\nc")
    output = box.call(builtin("word-count"), b"{}", reading).output
    assert json.loads(output) == {"lines": 1, "words": 3, "bytes": 5}
    os.close(reading)


def test_an_input_that_cannot_be_read_is_an_error_of_the_skill(
    box: Sandbox, tmp_path: Path
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(SkillFailed, match="could not be read"):
        box.call(builtin("word-count"), b"{}", folder)
    os.close(folder)


def test_many_calls_at_once(box: Sandbox) -> None:
    skill = builtin("word-count")
    wanted = [{"lines": n, "words": n, "bytes": 2 * n} for n in range(24)]
    found: list[object] = [None] * len(wanted)

    def run(n: int) -> None:
        found[n] = json.loads(support.run_on_bytes(box, skill, b"x\n" * n))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == wanted


@pytest.mark.req("I-5")
def test_engines_and_their_functions_are_given_back(tmp_path: Path) -> None:
    from wasmtime import _func

    small = support.new_sandbox(tmp_path / "cache")
    skill = support.skill_from_wat(tmp_path, support.command(support.PUT_TEXT))
    small.prepare(skill)
    per_engine = len(wasi.IMPORTS)
    before = len(_func.FUNCTIONS.handles)
    engines = [small._take(("other", "")) for _ in range(limits.WASM_ENGINES_IDLE_MAX + 3)]
    for engine in engines:
        small._give_back(engine)
    kept = limits.WASM_ENGINES_IDLE_MAX - 1  # one was there before
    assert len(_func.FUNCTIONS.handles) == before + kept * per_engine
    small.close()
    small.close()
    assert len(_func.FUNCTIONS.handles) == before - per_engine
    with pytest.raises(InternalError, match="closed"):
        small.call(skill, b"{}")


@pytest.mark.req("I-5")
def test_the_module_that_rested_longest_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WASM_MODULES_LOADED_MAX", 2)
    small = support.new_sandbox(tmp_path / "cache")
    skills = [
        support.skill_from_wat(
            tmp_path, support.command(support.PUT_TEXT, text=f"[{n}]"), name=f"s{n}"
        )
        for n in range(3)
    ]
    for n in (0, 1, 0, 2, 1, 0):
        assert small.call(skills[n], b"{}").output == f"[{n}]".encode()
    (engine,) = small._idle
    assert [key[0] for key in engine.modules] == [skills[n].manifest.sha256 for n in (1, 0)]
    small.close()


def test_closing_interrupts_what_runs(tmp_path: Path) -> None:
    small = support.new_sandbox(tmp_path / "cache")
    skill = support.skill_from_wat(tmp_path, support.command(FOREVER))
    small.prepare(skill)
    ended: list[type[Exception]] = []

    def run() -> None:
        try:
            small.call(skill, b"{}")
        except GoclawError as error:
            ended.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    while not small._ticker._watches and thread.is_alive():
        pass
    small.close()
    thread.join()
    assert ended == [SkillCancelled]


REFUSED = [
    ('(module (import "env" "f" (func)) (memory (export "memory") 1) (func (export "_start")))',
     "imports env.f"),
    ('(module (import "wasi_snapshot_preview1" "fd_magic" (func)) (memory (export "memory") 1)'
     ' (func (export "_start")))', "fd_magic"),
    ('(module (import "wasi_snapshot_preview1" "fd_read" (func)) (memory (export "memory") 1)'
     ' (func (export "_start")))', "does not link"),
    ('(module (func (export "_start")))', "no memory called 'memory'"),
    ('(module (memory (export "memory") 1))', "no function '_start'"),
    ('(module (memory (export "memory") 1) (func (export "_start") (param i32)))',
     "no function '_start'"),
    ('(module (memory (export "memory") 1) (global (export "_start") i32 (i32.const 0)))',
     "no function '_start'"),
]  # fmt: skip


@pytest.mark.req("K-2", "I-6")
@pytest.mark.parametrize(("wat", "message"), REFUSED)
def test_a_module_that_is_no_command_is_refused(
    box: Sandbox, tmp_path: Path, wat: str, message: str
) -> None:
    with pytest.raises(SkillRefused, match=message):
        box.call(support.skill_from_wat(tmp_path, wat), b"{}")


@pytest.mark.req("K-2")
def test_a_start_section_meets_the_same_bounds(box: Sandbox, tmp_path: Path) -> None:
    loop = support.command("", more=f"(func $s {FOREVER}) (start $s)")
    with pytest.raises(SkillFuelExhausted):
        box.call(support.skill_from_wat(tmp_path, loop, "fuel = 1_000"), b"{}")
    # before the instance exists there is no memory to read or write
    early = support.command("", more=f"(func $s {support.PUT_TEXT}) (start $s)")
    with pytest.raises(SkillOutputInvalid):
        box.call(support.skill_from_wat(tmp_path, early, name="early"), b"{}")


def wild_call(name: str, values: list[int]) -> str:
    """A module that calls one import with those arguments and then writes {}."""
    kinds = {"i": "i32", "I": "i64"}
    codes = wasi.IMPORTS[name]
    parameters = "".join(f"(param {kinds[code]})" for code in codes)
    result = "" if name == "proc_exit" else "(result i32)"
    constants = "".join(
        f"({kinds[code]}.const {value})" for code, value in zip(codes, values, strict=False)
    )
    call = f"(call $f {constants})"
    wat = f"""(module
      (import "wasi_snapshot_preview1" "{name}" (func $f {parameters} {result}))
      (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1) (data (i32.const 65408) "\\80\\ff\\00\\00\\02\\00\\00\\00[]")
      (func (export "_start") {call if name == "proc_exit" else f"(drop {call})"}
        (i32.store (i32.const 65408) (i32.const 65416)) (i32.store (i32.const 65412) (i32.const 2))
        (i32.store16 (i32.const 65416) (i32.const 0x5d5b))
        (drop (call $w (i32.const 1) (i32.const 65408) (i32.const 1) (i32.const 65424)))))"""
    return wat


WILD = st.one_of(
    st.integers(-(2**31), 2**31 - 1),
    st.sampled_from([0, 1, 2, 3, -1, 65_408, 65_416, 65_528, 65_532, 65_535, 65_536]),
)


@pytest.mark.req("A-14", "K-6")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(wasi.IMPORTS)), values=st.lists(WILD, min_size=9, max_size=9))
def test_no_argument_of_a_host_call_breaks_out(
    box: Sandbox, tmp_path: Path, name: str, values: list[int]
) -> None:
    skill = WildSkill(bytes(wasmtime.wat2wasm(wild_call(name, values))), tmp_path)
    try:
        output = skill.run()
    except (SkillFailed, SkillOutputInvalid, SkillOutputExceeded, SkillLogExceeded):
        return
    assert output.endswith(b"[]") or name == "proc_exit"


class WildSkill:
    """A module compiled in this process: a child per example would take minutes."""

    def __init__(self, module: bytes, folder: Path) -> None:
        self.skill = support.skill_from_bytes(folder, bytes(module))
        self.engine = sandbox._Engine()
        code = wasmtime.Module(self.engine.engine, bytes(module)).serialize()
        key = (self.skill.manifest.sha256, self.skill.manifest.abi)
        self.engine.load(key, bytes(code), "wild")

    def run(self) -> bytes:
        made = support.new_sandbox(self.skill.folder / "cache")
        bounds = Limits(fuel=1_000_000)
        try:
            outcome = made._run(self.engine, self.skill, b"{}", None, bounds, None, abi.HOST_CALLS)
        finally:
            self.engine.close()
            made.close()
        return outcome.output


ASKS_ITS_HOST = """
  (import "wasi_snapshot_preview1" "clock_time_get"
    (func $now (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_res_get" (func $res (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
"""
DIGIT = "(i32.add (i32.const 65) (i32.div_u {} (i32.const 8)))"


@pytest.mark.req("A-2", "K-2")
@pytest.mark.parametrize(
    ("given", "said"),
    [((), b'"JJJ"'), (("clock",), b'"AAJ"'), (("random",), b'"JJA"'),
     (("clock", "random"), b'"AAA"')],
)  # fmt: skip
def test_a_module_has_of_its_host_what_it_was_given(
    box: Sandbox, tmp_path: Path, given: tuple[str, ...], said: bytes
) -> None:
    """A is success, J the 76 of WASI: not capable."""
    calls = [
        "(call $now (i32.const 0) (i64.const 1) (i32.const 64))",
        "(call $res (i32.const 0) (i32.const 64))",
        "(call $random (i32.const 64) (i32.const 8))",
    ]
    marks = "".join(
        f"(i32.store8 (i32.const {1025 + index}) {DIGIT.format(call)})"
        for index, call in enumerate(calls)
    )
    wat = support.command(f"{marks} {support.PUT_TEXT}", text='"xyz"')
    wat = wat.replace("(module ", f"(module {ASKS_ITS_HOST}", 1)
    skill = support.skill_from_wat(tmp_path, wat)
    assert box.call(skill, b"{}", given=given).output == said


@pytest.mark.req("A-2", "K-3")
def test_what_a_manifest_wants_of_the_host_is_what_its_tool_asks_for(tmp_path: Path) -> None:
    from goclaw.skills.catalog import Catalog
    from goclaw.skills.tools import Listed

    wants = '["wasm.host:clock", "net.connect:a.example", "wasm.host:clock"]'
    support.skill_from_wat(tmp_path, support.command(""), wants=wants)
    (tool,) = [one for one in Listed(Catalog(tmp_path)).tools() if one.name == "made"]
    assert tool.host == ("clock",)
