"""`goclaw completion SHELL`: what bash, zsh or fish offer when the tab key is pressed.

Owns the three dialects; all that they offer is read from the grammar. Not in here: ids of tasks and
sessions, which would need a daemon at every key press.
"""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Final, NamedTuple

from goclaw.cli import grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Place", "completion", "places"]

_INSTALL: Final = {
    "bash": 'eval "$(goclaw completion bash)" in ~/.bashrc',
    "zsh": 'eval "$(goclaw completion zsh)" in ~/.zshrc, after compinit',
    "fish": "goclaw completion fish > ~/.config/fish/completions/goclaw.fish",
}


class Place(NamedTuple):
    """What can follow the words of ``path``: verbs and given values with what they do, options, and
    those among them that take a value, with the values there are (none: a file, or any text)."""

    path: tuple[str, ...]
    words: dict[str, str]
    options: dict[str, str]
    valued: dict[str, tuple[str, ...]]


def completion(options: argparse.Namespace) -> int:
    """Print the script of a shell; its first line says where it goes."""
    found = list(places())
    write: Callable[[list[Place]], str] = {"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell]
    begin = "#compdef goclaw\n" if options.shell == "zsh" else ""
    print(f"{begin}# {_INSTALL[options.shell]}\n{write(found)}", end="")
    return 0


def places() -> Iterator[Place]:
    """Every place of the grammar where a word is written, `goclaw` itself first."""
    yield from _places(grammar.build(), ())


def _places(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[Place]:
    words: dict[str, str] = {}
    options: dict[str, str] = {}
    valued: dict[str, tuple[str, ...]] = {}
    below: list[Iterator[Place]] = []
    for action in parser._actions:
        about = (action.help or "").replace("\n", " ")
        if isinstance(action, argparse._SubParsersAction):
            for told in action._choices_actions:
                words[told.dest] = told.help or ""
            below += [_places(verb, (*path, name)) for name, verb in action.choices.items()]
        elif action.option_strings:
            name = action.option_strings[-1]
            options[name] = about
            if action.nargs != 0:
                valued[name] = tuple(action.choices or ())
        else:
            words |= dict.fromkeys(action.choices or (), about)
    yield Place(path, words, options, valued)
    for more in below:
        yield from more


# -- bash: the words before tell the place; what is left over is a file's name ---------------------

_BASH: Final = """\
_goclaw() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} place= at words=
    for ((at = 1; at < COMP_CWORD; at++)); do
        case "$place ${{COMP_WORDS[at]}}" in
            {known}) place="$place ${{COMP_WORDS[at]}}" ;;
        esac
    done
    case "$place:$before" in
{valued}
        *) case "$place:$word" in
{places}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _goclaw goclaw
"""


def _bash(found: list[Place]) -> str:
    known = [_bash_place(place) for place in found if place.path]
    valued = [
        f"        {_bash_place(place)}:{name}) words={shlex.quote(' '.join(values))} ;;"
        for place in found
        for name, values in place.valued.items()
    ]
    lines = []
    for place in found:
        for pattern, words in (("-*", place.options), ("*", place.words)):
            told = shlex.quote(" ".join(words))
            lines.append(f"            {_bash_place(place)}:{pattern}) words={told} ;;")
    return _BASH.format(known="|".join(known), valued="\n".join(valued), places="\n".join(lines))


def _bash_place(place: Place) -> str:
    """As ``place`` holds it: each word with a blank before it."""
    return f"{''.join(f' {word}' for word in place.path)!r}" if place.path else "''"


# -- zsh: the same, with what each word means ------------------------------------------------------

_ZSH: Final = """\
_goclaw() {{
    local place= at
    local -a told
    for ((at = 2; at < CURRENT; at++)); do
        case "$place ${{words[at]}}" in
            ({known}) place="$place ${{words[at]}}" ;;
        esac
    done
    case "$place:${{words[CURRENT-1]}}" in
{valued}
        (*) case "$place:${{words[CURRENT]}}" in
{places}
        esac ;;
    esac
    if (( $#told )); then _describe goclaw told; else _files; fi
}}
compdef _goclaw goclaw
"""


def _zsh(found: list[Place]) -> str:
    known = [_bash_place(place) for place in found if place.path]
    valued = [
        f"        ({_bash_place(place)}:{name}) told=({' '.join(map(shlex.quote, values))}) ;;"
        for place in found
        for name, values in place.valued.items()
    ]
    lines = []
    for place in found:
        for pattern, words in (("-*", place.options), ("*", place.words)):
            told = " ".join(shlex.quote(f"{word}:{about}") for word, about in words.items())
            lines.append(f"            ({_bash_place(place)}:{pattern}) told=({told}) ;;")
    return _ZSH.format(known="|".join(known), valued="\n".join(valued), places="\n".join(lines))


# -- fish: a line for each word, with the place as its condition -----------------------------------

_FISH: Final = """\
function __goclaw_at
    set -l place ''
    for word in (commandline -opc)[2..]
        switch "$place $word"
            case {known}
                set place "$place $word"
        end
    end
    test "$place" = "$argv[1]"
end
"""


def _fish(found: list[Place]) -> str:
    known = " ".join(_bash_place(place) for place in found if place.path)
    lines = [_FISH.format(known=known)]
    for place in found:
        here = f"complete -c goclaw -n {_fish_text(f'__goclaw_at {_bash_place(place)}')}"
        for word, about in place.words.items():
            lines.append(f"{here} -f -a {_fish_text(word)} -d {_fish_text(about)}\n")
        for name, about in place.options.items():
            values = place.valued.get(name)
            takes = " -r" if values is not None else ""
            if values:
                takes = f" -x -a {_fish_text(' '.join(values))}"
            lines.append(f"{here} -l {name[2:]}{takes} -d {_fish_text(about)}\n")
    return "".join(lines)


def _fish_text(text: str) -> str:
    """Between single quotes, where only these two mean something."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
