from collections.abc import Iterable
from typing import Final, Self, TypeAlias, final

__all__ = ["ALLOW", "ASK", "DENY", "EXACT", "GLOB", "NO_RULE", "PREFIX", "TREE", "Rules"]

ALLOW: Final[int]
ASK: Final[int]
DENY: Final[int]

EXACT: Final[int]
TREE: Final[int]
PREFIX: Final[int]
GLOB: Final[int]

NO_RULE: Final[int]

_Entry: TypeAlias = tuple[int, int, int, int, int, int, bytes, int, bytes]

@final
class Rules:
    def __new__(cls, entries: Iterable[_Entry], /) -> Self: ...
    def __len__(self) -> int: ...
    def decide(
        self,
        action: int,
        facts: int,
        risk: int,
        size_bytes: int,
        subject: bytes,
        resources: tuple[bytes, ...],
        /,
    ) -> tuple[int, int]: ...
