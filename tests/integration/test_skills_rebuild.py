"""skills/rebuild.py: the modules in the repository are what their sources give."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import pytest
import skills_support as support

from goclaw.skills import rebuild
from goclaw.skills.catalog import Catalog

if TYPE_CHECKING:
    from pathlib import Path

    from goclaw.skills.catalog import Skill

SKILLS = list(Catalog())
NO_COMPILER = "no clang with wasm-ld on PATH"

REQUESTS = {
    "word-count": [({"file": "x"}, b""), ({"file": "x"}, b"one two\n\xff three\n" * 9_999)],
    "sha256": [({"file": "x"}, b"abc" * 99_999), ({"text": "grüße"}, b"")],
    "json-query": [
        ({"pointer": "/a~1b/1", "json": '{"a/b": [1, 2e400]}'}, b""),
        ({"pointer": "/x", "file": "x"}, b'{"x": {"y": "\\u00e9 z"}}'),
    ],
}


def rebuilt(skill: Skill, folder: Path) -> bytes:
    if rebuild.clang_version() is None:
        pytest.skip(NO_COMPILER)
    return rebuild.build(skill.name, folder / "skill.wasm")


@pytest.mark.req("K-3", "K-5")
@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_the_manifest_has_the_hash_of_its_module(skill: Skill) -> None:
    module = (skill.folder / "skill.wasm").read_bytes()
    assert hashlib.sha256(module).hexdigest() == skill.manifest.sha256


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_a_rebuilt_module_is_the_same(skill: Skill, tmp_path: Path) -> None:
    """To the byte with the very compiler; in its answers with any other."""
    module = rebuilt(skill, tmp_path)
    if rebuild.clang_version() == rebuild.CLANG_VERSION:
        assert hashlib.sha256(module).hexdigest() == skill.manifest.sha256
        return
    fresh = support.skill_from_bytes(tmp_path / "made", module, name=skill.name)
    box = support.new_sandbox(tmp_path / "cache")
    for request, data in REQUESTS[skill.name]:
        text = json.dumps(request).encode()
        old = support.run_on_bytes(box, skill, data, text)
        assert support.run_on_bytes(box, fresh, data, text) == old
    box.close()


def test_a_rebuild_in_place_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if rebuild.clang_version() is None:
        pytest.skip(NO_COMPILER)
    copy = tmp_path / "builtin"
    shutil.copytree(rebuild.BUILTIN, copy)
    monkeypatch.setattr(rebuild, "BUILTIN", copy)
    assert rebuild.main() == 0
    assert capsys.readouterr().out.count("sha256") == len(SKILLS) + 1  # one is called so
    for skill in SKILLS:
        for name in ("skill.toml", "main.c"):
            old = (skill.folder / name).read_bytes()
            if rebuild.clang_version() == rebuild.CLANG_VERSION:
                assert (copy / skill.name / name).read_bytes() == old
    (copy / "sha256" / "main.c").write_text("nonsense", "utf-8")
    assert rebuild.main() == 1
    assert "does not compile" in capsys.readouterr().err


def test_without_a_compiler_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert rebuild.main() == 1
    assert "clang and wasm-ld are needed" in capsys.readouterr().err
