"""The twins have the faces that the stubs promise; stubtest holds the native modules to them."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOUNS = ("frame", "ring", "rules", "writer")


def stub_of(noun: str) -> ast.Module:
    return ast.parse((ROOT / "goclaw" / "_fast" / f"{noun}.pyi").read_text("utf-8"))


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]


@pytest.mark.parametrize("noun", NOUNS)
def test_the_twin_has_the_face_of_the_stub(noun: str) -> None:
    twin: Any = importlib.import_module(f"goclaw._pure.{noun}")
    for node in stub_of(noun).body:
        if isinstance(node, ast.FunctionDef):
            assert list(inspect.signature(getattr(twin, node.name)).parameters) == parameters(node)
        if isinstance(node, ast.ClassDef):
            kind = getattr(twin, node.name)
            for method in node.body:
                if not isinstance(method, ast.FunctionDef):
                    continue
                if any(getattr(d, "id", "") == "property" for d in method.decorator_list):
                    continue
                name = "__init__" if method.name == "__new__" else method.name
                found = list(inspect.signature(getattr(kind, name)).parameters)[1:]
                assert found == parameters(method)[1:], f"{noun}.{node.name}.{name}"
