"""The skills as a source of tools: each call on a thread of its own, cut off when it is cancelled.

Owns the threads and what a skill looks like as a tool. Not in here: the decision about a call and
the opening of its file (tools), the sandbox.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson

from goclaw.core import limits
from goclaw.core.errors import SkillCancelled, SkillFault, SkillRefused
from goclaw.core.metrics import SKILL_FAULTS
from goclaw.core.records import Done, Tool, Unclear

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from goclaw.core.capability import Capability
    from goclaw.skills.catalog import Catalog, Skill
    from goclaw.skills.sandbox import Sandbox

__all__ = ["Listed", "SkillTools"]


class Listed:
    """The skills of a catalog by their names, for whoever calls none of them: see ToolSource."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def tools(self) -> Sequence[Tool]:
        """See ToolSource."""
        return [_tool(skill) for skill in self._catalog]

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        """See ToolSource: it is refused."""
        raise SkillRefused(f"{tool.name} is only listed here.")

    async def probe(self, tool: Tool, arguments: dict[str, Any], *, key: str) -> Done | bool | None:
        """See ToolSource: a skill has no host effects to ask about."""
        return None


class SkillTools(Listed):
    """The skills of a catalog, to be called. ``close()`` waits for calls that still run; twice is
    fine."""

    def __init__(self, catalog: Catalog, sandbox: Sandbox) -> None:
        super().__init__(catalog)
        self._sandbox = sandbox
        # a thread waits in native code: as many as attempts may run, whatever the processors
        self._threads = ThreadPoolExecutor(limits.SKILL_THREADS_MAX, "goclaw-skill")

    async def run(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        key: str,
        cancelled: asyncio.Event,
        files: Mapping[str, int],
    ) -> Done:
        """See ToolSource: nothing of its host is given to it."""
        return await self.run_given(tool, arguments, files=files, rights=())

    async def run_given(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        files: Mapping[str, int],
        rights: Sequence[Capability],
    ) -> Done:
        """As ``run``, with what of its host the module may call."""
        given = frozenset(right.use("wasm.host") for right in rights)
        skill = self._catalog.get(tool.name)
        if skill is None:
            raise SkillRefused(f"{tool.name} is no longer there.")
        cancel = threading.Event()
        stdin_fd = files.get(tool.file_argument or "")
        request = orjson.dumps(arguments)

        def work() -> bytes:
            return self._sandbox.call(skill, request, stdin_fd, cancel=cancel, given=given).output

        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return Done(await asyncio.shield(running))
        except asyncio.CancelledError:
            cancel.set()
            # The file is closed by the caller: not before the skill has stopped reading it.
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise
        except SkillCancelled as error:
            raise Unclear("the sandbox was closed") from error
        except SkillFault as error:
            SKILL_FAULTS[tool.name, error.code] += 1
            raise

    def close(self) -> None:
        """See the class."""
        self._threads.shutdown(wait=True, cancel_futures=True)


def _tool(skill: Skill) -> Tool:
    manifest = skill.manifest
    return Tool(
        name=skill.name,
        source="builtin" if skill.source == "builtin" else "wasm",
        description=manifest.description,
        input_schema=manifest.input,
        effect_class=manifest.effect,
        sandbox=skill.sandbox,
        kind="read" if manifest.file_argument is not None else "other",
        file_argument=manifest.file_argument,
        host=manifest.host_calls,
    )
