"""Which module ABIs this host speaks (K-2): a table, printed by ``goclaw skill abi``.

Owns the table and its reading. Not in here: how an ABI is carried out (``sandbox.py``).
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal

from goclaw.core.errors import SkillRefused

__all__ = ["HOST", "HOST_CALLS", "TABLE", "AbiRow", "resolve"]

HOST: Final = 1
"""The revision of the host's side; ``host_min`` and ``host_max`` of a row are such revisions."""


HOST_CALLS: Final = ("clock", "random")
"""What a module is given of its host only when its manifest wants it, as ``wasm.host:NAME``, and
the policy allows it. Arguments, its file, its output and its log it has anyway."""


@dataclasses.dataclass(frozen=True, slots=True)
class AbiRow:
    """A module ABI and the host revisions (inclusive, None: no end yet) that run it."""

    module_abi: str
    host_min: int
    host_max: int | None
    verdict: Literal["native", "adapted"]
    adapter: str | None = None

    def spoken_by(self, host: int) -> bool:
        """True when a host of that revision runs modules of this ABI."""
        return self.host_min <= host and (self.host_max is None or host <= self.host_max)


TABLE: Final[tuple[AbiRow, ...]] = (
    AbiRow("wasi-command/1", host_min=1, host_max=None, verdict="native"),
    # needs alloc/invoke and the goclaw imports, which come with revision 2
    AbiRow("goclaw/1", host_min=2, host_max=None, verdict="native"),
)


def resolve(module_abi: str, *, host: int = HOST) -> AbiRow:
    """The row by which a host of revision ``host`` runs that ABI; SkillRefused when none does."""
    for row in TABLE:
        if row.module_abi == module_abi and row.spoken_by(host):
            return row
    spoken = ", ".join(row.module_abi for row in TABLE if row.spoken_by(host))
    raise SkillRefused(
        f"abi: this goclaw does not speak {module_abi!r}.",
        hint=f"It speaks {spoken}.",
        abi=module_abi,
    )
