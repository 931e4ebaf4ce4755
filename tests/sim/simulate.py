"""Run the simulator from the command line: a range of seeds, or one seed with its whole tale.

    python tests/sim/simulate.py 0 500              seeds 0 to 499, native and pure in turn
    python tests/sim/simulate.py 149 --build pure   one seed, with its trace

Owns the loop over seeds and how a trace reads. Not in here: what a seed means (sim_story.py).
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Set

HERE = Path(__file__).parent
sys.path[:0] = [path for path in (str(HERE.parent), str(HERE)) if path not in sys.path]

from sim_broken import Broken, Part  # noqa: E402
from sim_story import Story  # noqa: E402

MEMORY = Path("/dev/shm")


SHOWN = 40  # lines of a trace in a report; the replay prints all of them


class Failed(AssertionError):
    """A seed broke ``law``; the text tells the end of its tale and how to hear all of it."""

    def __init__(self, story: Story, why: str) -> None:
        again = f"python tests/sim/simulate.py {story.seed} --build {story.build}"
        end = f"seed {story.seed}, {story.build}: {why}"
        super().__init__("\n".join(["", *tale(story)[-SHOWN:], "", end, again]))
        self.story, self.law = story, why.partition(":")[0]


def play(seed: int, build: str, *, calm: bool = True, tastes: Set[str] = frozenset()) -> Story:
    """One story in a folder of its own; Failed with seed and trace when a law was broken.

    ``tastes``: what it is to be about, beside what the seed draws.
    """
    folder = Path(tempfile.mkdtemp(prefix="gc-sim-", dir=MEMORY if MEMORY.is_dir() else None))
    story = Story(seed, folder, build=build, calm=calm, tastes=tastes)
    try:
        story.run()
    except Broken as error:
        raise Failed(story, str(error)) from error
    except Exception as error:
        raise Failed(story, f"{type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(folder)
    return story


def tale(story: Story) -> list[str]:
    """The trace, a line for each thing that happened."""
    return [f"{at:>8} {_told(*words)}" for at, *words in story.trace]


def _told(*words: Any) -> str:
    if words[0] != "op":
        return " ".join(str(word) for word in words)
    _, parts, code, returns, events = words
    told = " + ".join(_part(part) for part in parts)
    told += f" -> {code}" if code is not None else f" -> {returns}"
    for sid, event_id, _, kind, _, _, _, attempt, _, payload in events:
        told += f"\n{'':>14}{sid}.{event_id} {kind} #{attempt} {payload.decode()[:200]}"
    return told


def _part(part: Part) -> str:
    shown = {
        name: value.hex()[:8] if isinstance(value, bytes) else value
        for name, value in part.given.items()
        if name in ("tid", "sid", "token", "key", "spent", "expired_mono", "reason", "ordinal")
        and value is not None
    }
    return f"{part.program}{shown}"


def main(arguments: list[str] | None = None) -> int:
    """Exit 1 when a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int, nargs="?")
    parser.add_argument("--build", choices=("native", "pure", "both"), default="both")
    parser.add_argument("--storm", action="store_true", help="the faults never stop")
    given = parser.parse_args(arguments)
    builds = ("native", "pure") if given.build == "both" else (given.build,)
    if given.end is None:
        return _tell(given.first, builds[0], calm=not given.storm)
    began, failed = time.process_time(), 0
    gc.freeze()
    for seed in range(given.first, given.end):
        try:
            play(seed, builds[seed % len(builds)], calm=not given.storm)
        except Failed as error:
            failed += 1
            print(error, flush=True)
    took = time.process_time() - began
    count = given.end - given.first
    print(f"{count} seeds, {failed} failed, {count / took:.0f} a second of one core")
    return 1 if failed else 0


def _tell(seed: int, build: str, *, calm: bool) -> int:
    try:
        story = play(seed, build, calm=calm)
    except Failed as error:
        print("\n".join(tale(error.story)))
        print(error)
        return 1
    print("\n".join(tale(story)))
    return 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets are walked in the same order each time
        os.execve(
            sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"}
        )
    sys.exit(main())
