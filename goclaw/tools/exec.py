"""The built-in ``exec`` tool: one program with an argument vector, confined (B-6, K-1).

Owns its schema, how a program is found and what it is given. Not in here: whether it may run (the
gate), its process group (``core/processes``), what confines it (``confine``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import orjson

from goclaw.core import limits
from goclaw.core.decisions import Taint
from goclaw.core.errors import InvalidParams, NoCapability, PolicyDenied
from goclaw.core.records import Done, Tool, Unclear
from goclaw.core.states import EffectClass
from goclaw.tools import confine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from goclaw.core.capability import Capability
    from goclaw.core.processes import Children

__all__ = ["ExecTool", "Program", "Runs", "find_program"]

_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_READABLE: Final = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/dev/urandom")
_WRITABLE: Final = ("/dev/null", "/dev/zero")
_REFUSAL: Final = b"goclaw: not confined: "


@dataclass(frozen=True, slots=True)
class Program:
    """What was decided about: a path without a link in it, and where it runs."""

    path: str
    cwd: str
    roots: tuple[str, ...]


@runtime_checkable
class Runs(Protocol):
    """A source of tools that have a ``program_argument``."""

    async def start(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        program: Program,
        right: Capability,
    ) -> Done:
        """As ``ToolSource.run``, with the program that was decided about and the right to it."""


def find_program(word: str, cwd: str) -> str:
    """Where a program's name leads, links resolved: looked for in a fixed path unless it holds a
    slash; relative ones begin at ``cwd``. Blocks. InvalidParams when there is none."""
    if not word or "\0" in word or len(word) > limits.PATH_CHARS_MAX:
        raise InvalidParams("The program's name is empty, too long or holds a NUL.")
    found = os.path.join(cwd, word) if "/" in word else shutil.which(word, path=_PATH)
    if found is None or not os.path.isfile(found) or not os.access(found, os.X_OK):
        raise InvalidParams(f"There is no program {word[:80]!r}.")
    return os.path.realpath(found)


class ExecTool:
    """The source of this tool. ``home`` is never given to a program."""

    def __init__(self, children: Children, home: Path) -> None:
        self._children, self._home = children, os.path.realpath(home)
        self._tool = _tool("confined" if confine.able() else "none")

    def tools(self) -> Sequence[Tool]:
        """See ToolSource."""
        return (self._tool,)

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        """See ToolSource. Nothing is started without a program that was decided about."""
        raise NoCapability("exec was called without a program that was decided about.")

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        """See ToolSource."""
        return None

    async def start(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        program: Program,
        right: Capability,
    ) -> Done:
        """See Runs. Unclear when it had to be killed: nobody knows how far it came."""
        if right.use("exec.run") != program.path:
            raise NoCapability(f"{program.path} is not what was decided about.")
        loop = asyncio.get_running_loop()
        now = await loop.run_in_executor(None, find_program, arguments["command"][0], program.cwd)
        if now != program.path:
            raise InvalidParams(f"{arguments['command'][0]} leads to {now} by now; nothing ran.")
        self._check_apart(program)
        folder = await loop.run_in_executor(None, tempfile.mkdtemp)
        try:
            return await self._ran(tool, arguments, key, program, folder)
        finally:
            await loop.run_in_executor(None, shutil.rmtree, folder, True)

    def _check_apart(self, program: Program) -> None:
        """What is given whole must not hold goclaw's own directory."""
        for place in (program.path, *program.roots, *_READABLE):
            base = place.rstrip("/") + "/"
            if f"{self._home}/".startswith(base) or base.startswith(f"{self._home}/"):
                raise PolicyDenied(
                    f"{place} and goclaw's own directory are not apart, so no program runs there.",
                    hint="Keep GOCLAW_HOME outside of the session's directories.",
                    decisionId="",
                    reason="goclaw's own directory is closed to programs",
                )

    async def _ran(
        self, tool: Tool, arguments: dict[str, Any], key: str, program: Program, folder: str
    ) -> Done:
        confined = tool.sandbox == "confined"
        given = {
            "confine": confined,
            "read": [*_READABLE, program.path],
            "write": [*_WRITABLE, *program.roots, folder],
            "limits": {
                "RLIMIT_CPU": limits.EXEC_CPU_S_MAX, "RLIMIT_AS": limits.EXEC_MEMORY_BYTES_MAX,
                "RLIMIT_FSIZE": limits.EXEC_FILE_BYTES_MAX, "RLIMIT_CORE": 0,
                "RLIMIT_NOFILE": limits.EXEC_FILES_MAX,
            },
        }  # fmt: skip
        command = [
            sys.executable, "-ISB", confine.__file__, json.dumps(given), program.path,
            *arguments["command"],
        ]  # fmt: skip
        environ = {
            "PATH": _PATH, "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8",
            "GOCLAW_IDEMPOTENCY_KEY": key,
        }  # fmt: skip
        pipe = asyncio.subprocess.PIPE
        process = await self._children.open(
            command, env=environ, cwd=program.cwd, stdin=pipe, stdout=pipe, stderr=pipe
        )
        try:
            async with asyncio.timeout(limits.EXEC_MS_MAX / 1000):
                out, err, _ = await asyncio.gather(
                    _bounded(process.stdout), _bounded(process.stderr),
                    _fed(process.stdin, arguments.get("stdin", "").encode()),
                )  # fmt: skip
                code = await process.wait()
        except TimeoutError:
            raise Unclear(f"it ran longer than {limits.EXEC_MS_MAX // 1000} s") from None
        finally:
            self._children.end(process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if code == confine.REFUSED and err.startswith(_REFUSAL):
            why = err.removeprefix(_REFUSAL).decode("utf-8", "replace").strip()
            said = {"error": f"It could not be confined, so it did not run: {why}.",
                    "code": "not_confined"}  # fmt: skip
            return Done(orjson.dumps(said), failed=True)
        shown = {
            "exit": code,
            "stdout": out.decode("utf-8", "replace"),
            "stderr": err.decode("utf-8", "replace"),
            "sandbox": tool.sandbox,
        }
        return Done(orjson.dumps(shown), failed=code != 0)


async def _bounded(stream: asyncio.StreamReader | None) -> bytes:
    """Its beginning; the rest is read, so that the program can go on, and left."""
    kept = bytearray()
    while stream is not None and (piece := await stream.read(limits.WRITE_BYTES_MAX)):
        kept += piece[: limits.EXEC_OUTPUT_BYTES_MAX - len(kept)]
    return bytes(kept)


async def _fed(stream: asyncio.StreamWriter | None, data: bytes) -> None:
    if stream is None:
        return
    with contextlib.suppress(OSError):
        stream.write(data)
        await stream.drain()
    stream.close()


def _tool(sandbox: str) -> Tool:
    return Tool(
        name="exec",
        source="builtin",
        description=(
            "Runs one program in the session's directory: no shell, no network, no files but the"
            " system's and the session's."
        ),
        input_schema={
            "type": "object",
            "required": ["command"],
            "additionalProperties": False,
            "properties": {
                "command": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": limits.EXEC_ARGUMENTS_MAX,
                    "items": {
                        "type": "string",
                        "maxLength": limits.EXEC_ARGUMENT_CHARS_MAX,
                        "pattern": r"\A[^\x00]*\Z",
                    },
                    "description": "The program and its arguments, each by itself.",
                },
                "stdin": {"type": "string", "description": "What it reads; nothing unless given."},
            },
        },
        effect_class=EffectClass.IRREVERSIBLE,
        sandbox=sandbox,
        kind="execute",
        taints=(Taint.UNTRUSTED,),
        program_argument="command",
    )
