"""Holds the documentation to the code: generated pages are fresh, every name is somewhere.

Owns which names must appear. Not in here: the pages' generator (``generated.py``).
"""

from __future__ import annotations

import enum

import checks
import generated
import pytest

from goclaw.core import config, faults, states

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


def test_every_setting_is_documented() -> None:
    text = documentation()
    assert not checks.undocumented([row.key for row in config.settings()], text)
    assert all(f"[{row.section}]" in text for row in config.settings())


def test_every_state_and_class_is_documented() -> None:
    names = [str(member) for kind in (states.State, states.EffectClass) for member in kind]
    assert not checks.undocumented(names, documentation())


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
