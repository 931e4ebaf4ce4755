"""The only source of time and randomness (I-8): injected everywhere, virtual in the simulator.

Owns wall time, monotonic time, the kernel's boot id and random ids. Not in here: timers of the
event loop, which follow the loop's own clock.
"""

from __future__ import annotations

import os
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock", "boot_id", "rfc3339", "traceparent", "wall_ms_of"]

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


class Clock(Protocol):
    """What the house asks of time and chance."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch; may jump. For calendar values and for people."""

    def mono_ms(self) -> int:
        """Milliseconds of CLOCK_MONOTONIC; stands still while the machine is suspended (Q-6)."""

    def random_bytes(self, count: int) -> bytes:
        """Unguessable bytes: lease tokens, salts."""

    def random(self) -> float:
        """A float in [0, 1): jitter."""

    def new_id(self, prefix: str) -> str:
        """``prefix_`` and 26 characters that sort by time of creation, unique over restores."""


class SystemClock:
    """The real clock."""

    def wall_ms(self) -> int:
        """See Clock."""
        return time.time_ns() // 1_000_000

    def mono_ms(self) -> int:
        """See Clock."""
        return time.monotonic_ns() // 1_000_000

    def random_bytes(self, count: int) -> bytes:
        """See Clock."""
        return os.urandom(count)

    def random(self) -> float:
        """See Clock."""
        return (int.from_bytes(os.urandom(7), "big") >> 3) / (1 << 53)

    def new_id(self, prefix: str) -> str:
        """See Clock."""
        return f"{prefix}_{ulid(self.wall_ms(), self.random_bytes(10))}"


def ulid(wall_ms: int, entropy: bytes) -> str:
    """48 bits of time and 80 of chance in Crockford's base 32, lower case (see ulid/spec)."""
    number = (wall_ms << 80) | int.from_bytes(entropy, "big")
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def boot_id() -> str:
    """The kernel's boot id: another one means every monotonic deadline on disk is over (Q-6)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        # Not Linux: the start of the epoch of the monotonic clock is as good, to the second.
        return f"mono-{int(time.time() - time.monotonic())}"


def rfc3339(wall_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds, as the command line prints times."""
    import datetime  # here: whoever only starts needs no calendar

    moment = datetime.datetime.fromtimestamp(wall_ms / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{wall_ms % 1000:03d}Z"


def wall_ms_of(text: str) -> int:
    """The moment that ``rfc3339`` wrote; ValueError for what it did not."""
    import datetime

    return round(datetime.datetime.fromisoformat(text).timestamp() * 1000)


def traceparent(clock: Clock) -> str:
    """A new W3C trace context: one trace per run (R-4)."""
    return f"00-{clock.random_bytes(16).hex()}-{clock.random_bytes(8).hex()}-01"
