"""Goclaw's own directory is closed to tools by whatever name it was given."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from goclaw.core.clock import SystemClock
from goclaw.core.decisions import Context, Origin, Subject, SubjectKind, Verdict
from goclaw.core.home import Home
from goclaw.engine.policies import Policies
from goclaw.policy import default
from goclaw.store import open_database
from goclaw.tools import files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.req("A-3", "A-9")
def test_a_home_behind_a_link_is_closed_where_it_really_lies(tmp_path: Path) -> None:
    """The gate decides about resolved paths, so the rule must hold the resolved home."""
    real = tmp_path / "real"
    real.mkdir()
    (real / "auth.token").write_text("secret")
    (real / "policy.toml").write_text(default.TEXT)
    (tmp_path / "link").symlink_to(real)

    async def body() -> Verdict:
        home = Home(tmp_path / "link")
        database = open_database(home.root)
        database.start(lambda events: None)
        try:
            policies = Policies(SystemClock(), database, home)
            await policies.load()
            roots = files.real_roots([str(tmp_path)])
            place = files.resolve("link/auth.token", str(tmp_path))
            subject = Subject(SubjectKind.RUN, "direct", Origin.UNIX)
            return policies.decide(subject, "fs.read", place.path, Context(roots=roots)).effect
        finally:
            database.close()

    assert asyncio.run(body()) is Verdict.DENY
