"""skills/manifest.py and skills/abi.py: what is accepted, and how precisely the rest is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.core.errors import SkillRefused, error_for_name
from goclaw.core.states import EffectClass
from goclaw.skills import abi
from goclaw.skills.manifest import Limits, parse_manifest

GOOD = """
name = "line-count"
version = "1.2.3-rc.1"
abi = "wasi-command/1"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
description = "Counts lines."
effect = "pure"
capabilities = ["fs.read", "net.connect:example.org"]

[input]
type = "object"
required = ["path"]
properties.path = { type = "string", format = "file" }
properties.deep = { type = "boolean" }

[output]
type = "object"

[limits]
wall_ms = 500
memory_bytes = 1_048_576
"""


def replaced(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


@pytest.mark.req("K-3")
def test_a_manifest_gives_all_it_must() -> None:
    found = parse_manifest(GOOD.encode())
    assert (found.name, found.version, found.abi) == ("line-count", "1.2.3-rc.1", "wasi-command/1")
    assert found.effect is EffectClass.PURE
    assert found.capabilities == ("fs.read", "net.connect:example.org")
    assert found.input["required"] == ["path"]
    assert found.limits == Limits(wall_ms=500, memory_bytes=1_048_576)
    assert found.limits.fuel == limits.WASM_FUEL


@pytest.mark.req("K-2")
def test_format_file_marks_the_one_file_argument() -> None:
    assert parse_manifest(GOOD.encode()).file_argument == "path"
    assert parse_manifest(replaced(', format = "file"', "")).file_argument is None


FIELDS = [
    "name", "version", "abi", "sha256", "description", "effect", "capabilities",
    "input", "output", "limits",
]  # fmt: skip


def without(field: str) -> bytes:
    kept: list[str] = []
    is_skipped = False
    for line in GOOD.splitlines():
        if line.startswith("["):
            is_skipped = line == f"[{field}]"
        if not is_skipped and not line.startswith(f"{field} ="):
            kept.append(line)
    return "\n".join(kept).encode()


@pytest.mark.req("K-3")
@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(SkillRefused, match=f"skill.toml: {field}: the field is missing") as caught:
        parse_manifest(without(field))
    assert caught.value.data == {"field": field}


WRONG = [
    ('name = "line-count"', 'name = "Line Count"', "name", "lower-case"),
    ('name = "line-count"', f'name = "{"a" * 65}"', "name", "longer than 64"),
    ('name = "line-count"', "name = 5", "name", "must be a string"),
    ('"1.2.3-rc.1"', '"1.2"', "version", "MAJOR.MINOR.PATCH"),
    ("0000", "000G", "sha256", "hexadecimal"),
    ('"Counts lines."', '" "', "description", "1 to 1024"),
    ('"pure"', '"mostly-harmless"', "effect", "pure, keyed, probeable, irreversible"),
    ('"fs.read"', "7", r"capabilities\[0\]", "must be a string"),
    ('"fs.read"', '"fs read"', r"capabilities\[0\]", "net.connect:HOST"),
    ('"fs.read"', '"fs.raed"', r"capabilities\[0\]", "did you mean fs.read"),
    ('"fs.read"', '"wasm.host:gpu"', r"capabilities\[0\]", "known are wasm.host:clock"),
    ('"fs.read"', '"wasm.host"', r"capabilities\[0\]", "known are wasm.host:clock"),
    ("[limits]", "[limits]\ncolour = 1", "limits.colour", "unknown field; known are fuel"),
    ("wall_ms = 500", "wall_ms = 0", "limits.wall_ms", "from 1 to 30000"),
    ("wall_ms = 500", "wall_ms = 30_001", "limits.wall_ms", "from 1 to 30000"),
    ("wall_ms = 500", "wall_ms = true", "limits.wall_ms", "whole number"),
    ("wall_ms = 500", "wall_ms = 1.5", "limits.wall_ms", "whole number"),
    ('type = "string", format', 'type = "integer", format', "input.properties.path.type", "string"),
    ('type = "boolean"', 'type = "string", format = "file"', "input.properties.deep.format",
     "a second file"),
    ('type = "boolean"', 'type = "array", items = { format = "file" }', "input", "itself"),
    ("properties.deep = {", "properties.deep = 5 #", "input.properties.deep", "a table"),
    ('[output]\ntype = "object"', '[output]\ntype = "string"', "output.type", "object"),
    ('[output]\ntype = "object"', '[output]\ntype = "object"\nproperties = 1',
     "output.properties", "a table"),
    ('[output]\ntype = "object"',
     '[output]\ntype = "object"\nproperties.f = { type = "string", format = "file" }',
     "output.properties.f.format", "no file"),
    ('name = "line-count"', 'name = "line-count"\ncolour = "red"', "colour", "unknown field"),
]  # fmt: skip


@pytest.mark.req("K-3")
@pytest.mark.parametrize(("old", "new", "field", "why"), WRONG)
def test_what_is_wrong_is_named(old: str, new: str, field: str, why: str) -> None:
    with pytest.raises(SkillRefused, match=f"skill.toml: {field}: .*{why}"):
        parse_manifest(replaced(old, new))


@pytest.mark.req("K-3")
def test_what_is_no_toml_is_told_by_its_line() -> None:
    with pytest.raises(SkillRefused, match="line 3"):
        parse_manifest(replaced('version = "1.2.3-rc.1"', "version = "))
    with pytest.raises(SkillRefused, match="no TOML"):
        parse_manifest(b"\xff")
    with pytest.raises(SkillRefused, match="no TOML"):
        parse_manifest(b"a = " + b"[" * 30_000)
    with pytest.raises(SkillRefused, match="larger than"):
        parse_manifest(b"#" * (limits.SKILL_MANIFEST_BYTES_MAX + 1))


@pytest.mark.req("A-14")
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: t.encode())))
def test_no_bytes_get_more_than_a_refusal(text: bytes) -> None:
    with pytest.raises(SkillRefused):
        parse_manifest(text)


def test_the_refusal_is_a_request_error() -> None:
    assert error_for_name("skill_refused") is SkillRefused
    assert SkillRefused.rpc == -32602


@pytest.mark.req("K-2")
def test_the_abi_table_decides_by_the_host_revision() -> None:
    assert abi.resolve("wasi-command/1").verdict == "native"
    assert abi.resolve("goclaw/1", host=2).module_abi == "goclaw/1"
    for unknown in ("goclaw/1", "wasi-command/2", ""):
        with pytest.raises(SkillRefused, match=r"does not speak .*wasi-command/1") as caught:
            abi.resolve(unknown)
        assert caught.value.data == {"abi": unknown}
    with pytest.raises(SkillRefused, match="abi"):
        parse_manifest(replaced("wasi-command/1", "wasi-command/9"))


@pytest.mark.req("K-2")
def test_the_abi_table_has_one_answer_for_each_host() -> None:
    for host in range(1, 5):
        names = [row.module_abi for row in abi.TABLE if row.spoken_by(host)]
        assert len(names) == len(set(names))
    for row in abi.TABLE:
        assert row.host_max is None or row.host_min <= row.host_max
        assert (row.verdict == "adapted") == (row.adapter is not None)
