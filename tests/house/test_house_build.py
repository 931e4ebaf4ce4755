"""The build knows every native source: what it leaves out is neither rebuilt nor shipped.

Owns the list that setup.py hands to Extension. Not in here: what the sources hold (``checks.py``).
"""

from __future__ import annotations

import runpy
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import checks

if TYPE_CHECKING:
    import pytest


def extensions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What setup.py hands to Cython, with the builders replaced by what only writes it down."""
    handed: list[Any] = []

    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made)

    def extension(name: str, files: list[str], **options: Any) -> SimpleNamespace:
        return SimpleNamespace(name=name, files=files, **options)

    def cythonize(given: list[Any], **_options: Any) -> list[Any]:
        handed.extend(given)
        return given

    module("setuptools", Extension=extension, setup=lambda **_options: None)
    module("setuptools.command")
    module("setuptools.command.build_ext", build_ext=object)
    module("setuptools.errors", BaseError=Exception)
    module("Cython")
    module("Cython.Build", cythonize=cythonize)
    monkeypatch.delenv("GOCLAW_BUILD", raising=False)
    runpy.run_path(str(checks.ROOT / "setup.py"))
    return handed


def test_every_native_source_is_rebuilt_from_and_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checks.ROOT)
    built = {extension.name: set(extension.depends) for extension in extensions(monkeypatch)}
    sources = {
        str(file.relative_to(checks.ROOT))
        for file in checks.tracked(checks.ROOT)
        if file.parent == checks.ROOT / "goclaw/_fast" and file.suffix not in (".py", ".pyi")
    }
    assert set().union(*built.values()) == sources
    parts = {file for file in sources if not file.endswith(".pyx")}
    assert parts
    assert parts <= built["goclaw._fast.writer"]
