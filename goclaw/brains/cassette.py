"""A brain on a tape: what another one said is recorded once, and played back exactly (B-2).

Owns the tape's form and what is masked in it. Not in here: the brain that is recorded. A tape is a
file of lines, one answer each; an answer is found again by the prompt, by what was answered before
in the run, and by what came of the calls. What was said in other runs does not count.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.brains.answers import Answer
from goclaw.core import limits
from goclaw.core.errors import BrainFailed, StorageFailed
from goclaw.core.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from goclaw.brains.answers import Brain, Turn
    from goclaw.brains.deltas import Deltas

__all__ = ["CassetteBrain", "masked"]

_SECRETS: Final = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|ghs|xox[abp]|glpat|AKIA|AIza|hf)[-_A-Za-z0-9]{12,}"
    r"|(?<=Bearer )[-._~+/A-Za-z0-9]{8,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*-----END [A-Z ]*PRIVATE KEY-----"
)
_MASK: Final = "[redacted]"


def masked(text: str) -> str:
    """Without what looks like a key."""
    return _SECRETS.sub(_MASK, text)


class CassetteBrain:
    """Plays ``tape``; what is not on it is asked of ``recorded`` and put there, or is a failure
    when there is no such brain."""

    def __init__(self, name: str, tape: Path, recorded: Brain | None) -> None:
        self.name = name
        self._tape, self._recorded = tape, recorded
        self._adding = asyncio.Lock()

    @property
    def address(self) -> str | None:
        """See Brain: a tape reaches no network, a recording does."""
        return None if self._recorded is None else self._recorded.address

    @property
    def secret(self) -> str | None:
        """See Brain."""
        return None if self._recorded is None else self._recorded.secret

    async def answer(self, turn: Turn, deltas: Deltas) -> Answer:
        """See Brain."""
        key = _place(turn)
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, self._find, key)
        if found is not None:
            for kind, text in found["said"]:
                (deltas.say if kind == "say" else deltas.think)(text)
                await deltas.push()
            return Answer.from_json(found["answer"])
        if self._recorded is None:
            raise BrainFailed(
                f"The tape {self._tape} has no answer {turn.step} to this prompt.",
                hint="Name a brain in `records` to ask it once.",
            )
        answer = await self._recorded.answer(turn, deltas)
        line = {"key": key, "said": _said(deltas.heard), "answer": answer.to_json()}
        # JSON's own marks are none of a key's letters, so the text stays JSON
        data = masked(orjson.dumps(line).decode()).encode() + b"\n"
        async with self._adding:
            await loop.run_in_executor(None, self._add, data)
        return answer

    def _find(self, key: str) -> dict[str, Any] | None:
        """The first answer of that key. BrainFailed when the tape cannot be read."""
        try:
            data = read_regular(self._tape, limits.CASSETTE_BYTES_MAX)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BrainFailed(f"The tape {self._tape} cannot be read: {error.strerror}.") from None
        if len(data) > limits.CASSETTE_BYTES_MAX:
            raise BrainFailed(f"The tape {self._tape} has over {limits.CASSETTE_BYTES_MAX} bytes.")
        for number, line in enumerate(data.splitlines(), 1):
            try:
                found: dict[str, Any] = orjson.loads(line)
                if found["key"] == key:
                    return found
            except (ValueError, KeyError, TypeError):
                raise BrainFailed(f"Line {number} of the tape {self._tape} is no answer.") from None
        return None

    def _add(self, data: bytes) -> None:
        """One line more, on disk. StorageFailed."""
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self._tape, flags, 0o600)
            try:
                os.write(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageFailed(
                f"The tape {self._tape} cannot be written: {error.strerror}.",
                hint="Mend its folder, or make room.",
            ) from None


def _said(heard: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Piece by piece as it came; what holds a key over several pieces, in one."""
    found: list[tuple[str, str]] = []
    for kind, pieces in itertools.groupby(heard, key=lambda one: one[0]):
        texts = [text for _, text in pieces]
        whole = masked("".join(texts))
        found += [(kind, text) for text in (texts if whole == "".join(texts) else [whole])]
    return found


def _place(turn: Turn) -> str:
    """Where in a run the answer belongs, by what is masked alike in record and replay."""
    made = []
    for answer, results in turn.made:
        told = {name: value for name, value in answer.to_json().items() if name != "usage"}
        outputs = [[result.status, result.output.decode("utf-8", "replace")] for result in results]
        made.append([told, outputs])
    text = masked(orjson.dumps([turn.prompt, made], option=orjson.OPT_SORT_KEYS).decode())
    return hashlib.sha256(text.encode()).hexdigest()
