"""The brains of config.toml, by their names.

Owns which kind is built from what. Not in here: direct and script, which need no section (loop).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from goclaw.brains.anthropic import Anthropic
from goclaw.brains.model import ModelBrain
from goclaw.brains.openai import OpenAI
from goclaw.brains.transport import plain_post

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from goclaw.brains.answers import Brain
    from goclaw.brains.model import Dialect
    from goclaw.brains.transport import Post
    from goclaw.core.config import NamedBrain
    from goclaw.tools.registry import Registry

__all__ = ["NamedBrains"]

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
        post: Post = plain_post,
    ) -> None:
        self.names = tuple(brain.name for brain in brains)
        self._brains: dict[str, Brain] = {
            brain.name: ModelBrain(
                brain, _DIALECTS[brain.kind](), tools=registry.tools, post=post,
                key=functools.partial(_key, environ or {}, brain.key_env), wall_ms=wall_ms,
            )
            for brain in brains
            if brain.kind in _DIALECTS
        }  # fmt: skip

    def get(self, name: str) -> Brain | None:
        """The brain of that name, None when config.toml has none."""
        return self._brains.get(name)


def _key(environ: Mapping[str, str], variable: str) -> str | None:
    return environ.get(variable) or None if variable else None
