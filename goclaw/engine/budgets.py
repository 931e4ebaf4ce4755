"""What a failure costs: the wait before the next attempt, and the words that record it (Q-5, Q-7).

Owns backoff and the arguments of ``fail``. Not in here: which budget is used up (``fail`` in
store/queries.sql).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from goclaw.core import limits

if TYPE_CHECKING:
    from goclaw.core.clock import Clock
    from goclaw.core.config import QueueConfig
    from goclaw.core.records import Failed
    from goclaw.store import Database

__all__ = ["backoff_ms", "failed"]


def backoff_ms(
    queue: QueueConfig, clock: Clock, failures: int, retry_after_ms: int | None = None
) -> int:
    """Exponential with full jitter after that many failures; the far side's own word counts more,
    within a day."""
    if retry_after_ms is not None:
        return min(max(0, retry_after_ms), limits.RETRY_AFTER_MS_MAX)
    ceiling = min(queue.backoff_ms_max, queue.backoff_ms_min << min(failures, 32))
    return max(1, int(ceiling * clock.random()))


def failed(
    database: Database,
    clock: Clock,
    queue: QueueConfig,
    outcome: Failed,
    *,
    tid: int,
    token: bytes,
    wait_ms: int,
    digest: bytes | None = None,
) -> tuple[int, tuple[Any, ...]]:
    """The part that ends an attempt with ``outcome``; a further one waits ``wait_ms``.

    ``digest``: of the word as its owner said it; an exact repeat is answered as it was (Q-4).
    """
    now, now_mono = clock.wall_ms(), clock.mono_ms()
    # An error's text comes from anywhere: file names that are no UTF-8, whole documents.
    message = outcome.message[: limits.MESSAGE_CHARS_MAX].encode("utf-8", "replace").decode()
    said = f"fail\0{outcome.code}\0{message}\0{outcome.retryable}\0"
    return database.bind(
        "fail", tid=tid, token=token, now=now, code=outcome.code, message=message,
        retryable=int(outcome.retryable), fingerprint=outcome.fingerprint, poison=queue.poison,
        due_mono=now_mono + wait_ms, due_at=now + wait_ms, fault_work=outcome.work,
        breaker_tasks=limits.BREAKER_TASKS, now_mono=now_mono,
        breaker_since_mono=now_mono - limits.BREAKER_WINDOW_MS, probe_ms=limits.BREAKER_PROBE_MS,
        hash=digest or hashlib.sha256(said.encode()).digest(),
    )  # fmt: skip
