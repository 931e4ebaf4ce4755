"""core/home.py: layout, modes, the lock between processes, daemon.json."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from goclaw.core import config, limits
from goclaw.core.clock import SystemClock
from goclaw.core.errors import ConfigRefused, HomeInUse
from goclaw.core.home import DaemonRecord, Home

POLICY = "# the default policy\n"
CHANCE = SystemClock().random_bytes
HOLD = """
import sys
from goclaw.core.home import Home
lock = Home.locate(sys.argv[1], {}).lock()
print("held", flush=True)
sys.stdin.read()
"""


def modes(root: Path) -> set[int]:
    return {stat.S_IMODE(path.lstat().st_mode) for path in [root, *root.rglob("*")]}


def new(home: Path) -> Home:
    made = Home(home / "h")
    made.ensure(POLICY, CHANCE)
    return made


def record(socket: str = "s", ws: str | None = None) -> DaemonRecord:
    return DaemonRecord(os.getpid(), "b", "d", "0.1.0", ws, socket)


@pytest.mark.parametrize(
    ("option", "environ", "expected"),
    [
        ("/a/b", {"GOCLAW_HOME": "/c"}, "/a/b"),
        (None, {"GOCLAW_HOME": "/c/../d"}, "/d"),
        (None, {"GOCLAW_HOME": ""}, "~/.goclaw"),
        (None, {}, "~/.goclaw"),
        ("~/x", {}, "~/x"),
        ("x", {}, "./x"),
    ],
)
def test_the_option_wins_over_the_environment(
    option: str | None, environ: dict[str, str], expected: str
) -> None:
    root = Home.locate(option, environ).root
    assert root == Path(expected).expanduser().absolute()
    assert root.is_absolute()


def test_a_path_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigRefused, match="zero byte"):
        Home.locate("a\0b", {})
    with pytest.raises(ConfigRefused, match="No home directory"):
        Home.locate("~nobody-by-this-name/x", {})


@pytest.mark.req("U-5", "A-9")
def test_the_first_run_makes_a_private_home_and_says_so(home: Path) -> None:
    place = Home(home / "deep/down/h")
    old = os.umask(0)
    try:
        made = place.ensure(POLICY, CHANCE)
    finally:
        os.umask(old)
    assert modes(place.root) == {0o700, 0o600}
    assert place.config.read_text() == config.TEMPLATE
    assert place.policy.read_text() == POLICY
    assert len(bytes.fromhex(place.token())) == 32
    assert {path.name for path in place.root.iterdir()} == {
        "config.toml",
        "policy.toml",
        "auth.token",
        "skills",
        "logs",
        "backups",
        "run",
    }
    for path in place.root.iterdir():
        assert any(line.startswith(str(path)) for line in made), (path, made)
    assert place.token() not in " ".join(made)


@pytest.mark.req("U-5")
def test_the_second_run_makes_nothing_and_changes_nothing(home: Path) -> None:
    place = new(home)
    place.config.write_text("[queue]\nlanes = 2\n")
    before = {path: path.read_bytes() for path in place.root.rglob("*") if path.is_file()}
    assert place.ensure("other", CHANCE) == []
    assert {path: path.read_bytes() for path in place.root.rglob("*") if path.is_file()} == before


@pytest.mark.req("U-5")
def test_two_first_runs_at_once_agree(home: Path) -> None:
    place = Home(home / "h")
    start = threading.Barrier(8)
    seen: list[tuple[str, str]] = []

    def first_run() -> None:
        start.wait()
        place.ensure(POLICY, CHANCE)
        seen.append((place.token(), place.daemon_id()))

    threads = [threading.Thread(target=first_run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len(set(seen)) == 1
    assert not [path.name for path in place.root.rglob(".*")]


@pytest.mark.req("A-9")
def test_a_home_that_others_could_read_is_refused_with_the_fix(home: Path) -> None:
    place = new(home)
    place.root.chmod(0o750)
    with pytest.raises(ConfigRefused, match=f"mode 0750.*chmod 700 {place.root}"):
        place.ensure(POLICY, CHANCE)
    assert stat.S_IMODE(place.root.stat().st_mode) == 0o750


@pytest.mark.req("A-9")
def test_a_prepared_folder_without_a_token_is_made_private(home: Path) -> None:
    place = Home(home / "h")
    place.root.mkdir(mode=0o755)
    place.root.chmod(0o755)
    place.config.write_text("[queue]\nlanes = 2\n")
    assert f"{place.root}: made private (mode 0700)" in place.ensure(POLICY, CHANCE)
    assert stat.S_IMODE(place.root.stat().st_mode) == 0o700
    assert config.load(place.root, {}).queue.lanes == 2


@pytest.mark.req("A-9")
@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"abc\n", 0o640, r"Others may read the token .*chmod 600"),
        (b"\n", 0o600, "is damaged"),
        (b"a b", 0o600, "is damaged"),
        (b"\xff\xfe", 0o600, "cannot be read"),
    ],
)
def test_a_bad_token_is_refused(home: Path, content: bytes, mode: int, says: str) -> None:
    place = new(home)
    place.auth_token.write_bytes(content)
    place.auth_token.chmod(mode)
    with pytest.raises(ConfigRefused, match=says):
        place.ensure(POLICY, CHANCE)
    assert place.auth_token.read_bytes() == content


def test_a_home_that_is_a_file_is_refused(home: Path) -> None:
    (home / "h").write_text("")
    with pytest.raises(ConfigRefused, match="is not a directory"):
        Home(home / "h").ensure(POLICY, CHANCE)
    with pytest.raises(ConfigRefused, match="cannot be prepared"):
        Home(home / "h" / "below").ensure(POLICY, CHANCE)


def test_a_file_where_a_folder_belongs_is_refused(home: Path) -> None:
    (home / "h").mkdir(mode=0o700)
    (home / "h" / "logs").write_text("")
    with pytest.raises(ConfigRefused, match="cannot be prepared"):
        Home(home / "h").ensure(POLICY, CHANCE)


@pytest.mark.req("S-10")
def test_a_second_daemon_is_told_who_holds_the_home(home: Path) -> None:
    place = new(home)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(HomeInUse) as caught:
            place.lock()
        assert caught.value.exit == 4
        assert caught.value.data == {"pid": holder.pid}
        assert f"in use by process {holder.pid}." in str(caught.value)
        holder.kill()
        holder.wait()
    with place.lock():
        pass


@pytest.mark.req("S-10")
def test_the_lock_is_given_back_once(home: Path) -> None:
    place = new(home)
    first = place.lock()
    with pytest.raises(HomeInUse):
        place.lock()
    first.close()
    first.close()
    place.lock().close()


@pytest.mark.req("S-10")
def test_a_child_does_not_inherit_the_lock(home: Path) -> None:
    place = new(home)
    lock = place.lock()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
        lock.close()
        place.lock().close()
        assert child.poll() is None


def test_a_damaged_lock_file_still_names_a_holder_if_it_can(home: Path) -> None:
    place = new(home)
    with place.lock():
        (place.run / "lock").write_text("?")
        with pytest.raises(HomeInUse, match="another process") as caught:
            place.lock()
        assert caught.value.data == {"pid": None}
        place.write_daemon_json(record())
        with pytest.raises(HomeInUse, match=f"process {os.getpid()}"):
            place.lock()


def test_a_lock_that_cannot_be_opened_is_refused(home: Path) -> None:
    with pytest.raises(ConfigRefused, match="cannot be opened"):
        Home(home / "missing").lock()


def test_the_id_of_a_home_stays(home: Path) -> None:
    place = new(home)
    first = place.daemon_id()
    assert uuid.UUID(first).version == 4
    place.ensure(POLICY, CHANCE)
    assert place.daemon_id() == first
    (place.run / "daemon.id").write_text("?")
    with pytest.raises(ConfigRefused, match="missing or damaged"):
        place.daemon_id()


@pytest.mark.parametrize("ws", ["ws://127.0.0.1:7/ws", None])
def test_daemon_json_has_the_fixed_shape(home: Path, ws: str | None) -> None:
    place = new(home)
    assert place.read_daemon_json() is None
    place.write_daemon_json(record("/s", ws))
    assert json.loads(place.daemon_json.read_text()) == {
        "pid": os.getpid(),
        "bootId": "b",
        "daemonId": "d",
        "version": "0.1.0",
        "ws": ws,
        "socket": "/s",
    }
    assert stat.S_IMODE(place.daemon_json.stat().st_mode) == 0o600
    assert place.read_daemon_json() == record("/s", ws)
    place.remove_daemon_json()
    place.remove_daemon_json()
    assert place.read_daemon_json() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"pid": 1}',
        '{"pid": true, "bootId": "", "daemonId": "", "version": "", "ws": null, "socket": ""}',
        '{"pid": -5, "bootId": "", "daemonId": "", "version": "", "ws": null, "socket": ""}',
        '{"pid": 1, "bootId": "", "daemonId": "", "version": "", "ws": 1, "socket": ""}',
        '{"pid": 1, "bootId": "", "daemonId": "", "version": "", "ws": null, "socket": null}',
    ],
)
def test_a_damaged_daemon_json_is_no_daemon(home: Path, text: str) -> None:
    place = new(home)
    place.daemon_json.write_text(text)
    assert place.read_daemon_json() is None


def test_the_socket_is_in_the_home_when_it_fits(home: Path) -> None:
    place = new(home)
    assert place.socket_path({}) == place.run / "goclaw.sock"


def test_a_long_home_gets_a_short_private_socket(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(home))
    place = Home(home / ("x" * 100))
    place.ensure(POLICY, CHANCE)
    runtime = home / "runtime"
    runtime.mkdir(mode=0o700)
    for environ, folder in (
        ({"XDG_RUNTIME_DIR": str(runtime)}, runtime / "goclaw"),
        ({"XDG_RUNTIME_DIR": "relative"}, home / f"goclaw-{os.getuid()}"),
        ({"XDG_RUNTIME_DIR": str(home / "gone")}, home / f"goclaw-{os.getuid()}"),
        ({}, home / f"goclaw-{os.getuid()}"),
    ):
        path = place.socket_path(environ)
        assert path.parent == folder
        assert path == place.socket_path(environ)
        assert path != Home(home / ("y" * 100)).socket_path(environ)
        assert len(os.fsencode(path)) <= limits.SOCKET_PATH_BYTES_MAX
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("plant", ["open", "link", "file"])
def test_a_planted_socket_folder_is_not_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, plant: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(home))
    place = Home(home / ("x" * 100))
    place.ensure(POLICY, CHANCE)
    folder = home / f"goclaw-{os.getuid()}"
    if plant == "open":
        folder.mkdir()
        folder.chmod(0o777)
    elif plant == "link":
        (home / "real").mkdir(mode=0o700)
        folder.symlink_to(home / "real")
    else:
        folder.write_text("")
    with pytest.raises(ConfigRefused, match="too long for a Unix socket"):
        place.socket_path({})


def test_a_file_system_without_locks_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    place = new(home)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ConfigRefused, match="has no locks: No locks available"):
        place.lock()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.req("A-9")
def test_the_home_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = new(home)
    monkeypatch.setattr("os.getuid", lambda: place.root.stat().st_uid + 1)
    with pytest.raises(ConfigRefused, match="belongs to another user"):
        place.ensure(POLICY, CHANCE)


@pytest.mark.req("S-10")
def test_a_lock_file_left_behind_blocks_nobody(home: Path) -> None:
    place = new(home)
    (place.run / "lock").write_text("999999999\n")
    with place.lock():
        assert (place.run / "lock").read_text() == f"{os.getpid()}\n"
