"""skills/catalog.py: what is found where, what hides what, and what is wrong with the rest."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from goclaw.core import limits
from goclaw.core.errors import SkillRefused
from goclaw.skills import catalog
from goclaw.skills.catalog import Catalog

if TYPE_CHECKING:
    from pathlib import Path

BUILTIN_NAMES = ["json-query", "sha256", "word-count"]


def install(folder: Path, name: str, *, called: str | None = None) -> Path:
    """Copies the built-in word-count as an installed skill of another name."""
    place = folder / name
    shutil.copytree(catalog.BUILTIN / "word-count", place)
    manifest = place / "skill.toml"
    text = manifest.read_text("utf-8")
    manifest.write_text(text.replace('name = "word-count"', f'name = "{called or name}"'), "utf-8")
    return place


@pytest.mark.req("K-1")
def test_the_builtin_skills_are_there_and_sound() -> None:
    skills = Catalog()
    assert [skill.name for skill in skills] == BUILTIN_NAMES
    assert not skills.problems
    for skill in skills:
        listing = skill.as_listing()
        assert (listing["kind"], listing["sandbox"]) == ("wasm", "wasm")
        assert (listing["source"], listing["effect"]) == ("builtin", "pure")
        assert listing["description"]
        assert listing["input"]["type"] == "object"
        assert skill.manifest.file_argument == "file"
        assert len(skill.read_module()) < 16 * limits.KIB


@pytest.mark.req("K-8")
def test_installed_skills_come_before_builtin_ones_and_say_so(tmp_path: Path) -> None:
    install(tmp_path, "word-count")
    install(tmp_path, "my-count")
    skills = Catalog(tmp_path)
    assert [skill.name for skill in skills] == sorted([*BUILTIN_NAMES, "my-count"])
    assert len(skills) == 4
    found, mine, sha = (skills.get(name) for name in ("word-count", "my-count", "sha256"))
    assert found is not None
    assert mine is not None
    assert sha is not None
    assert (found.source, found.shadows) == ("installed", ("builtin",))
    assert (mine.source, mine.shadows) == ("installed", ())
    assert (sha.source, sha.shadows) == ("builtin", ())
    assert found.as_listing()["shadows"] == ["builtin"]
    assert skills.get("nothing") is None


def test_no_folder_is_an_empty_folder(tmp_path: Path) -> None:
    assert [skill.name for skill in Catalog(tmp_path / "skills")] == BUILTIN_NAMES


@pytest.mark.req("K-3")
def test_a_broken_skill_is_reported_and_hides_nothing(tmp_path: Path) -> None:
    (install(tmp_path, "word-count") / "skill.toml").write_text("name = 5\n", "utf-8")
    install(tmp_path, "other-folder", called="my-count")
    (tmp_path / "no-skill").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(catalog.BUILTIN / "word-count")
    skills = Catalog(tmp_path)
    assert [skill.name for skill in skills] == BUILTIN_NAMES
    problems = {problem.folder.name: str(problem.error) for problem in skills.problems}
    assert sorted(problems) == ["other-folder", "word-count"]
    assert "version: the field is missing" in problems["word-count"] or "name" in str(problems)
    assert "'my-count' lies in a folder called 'other-folder'" in problems["other-folder"]
    found = skills.get("word-count")
    assert found is not None
    assert found.source == "builtin"


@pytest.mark.req("K-3", "K-5")
def test_a_module_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    place = install(tmp_path, "my-count")
    skill = Catalog(tmp_path).get("my-count")
    assert skill is not None
    with (place / "skill.wasm").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(SkillRefused, match=r"skill\.wasm has the hash"):
        skill.read_module()
    (place / "skill.wasm").write_bytes(b"\0" * (limits.WASM_MODULE_BYTES_MAX + 1))
    with pytest.raises(SkillRefused, match="larger than"):
        skill.read_module()
    (place / "skill.wasm").unlink()
    with pytest.raises(SkillRefused, match="cannot be read"):
        skill.read_module()
    (place / "skill.wasm").mkdir()
    with pytest.raises(SkillRefused, match="cannot be read"):
        skill.read_module()


@pytest.mark.req("I-5")
def test_the_number_of_folders_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SKILLS_MAX", 2)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    with pytest.raises(SkillRefused, match="more than 2 folders"):
        Catalog(tmp_path)
