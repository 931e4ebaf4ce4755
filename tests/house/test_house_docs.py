"""Holds the documentation to the code: generated pages are fresh, every name is somewhere.

Owns which names must appear. Not in here: the pages' generator (``generated.py``).
"""

from __future__ import annotations

import enum
import re
import shlex
from typing import TYPE_CHECKING

import checks
import generated
import pytest

from goclaw.cli import grammar
from goclaw.core import config, faults, states
from goclaw.core.errors import UsageError
from goclaw.gateway import handlers, server
from goclaw.protocol import methods

if TYPE_CHECKING:
    from pathlib import Path

DOCS = checks.ROOT / "docs"


def documentation() -> str:
    files = [*sorted(DOCS.rglob("*.md")), checks.ROOT / "README.md"]
    return "\n".join(file.read_text("utf-8") for file in files if file.exists())


@pytest.mark.req("Q-1")
@pytest.mark.parametrize("name", sorted(generated.PAGES))
def test_a_generated_page_is_fresh(name: str) -> None:
    written = (DOCS / name).read_text("utf-8")
    assert written == generated.PAGES[name](), "run: python -m tests.house.generated"


def test_every_error_code_is_documented() -> None:
    kinds = generated.all_errors()
    names = [kind.code for kind in kinds] + [str(kind.rpc) for kind in kinds]
    assert not checks.undocumented(names, documentation())


@pytest.mark.req("W-11")
def test_every_method_is_documented() -> None:
    """A new one: a row in METHODS (or MIRRORS) of goclaw/protocol/methods.py."""
    known = {row.name for row in methods.METHODS} | {
        f"_goclaw/admin/{verb}" for verb in methods.MIRRORS
    }
    assert {name for name in server.METHODS if name.startswith("_goclaw/")} == known
    assert not checks.undocumented(sorted(server.METHODS), documentation())
    assert server.METHODS.keys() | handlers.NOTIFICATIONS.keys() == methods.NAMES


# Commands that look at no daemon and change none.
OF_NO_DAEMON = {
    "serve": "is the daemon",
    "run": "is session/prompt",
    "acp": "is the wire",
    "tui": "is a client of all of it",
    "worker": "is _goclaw/worker/*",
    "policy check": "judges a file",
    "policy show": "shows a file",
    "drill crash": "has daemons of its own",
    "init": "makes a home before there is a daemon",
    "doctor": "looks at a home, whether a daemon holds it or not",
    "upgrade": "migrates a copy, whether a daemon holds the home or not",
    "restore": "wants a home that no daemon holds",
    "verify": "reads a home's database, whether a daemon holds it or not",
    "logs": "reads files of the home",
    "completion": "is text for a shell",
}


@pytest.mark.req("W-11")
def test_every_command_has_a_method() -> None:
    """A new one: `_goclaw/admin/<verb>` as METHODS or MIRRORS of goclaw/protocol/methods.py says,
    or a reason above."""
    commands = [words.removeprefix("goclaw ") for words, _ in generated._verbs(grammar.build())]
    left = {name for name in commands if f"_goclaw/admin/{name.split()[0]}" not in server.METHODS}
    assert left - set(OF_NO_DAEMON) == set()
    for verb, words in methods.MIRRORS.items():
        twins = {name.partition(" ")[2] for name in commands if name.split()[0] == verb}
        assert twins == {""} or twins <= set(words), verb


def test_every_setting_is_documented() -> None:
    text = documentation()
    assert not checks.undocumented([row.key for row in config.settings()], text)
    assert all(f"[{row.section}]" in text for row in config.settings())


def test_every_state_and_class_is_documented() -> None:
    names = [str(member) for kind in (states.State, states.EffectClass) for member in kind]
    assert not checks.undocumented(names, documentation())


def pages() -> list[Path]:
    return [*sorted(DOCS.rglob("*.md")), checks.ROOT / "README.md"]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    assert checks.dead_links(page) == []


def test_a_dead_link_is_reported(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# A head, `code` and [a](b.md)\n\n```sh\n# no head\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "[x](b.md) [x](b.md#a-head-code-and-a) [x](https://x.example/y) [x](#here)\n## Here\n"
        "[x](c.md) [x](b.md#no-head) [x](#there)\n`[x](code)`\n"
    )
    assert checks.dead_links(page) == ["c.md", "b.md#no-head", "#there"]


@pytest.mark.req("U-1")
@pytest.mark.parametrize(
    "page", [page for page in pages() if page.name != "cli.md"], ids=lambda page: page.name
)
def test_every_command_that_is_shown_can_be_typed(page: Path) -> None:
    """Names stand for ids, so they are not carried out here: the grammar takes them."""
    for line in checks.shown_commands(page.read_text("utf-8")):
        words = shlex.split(re.sub(r"\b(EVENT|ORDINAL)\b", "1", line), comments=True)[1:]
        try:
            grammar.parse(words)
        except UsageError as error:
            raise AssertionError(f"{line}: {error}") from None


def test_a_shown_command_is_found() -> None:
    text = """
```sh
goclaw a \\
  --b   # why
.venv/bin/goclaw c
ls; GOCLAW_HOME=h goclaw d | wc
```
`goclaw e`
"""
    assert checks.shown_commands(text) == ["goclaw a   --b   # why", "goclaw c", "goclaw d"]


def test_a_missing_name_is_reported() -> None:
    assert checks.undocumented(["lanes", "lane"], "`lanes`: how many") == [
        "the documentation does not mention lane"
    ]


def test_every_member_says_its_piece() -> None:
    """STYLE 4: what a state means, who moves it on, what a crash leaves."""
    for kind in (states.State, states.EffectClass, states.EffectState):
        assert set(generated.member_texts(kind)) == set(kind.__members__)
    for text in generated.member_texts(states.State).values():
        assert text.count(".") >= 3
        assert "crash" in text.lower()


class Planted(enum.StrEnum):
    SAID = "said"
    """Says something."""
    MUTE = "mute"


def test_a_member_without_text_is_missing() -> None:
    assert generated.member_texts(Planted) == {"SAID": "Says something."}


def test_every_fault_point_says_what_is_true_then() -> None:
    assert all(len(text) > 20 for text in faults.POINTS.values())
