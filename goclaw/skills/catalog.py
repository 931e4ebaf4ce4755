"""Which skills there are: the built-in ones and those of the home (K-1, K-8 in its core).

Owns the finding, the precedence and the reading of module bytes. Not in here: the manifest's
grammar (``manifest.py``), and installation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from goclaw.core import limits
from goclaw.core.errors import SkillRefused
from goclaw.skills.manifest import Manifest, parse_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BUILTIN", "Catalog", "Problem", "Skill", "load_skill"]

BUILTIN: Final = Path(__file__).parent / "builtin"

Source = Literal["builtin", "installed"]


@dataclasses.dataclass(frozen=True, slots=True)
class Skill:
    """One usable skill. ``shadows`` names the sources whose skill of that name it hides."""

    manifest: Manifest
    source: Source
    folder: Path
    shadows: tuple[Source, ...] = ()

    kind = "wasm"
    sandbox = "wasm"

    @property
    def name(self) -> str:
        """The name it is called by."""
        return self.manifest.name

    def read_module(self) -> bytes:
        """The module's bytes, whose hash is the manifest's; SkillRefused when they differ."""
        module = _read(self.folder / "skill.wasm", limits.WASM_MODULE_BYTES_MAX)
        found = hashlib.sha256(module).hexdigest()
        if found != self.manifest.sha256:
            raise SkillRefused(
                f"{self.name}: skill.wasm has the hash {found}, its manifest says"
                f" {self.manifest.sha256}.",
                hint="Install the skill again, or write the new hash into skill.toml.",
            )
        return module

    def as_listing(self) -> dict[str, Any]:
        """What ``goclaw skill list`` and clients are told."""
        return {
            "name": self.name,
            "version": self.manifest.version,
            "kind": self.kind,
            "sandbox": self.sandbox,
            "abi": self.manifest.abi,
            "description": self.manifest.description,
            "effect": self.manifest.effect.value,
            "capabilities": list(self.manifest.capabilities),
            "input": self.manifest.input,
            "output": self.manifest.output,
            "source": self.source,
            "shadows": list(self.shadows),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A folder that looks like a skill and is none, and why."""

    folder: Path
    error: SkillRefused


class Catalog:
    """The skills at one moment: built-in ones, and over them those of ``skills_dir``.

    Reads the disk once, when built; a broken installed skill becomes a Problem and hides nothing.
    Immutable, so safe on any thread.
    """

    def __init__(self, skills_dir: Path | None = None) -> None:
        self._skills: dict[str, Skill] = {}
        problems: list[Problem] = []
        for folder in _skill_folders(BUILTIN):
            skill = load_skill(folder, "builtin")
            self._skills[skill.name] = skill
        for folder in _skill_folders(skills_dir) if skills_dir is not None else ():
            try:
                skill = load_skill(folder, "installed")
            except SkillRefused as error:
                problems.append(Problem(folder, error))
                continue
            hidden = self._skills.get(skill.name)
            shadows = () if hidden is None else (hidden.source,)
            self._skills[skill.name] = dataclasses.replace(skill, shadows=shadows)
        self.problems = tuple(problems)

    def __iter__(self) -> Iterator[Skill]:
        return iter(sorted(self._skills.values(), key=lambda skill: skill.name))

    def __len__(self) -> int:
        return len(self._skills)

    def get(self, name: str) -> Skill | None:
        """The skill that a call by this name runs, None when there is none."""
        return self._skills.get(name)


def load_skill(folder: Path, source: Source) -> Skill:
    """Reads one skill's folder; SkillRefused says what is wrong with it. The module's hash is
    checked when its bytes are read, not here: listing skills reads no modules.
    """
    manifest = parse_manifest(_read(folder / "skill.toml", limits.SKILL_MANIFEST_BYTES_MAX))
    if manifest.name != folder.name:
        raise SkillRefused(
            f"skill.toml: name: {manifest.name!r} lies in a folder called {folder.name!r}.",
            field="name",
        )
    return Skill(manifest, source, folder)


def _skill_folders(parent: Path) -> list[Path]:
    """Subfolders with a skill.toml, sorted by name; links are not followed."""
    try:
        entries = [entry for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    if len(entries) > limits.SKILLS_MAX:
        raise SkillRefused(f"{parent} holds more than {limits.SKILLS_MAX} folders.")
    folders = sorted(Path(entry.path) for entry in entries)
    return [folder for folder in folders if (folder / "skill.toml").exists()]


def _read(path: Path, bytes_max: int) -> bytes:
    try:
        # no link is followed, and a pipe in its place blocks nobody
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SkillRefused(f"{path} cannot be read: {error.strerror}.") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SkillRefused(f"{path} cannot be read: it is no regular file.")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(bytes_max + 1)
    finally:
        os.close(fd)
    if len(data) > bytes_max:
        raise SkillRefused(f"{path} is larger than {bytes_max} bytes.")
    return data
