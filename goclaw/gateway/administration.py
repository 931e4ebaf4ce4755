"""``_goclaw/admin/<verb>`` for the commands that have a method of their own as well.

Owns the way from verb and word to that method. Not in here: which is which
(``protocol.methods.MIRRORS``), verbs without another method (``work``, ``operators``).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from goclaw.protocol.methods import MIRRORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from goclaw.gateway.connection import Connection, Handler, Later, Reply
    from goclaw.gateway.params import Params

__all__ = ["mirrored"]


async def _mirror(
    verb: str, words: Mapping[str, Handler], connection: Connection, params: Params
) -> Reply | Later:
    word = params.choice("verb", tuple(words))
    connection.require(f"admin.{verb}", word)
    return await words[word](connection, params)


def mirrored(methods: Mapping[str, Handler]) -> dict[str, Handler]:
    """The administration methods of MIRRORS, each over those of ``methods``.

    Both decisions are taken: that of the verb, and whatever the method itself asks.
    """
    return {
        f"_goclaw/admin/{verb}": functools.partial(
            _mirror, verb, {word: methods[name] for word, name in words.items()}
        )
        for verb, words in MIRRORS.items()
    }
