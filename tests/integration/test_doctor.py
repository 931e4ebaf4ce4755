"""`goclaw doctor` and `goclaw init` (U-5, U-7): each finding on a home that is really so.

Owns the damage and what is said about it. Not in here: mending.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import CLOCK, World, world

from goclaw.core import limits
from goclaw.core.errors import ConfigRefused
from goclaw.core.home import Home
from goclaw.ops import doctor as ops
from goclaw.policy import default
from goclaw.store import database_files, open_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from goclaw.core.config import Config

pytestmark = pytest.mark.req("U-7")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Whole: a token, settings, a policy, a database."""
    made = Home(tmp_path / "h")
    made.ensure(default.TEXT, CLOCK.random_bytes)
    open_database(made.root).close()
    return made


def refuse_odd(config: Config) -> None:
    if config.brain.default == "odd":
        raise ConfigRefused("There is no brain 'odd'.", hint="There is direct.")


def examine(home: Home, **options: Any) -> dict[str, ops.Check]:
    environ = options.pop("environ", {})
    clock = options.pop("clock", CLOCK)
    patient = ops.Patient(home, environ, clock, refuse_odd, is_served=False, **options)
    return {check.name: check for check in ops.examine(patient)}


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode, path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() and os.access(path, os.R_OK) else b"",
        )
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def test_a_sound_home_has_nothing_wrong_and_stays_untouched(home: Home) -> None:
    before = snapshot(home.root)
    found = examine(home)
    pure = {"native"} if os.environ.get("GOCLAW_PURE") else set()
    assert {name for name, check in found.items() if check.status != "ok"} - {"disk"} == pure
    assert snapshot(home.root) == before
    assert "read whole" in found["database"].detail


def damage_database(home: Home) -> None:
    path = database_files(home.root)[0]
    data = bytearray(path.read_bytes())
    data[8192:16384] = bytes(8192)
    path.write_bytes(data)


def no_database(home: Home) -> None:
    database_files(home.root)[0].write_bytes(b"this is no database at all " * 100)


def half_a_skill(home: Home) -> None:
    (home.skills / "half").mkdir()
    (home.skills / "half" / "skill.toml").write_text("name = 7")


def stale_record(home: Home) -> None:
    home.daemon_json.write_text(
        json.dumps({"pid": 999_999_999, "bootId": "b", "daemonId": "d", "version": "1", "ws": None,
                    "socket": "/nowhere"})
    )  # fmt: skip


ILLS: dict[str, tuple[Callable[[Home], object], str, str, str, str]] = {
    "an open home": (lambda home: home.root.chmod(0o755), "home", "fail", "open to", "chmod 700"),
    "a closed folder": (lambda home: home.logs.chmod(0o500), "home", "fail", "written", "chmod"),
    "an open token": (
        lambda home: home.auth_token.chmod(0o644), "permissions", "fail", "may read", "chmod 600",
    ),
    "an open database": (
        lambda home: database_files(home.root)[0].chmod(0o644), "permissions", "fail", "may read",
        "chmod 600",
    ),
    "an unknown key": (
        lambda home: home.config.write_text("[queue]\nlames = 4\n"), "config", "fail", "lames", "",
    ),
    "a brain that is none": (
        lambda home: home.config.write_text('[brain]\ndefault = "odd"\n'), "brains", "fail", "odd",
        "direct",
    ),
    "a policy that is none": (
        lambda home: home.policy.write_text("[[rule]]\nwhat = 1\n"), "policy", "fail", "line", "",
    ),
    "a damaged database": (damage_database, "database", "fail", "damaged", "restore"),
    "a file that is no database": (no_database, "database", "fail", "not a database", ""),
    "half a skill": (half_a_skill, "skills", "warn", "half", "Mend its skill.toml"),
    "a dead daemon": (stale_record, "daemon", "warn", "is gone", "next start"),
}  # fmt: skip


@pytest.mark.parametrize("ill", ILLS)
def test_each_ill_is_named_with_its_mending(ill: str, home: Home) -> None:
    spoil, name, status, detail, fix = ILLS[ill]
    spoil(home)
    before = snapshot(home.root)
    found = examine(home)
    assert (found[name].status, found[name].name) == (status, name), found[name]
    assert detail in found[name].detail
    assert fix in found[name].fix
    assert found[name].fix
    assert snapshot(home.root) == before
    assert set(found) == set(ops._CHECKS), "one that breaks stops no other"


def test_a_port_that_is_taken_is_named(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environ = {"GOCLAW_LISTEN_ADDRESS": f"127.0.0.1:{port}"}
        check = examine(home, environ=environ)["port"]
        assert (check.status, str(port) in check.detail) == ("fail", True)
    assert examine(home, environ=environ)["port"].status == "ok"


def test_a_clock_behind_the_log_and_a_full_disk_are_named(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Early(type(CLOCK)):  # type: ignore[misc]
        def wall_ms(self) -> int:
            return CLOCK.wall_ms() - 3_600_000

    assert examine(home, clock=Early())["clock"].status == "ok", "an empty log says nothing"
    with world(home.root.parent) as place:
        place.goclaw("run", "hello")
    assert examine(home, clock=Early())["clock"].status == "warn"
    assert examine(home)["clock"].status == "ok"
    usage = shutil.disk_usage(home.root)
    for free, status in ((1, "fail"), (limits.WAL_BYTES_MAX + 1, "warn")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert examine(home)["disk"].status == status


def test_the_verb_says_it_to_people_and_to_programs(place: World) -> None:
    """Before there is a home, with a daemon, after its death."""
    (found,) = place.lines("doctor")
    assert found["ok"] is True
    assert not place.home.root.exists()
    (made,) = place.lines("init")
    assert made["home"] == str(place.home.root)
    assert made["made"]
    assert place.lines("init") == [{"home": str(place.home.root), "made": []}]
    place.serve()
    (found,) = place.lines("doctor")
    by_name = {check["name"]: check for check in found["checks"]}
    assert "answers" in by_name["daemon"]["detail"]
    assert set(by_name["daemon"]) == {"name", "status", "detail", "fix"}
    place.end(signal.SIGKILL)
    assert " -> The next start" in place.goclaw("doctor").stdout
    place.home.root.chmod(0o755)
    (found,) = place.lines("doctor", code=1)
    assert found["ok"] is False
