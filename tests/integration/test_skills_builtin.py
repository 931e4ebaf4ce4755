"""The three built-in skills against wc, hashlib and an oracle in Python."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import skills_support as support
from hypothesis import given, settings
from hypothesis import strategies as st

from goclaw.core import limits
from goclaw.core.errors import SkillFailed, SkillMemoryExceeded, SkillOutputExceeded
from goclaw.skills.catalog import BUILTIN, Catalog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from goclaw.skills.catalog import Skill
    from goclaw.skills.sandbox import Sandbox

SPACES = b" \t\n\v\f\r"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    made = support.new_sandbox(tmp_path_factory.mktemp("cache"))
    yield made
    made.close()


def builtin(name: str) -> Skill:
    found = Catalog().get(name)
    assert found is not None
    return found


def answer(box: Sandbox, name: str, request: object, data: bytes | None = None) -> Any:
    """The parsed result, checked against the skill's own schemas; numbers as they are written."""
    skill = builtin(name)
    text = json.dumps(request).encode()
    if data is None:
        output = box.call(skill, text).output
    else:
        output = support.run_on_bytes(box, skill, data, text)
    found = json.loads(output, parse_float=str, parse_int=str)
    jsonschema.validate(request, skill.manifest.input)
    jsonschema.validate(json.loads(output), skill.manifest.output)
    return found


# -- word-count --------------------------------------------------------------------------------


def count(box: Sandbox, data: bytes) -> tuple[int, int, int]:
    found = answer(box, "word-count", {"file": "x"}, data)
    return int(found["lines"]), int(found["words"]), int(found["bytes"])


def counted_by_wc(path: Path) -> tuple[int, int]:
    out = subprocess.run(["wc", "-lc", path], capture_output=True, text=True, check=True).stdout
    lines, size = out.split()[:2]
    return int(lines), int(size)


CASES = {
    "empty": b"",
    "no newline": b"one two",
    "text": b"one two\nthree\n\n  four  \n",
    "only newlines": b"\n" * 1_000,
    "spaces": SPACES * 100,
    "other blanks": "a b c\u00a0d\x1ce\x85f\x00g".encode(),
    "non-UTF-8": bytes(range(256)) * 33,
    "long word": b"x" * 100_000,
    "binary": random.Random(7).randbytes(1_500_001),
}


@pytest.mark.req("K-2")
@pytest.mark.parametrize("name", CASES)
def test_word_count_equals_wc(box: Sandbox, tmp_path: Path, name: str) -> None:
    data = CASES[name]
    path = tmp_path / "file"
    path.write_bytes(data)
    lines, words, size = count(box, data)
    assert (lines, size) == counted_by_wc(path)
    assert words == len(data.split())  # bytes.split knows just the six ASCII spaces


@pytest.mark.req("K-2")
def test_word_count_equals_wc_on_50_mb(box: Sandbox, tmp_path: Path) -> None:
    block = random.Random(3).randbytes(1_000_003).replace(b"\x07", b"\n").replace(b"\x08", b" ")
    path = tmp_path / "file"
    path.write_bytes(block * 50)
    with path.open("rb") as file:
        outcome = box.call(builtin("word-count"), b"{}", file.fileno())
    found = json.loads(outcome.output)
    assert (found["lines"], found["bytes"]) == counted_by_wc(path)
    assert found["words"] == len((block * 2).split()) + 48 * (
        len((block * 2).split()) - len(block.split())
    )
    assert outcome.memory_bytes < 2 * limits.MIB  # it streams


@given(st.lists(st.sampled_from([b"a", b"bc", b" ", b"\n", b"\t", b"\r\n", b"\xff\x00"])))
def test_word_count_on_any_bytes(box: Sandbox, parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert count(box, data) == (data.count(b"\n"), len(data.split()), len(data))


# -- sha256 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 262_143, 262_144, 600_001])
def test_sha256_of_a_file(box: Sandbox, size: int) -> None:
    data = random.Random(size).randbytes(size)
    found = answer(box, "sha256", {"file": "x"}, data)
    assert found == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": str(size)}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_sha256_of_a_text(box: Sandbox, text: str) -> None:
    data = text.encode()
    found = answer(box, "sha256", {"text": text})
    assert found == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": str(len(data))}


def test_sha256_needs_a_text_or_a_file(box: Sandbox) -> None:
    skill = builtin("sha256")
    for request, message in [
        ({}, "text or file is missing"),
        ({"text": 5}, "text: a string expected"),
        ([], "the request is no object"),
    ]:
        with pytest.raises(SkillFailed, match=message):
            box.call(skill, json.dumps(request).encode())


# -- json-query --------------------------------------------------------------------------------


def query(box: Sandbox, pointer: str, text: str) -> Any:
    """The raw result text of a query on JSON text."""
    request = json.dumps({"pointer": pointer, "json": text}).encode()
    return box.call(builtin("json-query"), request).output.decode()


RFC_6901 = """{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4,
  "i\\\\j": 5, "k\\"l": 6, " ": 7, "m~n": 8}"""


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/foo", '["bar","baz"]'),
        ("/foo/0", '"bar"'),
        ("/", "0"),
        ("/a~1b", "1"),
        ("/c%d", "2"),
        ("/e^f", "3"),
        ("/g|h", "4"),
        ("/i\\j", "5"),
        ('/k"l', "6"),
        ("/ ", "7"),
        ("/m~0n", "8"),
    ],
)
def test_the_examples_of_the_rfc(box: Sandbox, pointer: str, value: str) -> None:
    assert query(box, pointer, RFC_6901) == f'{{"found": true, "value": {value}}}'


@pytest.mark.parametrize(
    "pointer",
    ["/x", "/foo/2", "/foo/-", "/foo/00", "/foo/01", "/foo/1e0", "/foo/+1", "/foo/", "/foo/0/0",
     "/a/b", "//x", "/foo/99999999999999999999", "/FOO", "/fo", "/foo1"],
)  # fmt: skip
def test_what_a_pointer_does_not_find(box: Sandbox, pointer: str) -> None:
    assert query(box, pointer, RFC_6901) == '{"found": false}'


@pytest.mark.parametrize(
    ("pointer", "text", "value"),
    [
        ("/a/b", '{"a": {"b": 1}, "a": {"b": 2}}', "2"),
        ("", " [1 , 2 ] ", "[1,2]"),
        ("/a", r'{"a": "x\"  y \\"}', r'"x\"  y \\"'),
        (
            "/0",
            "[12345678901234567890123456789.000e+400]",
            "12345678901234567890123456789.000e+400",
        ),
        ("/0", "[-0]", "-0"),
        ("/\u00e9", r'{"\u00E9": true}', "true"),
        ("/\U0001f600", r'{"\uD83D\uDE00": null}', "null"),
        ("/~01", '{"~1": 1, "/": 2}', "1"),
        ("/a\u0000b", r'{"a\u0000b": 1}', "1"),
    ],
)
def test_values_come_back_as_written(box: Sandbox, pointer: str, text: str, value: str) -> None:
    assert query(box, pointer, text) == f'{{"found": true, "value": {value}}}'


def test_the_last_of_equal_names_counts_even_without_a_value(box: Sandbox) -> None:
    assert query(box, "/a/b", '{"a": {"b": 1}, "a": {}}') == '{"found": false}'


def test_the_document_may_be_a_value_or_a_file(box: Sandbox) -> None:
    document = {"a": [1, {"b": "c"}]}
    assert answer(box, "json-query", {"pointer": "/a/1", "json": document})["value"] == {"b": "c"}
    data = json.dumps(document).encode()
    found = answer(box, "json-query", {"pointer": "/a/0", "file": "x"}, data)
    assert found == {"found": True, "value": "1"}


@pytest.mark.parametrize(
    ("text", "at", "what"),
    [
        ("", 0, "a value expected"),
        ("[1, ]", 4, "a value expected"),
        ('{"a" 1}', 5, "a colon expected"),
        ("{a: 1}", 1, "a string expected"),
        ("[1 2]", 3, "a comma"),
        ("[1] x", 4, "something after the value"),
        ("01", 1, "something after the value"),
        ("1.", 2, "a digit expected"),
        ("-", 1, "a digit expected"),
        ("1e+", 3, "a digit expected"),
        ("nul", 3, "a value expected"),
        ("NaN", 0, "a value expected"),
        ('"a', 2, "a string without end"),
        ('"\n"', 1, "a control character"),
        ('"\\x"', 2, "unknown escape"),
        ('"\\u12g4"', 5, "four hexadecimal digits"),
        ('"\\ud800"', 7, "lone surrogate"),
        ('"\\udc00"', 7, "lone surrogate"),
        ("\ufeff1", 0, "a value expected"),
        ("9" * 401, 401, "a number of more than 400 characters"),
        ("[" * 300, 256, "nested deeper than 256"),
    ],
)
def test_invalid_json_is_an_error_with_its_place(
    box: Sandbox, text: str, at: int, what: str
) -> None:
    with pytest.raises(SkillFailed, match=f"invalid JSON at byte {at}: {what}"):
        query(box, "/a", text)


def test_the_whole_document_is_checked(box: Sandbox) -> None:
    with pytest.raises(SkillFailed, match="invalid JSON at byte 9"):
        query(box, "/a", '{"a": 1, }')


@pytest.mark.parametrize(
    "data", [b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xe2\x82"']
)
def test_what_is_not_utf_8_is_no_json(box: Sandbox, data: bytes) -> None:
    with pytest.raises(SkillFailed, match="not UTF-8"):
        answer(box, "json-query", {"pointer": "", "file": "x"}, data)


def test_a_bad_request_is_an_error_of_the_skill(box: Sandbox) -> None:
    skill = builtin("json-query")
    for request, message in [
        ({"json": "1"}, "pointer: a string expected"),
        ({"pointer": 1, "json": "1"}, "pointer: a string expected"),
        ({"pointer": "a", "json": "1"}, "must be empty or begin with '/'"),
        ({"pointer": "/~", "json": "1"}, "'~' must be followed by 0 or 1"),
        ({"pointer": "/~2", "json": "1"}, "'~' must be followed by 0 or 1"),
        ({"pointer": ""}, "json or file is missing"),
    ]:
        with pytest.raises(SkillFailed, match=re.escape(message)):
            box.call(skill, json.dumps(request).encode())


def test_a_document_near_the_memory_bound(box: Sandbox) -> None:
    data = b'{"a": "' + b"x" * 50_000_000 + b'", "b": [7]}'
    assert answer(box, "json-query", {"pointer": "/b/0", "file": "x"}, data)["value"] == "7"
    with pytest.raises(SkillOutputExceeded):
        answer(box, "json-query", {"pointer": "/a", "file": "x"}, data)
    with pytest.raises((SkillFailed, SkillMemoryExceeded), match=r"larger than|memory"):
        answer(box, "json-query", {"pointer": "/b", "file": "x"}, data + b" " * 20_000_000)


def test_the_c_sources_know_the_bounds() -> None:
    header = (BUILTIN / "include" / "json.h").read_text("utf-8")
    assert f"JSON_DEPTH_MAX = {limits.JSON_DEPTH_MAX}" in header
    assert f"JSON_NUMBER_CHARS_MAX = {limits.JSON_NUMBER_CHARS_MAX}" in header


NAMES = st.one_of(
    st.sampled_from(["", "a", "b", "0", "1", "-", "~", "/", "~1", "é", '"', "\\", "a/b"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def resolve(value: Any, tokens: list[str]) -> tuple[bool, Any]:
    """RFC 6901, the shortest way."""
    for token in tokens:
        if isinstance(value, dict) and token in value:
            value = value[token]
        elif (
            isinstance(value, list)
            and re.fullmatch(r"0|[1-9][0-9]*", token, re.ASCII)
            and int(token) < len(value)
        ):
            value = value[int(token)]
        else:
            return False, None
    return True, value


def paths(value: Any, sofar: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield sofar
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths(inner, (*sofar, name))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*sofar, str(index)))


@pytest.mark.req("K-2")
@settings(max_examples=300)
@given(value=VALUES, data=st.data())
def test_json_query_equals_the_oracle(box: Sandbox, value: Any, data: st.DataObject) -> None:
    tokens = list(data.draw(st.sampled_from(list(paths(value))) | st.lists(NAMES, max_size=3)))
    pointer = "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in tokens)
    text = json.dumps(
        value,
        ensure_ascii=data.draw(st.booleans()),
        indent=data.draw(st.sampled_from([None, 1])),
    )
    document = text if data.draw(st.booleans()) or isinstance(value, str) else value
    found = answer(box, "json-query", {"pointer": pointer, "json": document})
    written = json.loads(text, parse_float=str, parse_int=str)
    is_there, wanted = resolve(written, tokens)
    assert found == ({"found": True, "value": wanted} if is_there else {"found": False})


@pytest.mark.req("A-14")
@settings(max_examples=300)
@given(
    st.text(st.sampled_from('[]{},:"\\ \n01.-e+tfnulrsa\u00e9\ud800/'), max_size=20)
    | VALUES.map(json.dumps)
)
def test_json_query_accepts_what_python_accepts(box: Sandbox, text: str) -> None:
    def no(word: str) -> None:
        raise ValueError(word)

    data = text.encode("utf-8", "surrogatepass")
    try:
        wanted = json.loads(data.decode("utf-8"), parse_constant=no, parse_float=str, parse_int=str)
        json.dumps(wanted, ensure_ascii=False).encode("utf-8")  # no lone surrogates
    except ValueError:
        with pytest.raises(SkillFailed, match="invalid JSON at byte"):
            answer(box, "json-query", {"pointer": "", "file": "x"}, data)
    else:
        found = answer(box, "json-query", {"pointer": "", "file": "x"}, data)
        assert found == {"found": True, "value": wanted}
