"""The brains of config.toml, by their names.

Owns which kind is built from what. Not in here: direct and script, which need no section (loop).
"""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

from goclaw.brains.acp import AgentBrain
from goclaw.brains.anthropic import Anthropic
from goclaw.brains.cassette import CassetteBrain
from goclaw.brains.model import ModelBrain
from goclaw.brains.openai import OpenAI
from goclaw.brains.transport import NetPost
from goclaw.core.errors import UnknownId
from goclaw.net.egress import place_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Any

    from goclaw.brains.answers import Brain
    from goclaw.brains.model import Dialect
    from goclaw.brains.transport import Post
    from goclaw.core.config import NamedBrain
    from goclaw.core.processes import Children
    from goclaw.tools.gate import Reveals
    from goclaw.tools.registry import Registry

    Read = Callable[..., Awaitable[list[tuple[Any, ...]]]]

__all__ = ["NamedBrains"]

_ACP: Final = "acp:"
_DIALECTS: Final[dict[str, Callable[[], Dialect]]] = {"openai": OpenAI, "anthropic": Anthropic}


class NamedBrains:
    """Every [brains.NAME], built once; keys are looked up for each answer."""

    def __init__(
        self,
        brains: Sequence[NamedBrain],
        registry: Registry,
        *,
        environ: Mapping[str, str] | None = None,
        wall_ms: Callable[[], int] = lambda: 0,
        post: Post | None = None,
        children: Children | None = None,
        read: Read | None = None,
        secrets: Reveals | None = None,
    ) -> None:
        self.names = tuple(brain.name for brain in brains)
        self._environ = environ or {}
        self._children, self._read = children, read
        self._agents: dict[str, AgentBrain] = {}
        self._commands = {brain.name: brain.command for brain in brains if brain.kind == "acp"}
        self._models: dict[str, Brain] = {
            brain.name: ModelBrain(
                brain, _DIALECTS[brain.kind](), tools=registry.tools, post=post or NetPost(),
                key=functools.partial(_key, environ or {}, secrets, brain), wall_ms=wall_ms,
            )
            for brain in brains
            if brain.kind in _DIALECTS
        }  # fmt: skip
        for brain in brains:
            if brain.kind == "cassette":
                tape = Path(brain.cassette).expanduser()
                self._models[brain.name] = CassetteBrain(
                    brain.name, tape, self._models.get(brain.records)
                )

    def get(self, name: str) -> Brain | AgentBrain | None:
        """The brain of that name, None when config.toml has none. ``acp:COMMAND`` needs none."""
        command = self._commands.get(name) or (name.startswith(_ACP) and name.removeprefix(_ACP))
        if not command:
            return self._models.get(name)
        agent = self._agents.get(name)
        if agent is None:
            agent = self._agents[name] = AgentBrain(
                name.partition(":")[0], command, children=self._children, read=self._read,
                environ=self._environ,
            )  # fmt: skip
        return agent

    async def close(self) -> None:
        """End the processes of all agents."""
        await asyncio.gather(*(agent.close() for agent in self._agents.values()))


def _key(environ: Mapping[str, str], secrets: Reveals | None, brain: NamedBrain) -> str | None:
    """SecretRefused and UnknownId when the brain's secret is gone, or bound to something else."""
    if brain.secret is None or secrets is None:
        return environ.get(brain.key_env) or None if brain.key_env else None
    host = place_of(_DIALECTS[brain.kind]().base_url(brain)).host
    if not secrets.knows(brain.secret):
        raise UnknownId(
            f"There is no secret {brain.secret}.",
            hint=f"`goclaw secret set {brain.secret} --host {host} --tool {brain.name}` keeps one.",
            what="secret",
            id=brain.secret,
        )
    return secrets.revealed(brain.key, tool=brain.name, host=host)
