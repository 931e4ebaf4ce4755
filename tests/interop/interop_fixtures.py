"""The real partners: the SDKs of the Agent Client Protocol, installed, started, and heard.

Owns the installed Node packages and one process for each SDK. Not in here: what the partners do
(``interop_partner.py``) and what goclaw must answer (``test_interop_*.py``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from interop_partner import EXAMPLE, Partner
from interop_schema import SCHEMA, Judge

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
PACKAGE = ("package.json", "package-lock.json", ".npmrc")


@pytest.fixture(scope="session")
def node_modules(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed Node packages; installed here when nobody did. Their lack fails the run."""
    given = os.environ.get("GOCLAW_NODE_MODULES")
    for modules in (Path(given) if given else None, HERE / "node_modules"):
        if modules is not None and _is_whole(modules):
            return modules.resolve()
    if given:
        pytest.fail(f"GOCLAW_NODE_MODULES={given} does not hold the SDKs", pytrace=False)
    lock = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    if pytestconfig.pluginmanager.has_plugin("cacheprovider"):
        folder = Path(pytestconfig.cache.mkdir("goclaw-interop")) / lock
    else:
        folder = tmp_path_factory.mktemp("interop") / lock
    if not _is_whole(folder / "node_modules"):
        _install(folder)
    return folder / "node_modules"


def _is_whole(modules: Path) -> bool:
    return (modules / SCHEMA).exists() and (modules / EXAMPLE).exists()


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail("the interop tests need Node and npm on PATH", pytrace=False)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in PACKAGE:
        shutil.copy(HERE / name, folder / name)
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(f"npm ci failed:\n{done.stdout}{done.stderr}", pytrace=False)


@pytest.fixture(scope="session")
def judge(node_modules: Path) -> Judge:
    return Judge.of_package(node_modules)


@pytest.fixture(scope="session")
def typescript(node_modules: Path) -> Iterator[Partner]:
    partner = Partner("typescript", node_modules)
    yield partner
    partner.close()


@pytest.fixture(scope="session")
def python(node_modules: Path) -> Iterator[Partner]:
    partner = Partner("python", node_modules)
    yield partner
    partner.close()
