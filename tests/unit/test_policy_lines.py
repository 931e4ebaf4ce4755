"""Every key and element of a document is found on its line, whatever TOML is made of."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goclaw.policy.lines import Path, locate

pytestmark = pytest.mark.req("A-3")

SAMPLE = '''\
# a comment with [brackets] = and "quotes"
version = 1  # "
name.first = "a ] } , # \\" b"

[table]
'quoted key' = 'C:\\path' # it's
"esc\\u0061ped" = """
[[not.a.table]]
key = \\"""no\\"""
""" # three
raw = \'\'\'
x = '1' \'\'\'
after = [ # a comment ]
  1, [2, "]"], # another
  { a = 1, b.c = [ 3 ] },
]
[table . "sub table"]
date = 1979-05-27 07:32:00
empty = {}
none = []
[[rule]]
id = "one"
[rule.conditions]
x = """"quoted""""
[[rule]]
[[rule.deep]]
k = -1.5e3
[[rule.deep]]
k = true
'''


def test_the_sample_is_valid() -> None:
    assert tomllib.loads(SAMPLE)["table"]["escaped"]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("version",), 2),
        (("name",), 3),
        (("name", "first"), 3),
        (("table",), 5),
        (("table", "quoted key"), 6),
        (("table", "escaped"), 7),
        (("table", "raw"), 11),
        (("table", "after"), 13),
        (("table", "after", 0), 14),
        (("table", "after", 1), 14),
        (("table", "after", 1, 1), 14),
        (("table", "after", 2), 15),
        (("table", "after", 2, "b", "c", 0), 15),
        (("table", "sub table"), 17),
        (("table", "sub table", "date"), 18),
        (("table", "sub table", "none"), 20),
        (("rule",), 21),
        (("rule", 0), 21),
        (("rule", 0, "id"), 22),
        (("rule", 0, "conditions"), 23),
        (("rule", 0, "conditions", "x"), 24),
        (("rule", 1), 25),
        (("rule", 1, "deep", 0, "k"), 27),
        (("rule", 1, "deep", 1), 28),
        (("rule", 1, "deep", 1, "k"), 29),
    ],
)
def test_keys_and_elements_are_found(path: Path, line: int) -> None:
    assert locate(SAMPLE)[path] == line


def test_line_ends_of_windows_count_once() -> None:
    assert locate(SAMPLE.replace("\n", "\r\n")) == locate(SAMPLE)


def places(value: Any, path: Path = ()) -> set[Path]:
    """Each place of a parsed document."""
    found = {path} if path else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= places(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found |= places(inner, (*path, number))
    return found


keys = st.sampled_from(["a", "b", "c-d", '"e f"', "'g.h'", '"i\\"]"', "0"])
strings = st.sampled_from(
    [
        '""',
        "''",
        '"x # y"',
        "'\"'",
        '"\\\\"',
        '"""\n"]\n\\""""',
        "'''\n}'''",
        '"""""x"""""',
        '""""""',
    ]
)
scalars = st.one_of(strings, st.sampled_from(["1", "-0.5", "true", "1979-05-27", "inf", "0x1f"]))
blanks = st.sampled_from(["", " ", "\n", " # ] } \" '\n\t"])


def arrays(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    parts = st.tuples(blanks, inner, blanks).map("".join)
    return st.lists(parts, max_size=3).map(lambda found: f"[{','.join(found)}]")


def inlines(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(keys, inner), max_size=3, unique_by=lambda pair: pair[0])
    return pairs.map(lambda found: "{" + ", ".join(f"{key} = {what}" for key, what in found) + "}")


values = st.recursive(scalars, lambda inner: arrays(inner) | inlines(inner), max_leaves=6)
pairs = st.tuples(st.lists(keys, min_size=1, max_size=2).map(".".join), values).map(" = ".join)
headers = st.lists(keys, min_size=1, max_size=3).map(" . ".join)
statements = st.one_of(pairs, pairs, headers.map("[{}]".format), headers.map("[[{}]]".format))


@given(
    st.lists(st.tuples(statements, st.sampled_from(["", " # x", "\n"])).map("".join), max_size=8)
)
def test_every_place_of_every_document_is_found(lines: list[str]) -> None:
    text = ""
    for line in lines:  # keep what makes a valid document
        try:
            tomllib.loads(text + line + "\n")
        except tomllib.TOMLDecodeError:
            continue
        text += line + "\n"
    found = locate(text)
    assert places(tomllib.loads(text)) == set(found)
    assert all(1 <= line <= text.count("\n") for line in found.values())
