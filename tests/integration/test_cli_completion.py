"""`goclaw completion`: real shells offer what the grammar has, at every place of it (U-1)."""

from __future__ import annotations

import contextlib
import functools
import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from goclaw.cli.completion import places
from goclaw.cli.grammar import build

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.req("U-1")

GOCLAW = shlex.join([sys.executable, "-m", "goclaw"])
PLACES = list(places())
DEADLINE_S = 30.0


@functools.cache
def script(shell: str) -> str:
    return subprocess.run(
        [*shlex.split(GOCLAW), "completion", shell], capture_output=True, text=True, check=True
    ).stdout


def asked(shell: str, lines: list[str], folder: Path) -> list[list[str]]:
    """What the shell offers for each line, sorted; one process for all."""
    (folder / "script").write_text(script(shell))
    if shell == "fish":
        asks = [
            f"echo ==; complete -C {shlex.quote(line)} | string split -f1 \\t" for line in lines
        ]
        command = ["fish", "--no-config", "-c", "\n".join(["source script", *asks])]
    else:
        tell = 'echo ==; printf "%s\\n" "${COMPREPLY[@]}"'
        asks = [
            f"COMP_WORDS=({' '.join(repr(word) for word in line.split(' '))}); "
            f"COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _goclaw; {tell}"
            for line in lines
        ]
        command = ["bash", "--norc", "--noprofile", "-c", "\n".join([". ./script", *asks])]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "HOME": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [sorted(filter(None, part.splitlines())) for part in done.stdout.split("==\n")[1:]]


def test_the_grammar_is_walked_whole() -> None:
    """Every verb has its place, with every option that its help shows."""
    paths = [place.path for place in PLACES]
    assert len(paths) == len(set(paths)) > 50
    assert {("serve",), ("backup", "create"), ("completion",)} <= set(paths)
    for place in PLACES:
        parser = build()
        for word in place.path:
            groups = [one for one in parser._actions if getattr(one, "_name_parser_map", None)]
            parser = groups[0].choices[word]  # type: ignore[index]
        told = parser.format_help()
        assert all(name in told for name in (*place.words, *place.options)), place.path


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_offers_what_the_grammar_has(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    lines, wanted = [], []
    for place in PLACES:
        words = " ".join(("goclaw", *place.path))
        if place.words:
            lines.append(f"{words} ")
            wanted.append(sorted(place.words))
        lines.append(f"{words} --")
        wanted.append(sorted(place.options))
        for name, values in place.valued.items():
            if values:
                lines.append(f"{words} {name} ")
                wanted.append(sorted(values))
    found = asked(shell, lines, tmp_path)
    assert dict(zip(lines, found, strict=True)) == dict(zip(lines, wanted, strict=True))


def test_a_beginning_is_completed_and_files_are_left_to_the_shell(tmp_path: Path) -> None:
    lines = ["goclaw ba", "goclaw --home x", "goclaw run a", "goclaw run --session 1 --js"]
    assert asked("bash", lines, tmp_path) == [["backup"], [], [], ["--json"]]


@pytest.mark.parametrize(
    ("shell", "start"),
    [("bash", ["bash", "--norc", "--noprofile", "-i"]), ("zsh", ["zsh", "-f", "-i"])],
)
def test_the_tab_key_completes_a_word(shell: str, start: list[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    (tmp_path / "script").write_text(script(shell))
    begin = "autoload -Uz compinit; compinit -u; " if shell == "zsh" else ""
    words = f"{begin}goclaw() {{ echo got:$#:$1:$2; }}; . ./script\ngoclaw compl\tba\t\n"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.environ.update(TERM="dumb", HOME=str(tmp_path))
        os.execvp(start[0], start)
    try:
        os.write(terminal, words.encode())
        seen = b""
        while b"got:2:completion:bash" not in seen:
            assert select.select([terminal], [], [], DEADLINE_S)[0], seen
            seen += os.read(terminal, 65536)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)


def test_nothing_of_a_place_is_lost_on_the_way() -> None:
    for shell in ("bash", "zsh", "fish"):
        told = script(shell)
        for place in PLACES:
            assert all(word in told for word in place.words), (shell, place.path)
