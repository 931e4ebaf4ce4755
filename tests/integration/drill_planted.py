"""A daemon of a drill with a fault built in, for drills that must call it bad.

Owns the faults. ``python drill_planted.py FAULT FOLDER``. Not in here: any test.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goclaw.cli.drill_child import HOME, SINK, serve
from goclaw.core.states import EffectClass
from goclaw.engine import effects
from goclaw.ops.sink import Sink, SinkTools
from goclaw.store import database_files

if TYPE_CHECKING:
    from collections.abc import Sequence

    from goclaw.core.records import Tool


class RepeatingTools(SinkTools):
    """What may never be repeated is declared as what may always be."""

    def tools(self) -> Sequence[Tool]:
        return [
            tool
            if tool.effect_class is EffectClass.KEYED
            else dataclasses.replace(tool, effect_class=EffectClass.PURE)
            for tool in super().tools()
        ]


def main(fault: str, folder: Path) -> int:
    tools = SinkTools(Sink(folder / SINK))
    match fault:
        case "repeat":
            tools = RepeatingTools(Sink(folder / SINK))
            key_of = effects.effect_key

            def another(task: Any, *rest: Any) -> str:
                return f"{key_of(task, *rest)}.{task.attempt}"

            # What has a key gets another one at each attempt.
            effects.effect_key = another  # type: ignore[assignment]
        case "lose":
            for file in database_files(folder / HOME):
                file.unlink(missing_ok=True)
    return serve(folder, tools)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
