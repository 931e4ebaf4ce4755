"""A home that is damaged, a disk that is full, words that are no text: one sentence, no traceback.

Owns what goes wrong before or while a daemon starts. Not in here: wrong words of a command line
(``test_cli_verbs.py``), messages on the wire (``test_wire_access.py``).
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from roof_support import DEADLINE_MS, GOCLAW, World, world

from goclaw.client.blocking import SyncClient
from goclaw.client.reach import dial
from goclaw.core.errors import PolicyDenied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_TEXT = os.fsdecode(b"no\xfftext")


@pytest.fixture
def place(home: Path) -> Iterator[World]:
    with world(home) as made:
        (made.cwd / "file.txt").write_text("one two\n")
        yield made


def sentence(text: str) -> str:
    """The one line, without what a first start tells."""
    (line,) = [line for line in text.splitlines() if "first start" not in line]
    assert "internal error" not in line, line
    return line


@pytest.mark.req("U-1")
@pytest.mark.parametrize(
    "words",
    [
        ("run", f"/word-count {NO_TEXT}"),
        ("run", "x", "--session", NO_TEXT),
        ("run", "x", "--key", NO_TEXT),
        ("run", "x", "--brain", f"script:{NO_TEXT}"),
        ("events", NO_TEXT),
        ("task", "show", NO_TEXT),
        ("cancel", NO_TEXT),
        ("approvals", "answer", NO_TEXT, "allow"),
        ("policy", "check", NO_TEXT),
        ("status", "--home", NO_TEXT),
        (NO_TEXT,),
    ],
)
def test_an_argument_that_is_no_text_is_exit_2_and_makes_nothing(
    place: World, words: tuple[str, ...]
) -> None:
    done = place.goclaw(*words, code=2)
    assert r"no\udcfftext" in sentence(done.stderr)
    assert not place.home.root.exists()


@pytest.mark.req("U-1")
@pytest.mark.parametrize("verb", [("run", "x"), ("serve",), ("status",)])
def test_a_home_whose_path_is_no_text_is_exit_3(place: World, verb: tuple[str, ...]) -> None:
    root = str(place.cwd / NO_TEXT)
    done = place.goclaw(*verb, code=3, GOCLAW_HOME=root)
    assert "is not UTF-8 text" in sentence(done.stderr)
    assert not os.path.exists(root)


@pytest.mark.req("U-1", "A-3")
@pytest.mark.parametrize("verb", [("run", "x"), ("serve",), ("policy", "check")])
def test_a_policy_that_cannot_be_read_is_exit_3(place: World, verb: tuple[str, ...]) -> None:
    place.goclaw("run", "hello")
    place.home.policy.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in sentence(place.goclaw(*verb, code=3).stderr)
    place.home.policy.unlink()
    place.home.policy.mkdir()
    assert "Is a directory" in sentence(place.goclaw(*verb, code=3).stderr)


@pytest.mark.req("U-1")
@pytest.mark.parametrize("device", [None, "/dev/zero"])
@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        ("config.toml", [("run", "x"), ("serve",), ("run", "x", "--detach")]),
        ("policy.toml", [("run", "x"), ("serve",), ("policy", "check"), ("policy", "show")]),
        ("auth.token", [("run", "x"), ("serve",)]),
        ("run/daemon.id", [("run", "x"), ("serve",)]),
    ],
)
def test_a_pipe_or_a_device_in_place_of_a_file_is_exit_3(
    place: World, name: str, verbs: list[tuple[str, ...]], device: str | None
) -> None:
    place.goclaw("run", "hello")
    path = place.home.root / name
    in_place(path, device)
    for words in verbs:
        told = sentence(place.goclaw(*words, code=3).stderr)
        assert str(path) in told
        assert "no regular file" in told


@pytest.mark.req("U-1")
@pytest.mark.parametrize("device", [None, "/dev/zero"])
def test_a_pipe_or_a_device_in_place_of_the_record_of_a_daemon_is_no_record(
    place: World, device: str | None
) -> None:
    place.goclaw("run", "hello")
    in_place(place.home.daemon_json, device)
    assert place.lines("status", code=1) == [{"ready": False}]
    place.goclaw("run", "hello")
    assert not place.home.daemon_json.exists()


@pytest.mark.req("U-1")
@pytest.mark.parametrize("device", [None, "/dev/zero"])
def test_a_pipe_or_a_device_as_a_script_fails_the_run(place: World, device: str | None) -> None:
    in_place(place.cwd / "script", device)
    done = place.goclaw("run", "x", "--brain", "script:script", code=1)
    assert "no regular file" in done.stderr


@pytest.mark.req("U-1")
def test_a_pipe_in_place_of_a_log_holds_up_nobody(place: World) -> None:
    place.goclaw("run", "hello")
    in_place(place.home.logs / "system.jsonl", None)
    place.goclaw("run", "hello")
    path = place.home.logs / "serve.log"
    in_place(path, None)
    told = sentence(place.goclaw("run", "x", "--detach", code=3).stderr)
    assert f"{path} cannot be written: It is no regular file." in told
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK)):  # somebody reads it
        assert "no regular file" in place.goclaw("run", "x", "--detach", code=3).stderr


def in_place(path: Path, device: str | None) -> None:
    path.unlink(missing_ok=True)
    if device is None:
        os.mkfifo(path, 0o600)
    else:
        path.symlink_to(device)


@pytest.mark.req("U-1")
@pytest.mark.parametrize("below", ["", "/below"])
@pytest.mark.parametrize(
    "verb", [("run", "x"), ("run", "x", "--detach"), ("serve",), ("status",), ("policy", "show")]
)
def test_a_file_is_no_home(place: World, verb: tuple[str, ...], below: str) -> None:
    path = place.cwd / "file.txt"
    told = sentence(place.goclaw(*verb, "--home", f"{path}{below}", code=3).stderr)
    assert f"{path} is not a directory" in told
    assert "config.toml" not in told
    assert path.read_text() == "one two\n"


@pytest.mark.req("U-1")
def test_a_present_directory_that_is_no_text_is_exit_2(place: World) -> None:
    here = place.cwd / NO_TEXT
    here.mkdir()
    for words in (
        ("run", "x"),
        ("run", "x", "--detach"),
        ("run", "x", "--brain", "script:s.json"),
        ("serve", "--brain", "script:s.json"),
        ("policy", "explain", "run", "fs.read", "x"),
    ):
        told = sentence(place.goclaw(*words, code=2, cwd=here).stderr)
        assert "is not UTF-8 text" in told
    for verb in (("run", "x"), ("serve",), ("status",)):
        told = sentence(place.goclaw(*verb, "--home", "h", code=3, cwd=here).stderr)
        assert "is not UTF-8 text" in told
    assert list(here.iterdir()) == []
    place.goclaw("task", "list", cwd=here)


@pytest.mark.req("U-1")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("run", "x"), 2),
        (("run", "x", "--detach"), 2),
        (("run", "x", "--brain", "script:s.json"), 2),
        (("serve", "--brain", "script:s.json"), 2),
        (("policy", "explain", "run", "fs.read", "x"), 2),
        (("status", "--home", "h"), 3),
        (("run", "x", "--home", "h"), 3),
        (("task", "list"), 0),
    ],
)
def test_a_present_directory_that_is_gone_stops_what_needs_one(
    place: World, words: tuple[str, ...], code: int
) -> None:
    here = place.cwd / "gone"
    here.mkdir()
    gone = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *GOCLAW, *words]
    done = subprocess.run(
        gone, env=place.environ, cwd=here, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=DEADLINE_MS / 1000, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code:
        assert "present directory is gone" in sentence(done.stderr)


@pytest.mark.req("A-1", "U-2")
def test_a_refused_client_leaves_at_once(place: World) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(DEADLINE_MS / 1000)
        refusal = {"code": PolicyDenied.rpc, "message": "No."}
        theirs.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "error": refusal}).encode() + b"\n")
        with pytest.raises(PolicyDenied) as caught:
            SyncClient(place.home, reach=lambda: ours)
        # Whoever holds the error, as the command line does, holds the client but no connection.
        while theirs.recv(1 << 16):
            continue
    assert caught.value.message == "No."


@pytest.mark.req("R-1")
@pytest.mark.parametrize("verb", [("run", "x"), ("serve",), ("task", "list")])
def test_a_start_that_fails_at_its_last_step_stops_what_it_had_started(
    place: World, verb: tuple[str, ...]
) -> None:
    place.goclaw("run", "hello")
    place.home.daemon_json.mkdir()
    before = sorted(place.home.run.iterdir())
    done = place.goclaw(*verb, code=3)
    assert f"{place.home.daemon_json} cannot be written" in sentence(done.stderr)
    assert sorted(place.home.run.iterdir()) == before
    place.home.daemon_json.rmdir()
    place.goclaw("run", "hello")


@pytest.mark.req("S-3")
def test_damage_in_the_middle_of_the_database_is_exit_5(place: World) -> None:
    place.goclaw("run", "hello")
    path = place.home.root / "goclaw.db"
    for rest in place.home.root.glob("goclaw.db-*"):
        rest.unlink()
    content = bytearray(path.read_bytes())
    content[4096 * 3 :] = b"\xa5" * (len(content) - 4096 * 3)
    path.write_bytes(content)
    for words in (("serve",), ("run", "x"), ("task", "list")):
        assert "goclaw.db" in sentence(place.goclaw(*words, code=5).stderr)


def closed(number: int, *words: str) -> list[str]:
    """A shell's command line on which the descriptor is closed, not empty."""
    return ["sh", "-c", f'exec "$@" {number}>&-', "sh", *GOCLAW, *words]


@pytest.mark.req("U-2")
@pytest.mark.parametrize(
    ("words", "number"),
    [
        *itertools.product([("run", "/word-count file.txt"), ("task", "list")], (0, 1, 2)),
        (("acp",), 0), (("acp",), 2),  # test_bridge_acp.py tells what it says without a stdout
    ],
)  # fmt: skip
def test_a_closed_descriptor_stops_no_command(
    place: World, words: tuple[str, ...], number: int
) -> None:
    place.goclaw("run", "hello")
    done = subprocess.run(
        closed(number, *words), env=place.environ, cwd=place.cwd, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=DEADLINE_MS / 1000, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.req("U-2")
def test_a_daemon_with_closed_descriptors_serves_on(place: World) -> None:
    place.goclaw("run", "hello")
    command = closed(1, "serve")
    command[2] += " 2>&- 0>&-"
    child = subprocess.Popen(command, env=place.environ, cwd=place.cwd)
    place.children.append(child)
    client = SyncClient(place.home, reach=lambda: dial(place.home))
    for _ in range(3):
        client.close()
        client = SyncClient(place.home)
        assert client.status().ready
    client.close()
    assert place.end()
    assert child.wait(DEADLINE_MS / 1000) == 0


@pytest.mark.req("U-1")
@pytest.mark.parametrize(
    "words", [("run", "/word-count file.txt"), ("run", "x", "--json"), ("task", "list")]
)
def test_output_that_finds_no_room_is_one_sentence(place: World, words: tuple[str, ...]) -> None:
    place.goclaw("run", "hello")
    with open("/dev/full", "w") as full:
        child = place.popen(*words, stdout=full)
        assert child.stderr is not None
        assert "output cannot be written: No space left" in sentence(child.stderr.read())
        assert child.wait(DEADLINE_MS / 1000) == 1
