"""Resolving and opening the file of a call: links, races, goclaw's own files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from goclaw.core import limits
from goclaw.core.capability import Capability
from goclaw.core.errors import InvalidParams, NoCapability
from goclaw.tools import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(params=["openat2", "walk"])
def opening(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to open: the kernel's, and by hand where the kernel does not know it."""
    if request.param == "walk":
        monkeypatch.setattr(files, "_openat2", lambda *_: None)
    return str(request.param)


def right(action: str, path: str) -> Capability:
    return Capability(action, path, "decision_1")


def read(path: str, **options: object) -> bytes:
    descriptor = files.open_place(right("fs.read", path), **options)  # type: ignore[arg-type]
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files inside, files outside, and links both ways."""
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    (root / "alias").symlink_to("a.txt")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to("..")
    (root / "gone").symlink_to(tmp_path / "nothing")
    return root


@pytest.mark.req("K-2")
@pytest.mark.parametrize("path", ["a.txt", "./a.txt", "inner/../a.txt", "alias"])
def test_a_relative_path_begins_at_the_working_directory(
    path: str, root: Path, opening: str
) -> None:
    place = files.resolve(path, str(root))
    assert place == files.Place(str(root / "a.txt"), 6)
    assert read(place.path) == b"inside"


@pytest.mark.req("K-2", "A-3")
@pytest.mark.parametrize("path", ["out", "up/secret", "../secret", "inner/../../secret"])
def test_a_way_out_is_decided_about_as_what_it_leads_to(path: str, root: Path) -> None:
    assert files.resolve(path, str(root)).path == str(root.parent / "secret")


@pytest.mark.req("K-2")
@pytest.mark.parametrize("path", ["out", "up/secret", "alias"])
def test_no_link_is_followed_when_opening(path: str, root: Path, opening: str) -> None:
    """Also when a component became a link after it was decided about."""
    with pytest.raises(OSError, match=r"symbolic links|Not a directory|regular file"):
        read(str(root / path))


@pytest.mark.req("K-2")
def test_what_leads_nowhere_says_so(root: Path) -> None:
    assert files.resolve("none", str(root)).fault == "No such file or directory"
    assert files.resolve("gone", str(root)).path == str(root.parent / "nothing")
    assert files.resolve("a.txt/x", str(root)).fault is not None
    assert files.resolve("inner", str(root)).fault == "It is a directory"
    (root / "loop").symlink_to("loop")
    assert files.resolve("loop", str(root)).fault is not None


@pytest.mark.parametrize("path", ["", "a\0b", "a" * (limits.PATH_CHARS_MAX + 1), "\ud800"])
def test_what_is_no_path_is_refused(path: str, root: Path) -> None:
    with pytest.raises(InvalidParams):
        files.resolve(path, str(root))


@pytest.mark.req("R-5")
def test_a_pipe_is_neither_read_nor_waited_for(root: Path, opening: str) -> None:
    os.mkfifo(root / "pipe")
    assert files.resolve("pipe", str(root)).fault == "It is no regular file"
    with pytest.raises(OSError, match="regular file"):
        read(str(root / "pipe"))


@pytest.mark.req("I-1", "S-1")
@pytest.mark.parametrize("link", [os.link, os.rename], ids=["hard link", "moved"])
def test_goclaws_own_files_are_not_opened_under_any_name(
    link: Callable[[Path, Path], None], root: Path, tmp_path: Path, opening: str
) -> None:
    """Closing another descriptor of a database would drop its locks."""
    own = tmp_path / "own"
    own.write_bytes(b"x")
    facts = own.stat()
    link(own, root / "innocent")
    with pytest.raises(PermissionError):
        read(str(root / "innocent"), closed={(facts.st_dev, facts.st_ino)})


@pytest.mark.req("A-2", "I-6")
def test_a_right_to_something_else_opens_nothing(root: Path, opening: str) -> None:
    place = str(root / "a.txt")
    for action in ("fs.write", "net.connect", "tool.call"):
        with pytest.raises(NoCapability, match=f"the right to {action}"):
            files.open_place(right(action, place))
    with pytest.raises(NoCapability, match=r"the right to fs\.read"):
        files.write_place(right("fs.read", place), b"changed")
    assert read(place) == b"inside"
    files.write_place(right("fs.write", place), b"changed")
    assert read(place) == b"changed"


def test_descriptors_are_not_leaked(root: Path, opening: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in ("a.txt", "none", "inner", "out"):
        try:
            os.close(files.open_place(right("fs.read", str(root / path))))
        except OSError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.req("A-3")
def test_roots_are_compared_with_their_links_resolved(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    link = str(tmp_path / "link")
    assert files.real_roots([link, str(root), "/"]) == (str(root), "/")
    assert files.resolve("a.txt", link).path == str(root / "a.txt")
