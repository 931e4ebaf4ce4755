"""core/limits.py: the defaults of the contract, and relations that fail the import."""

from __future__ import annotations

import inspect

import pytest

from goclaw.core import limits

MIB = 1024 * 1024
DAY_MS = 86_400_000

# "Defaults" at the end of SPEC 12, and PROTOCOL 2.6.
CONTRACT = {
    "LANES": 4,
    "LEASE_MS": 30_000,
    "HEARTBEAT_MS": 10_000,
    "MAX_ATTEMPTS": 5,
    "CRASH_BUDGET": 3,
    "POISON": 3,
    "BACKOFF_MS_MIN": 1_000,
    "BACKOFF_MS_MAX": 300_000,
    "SESSION_TASKS_MAX": 1_000,
    "TOTAL_TASKS_MAX": 1_000_000,
    "FRAME_BYTES_MAX": 8 * MIB,
    "PAYLOAD_BYTES_MAX": MIB,
    "RESULT_BYTES_MAX": 4 * MIB,
    "EVENT_BYTES_MAX": MIB,
    "IDEMPOTENCY_WINDOW_MS": 7 * DAY_MS,
    "EVENT_RETENTION_MS": 30 * DAY_MS,
    "AUDIT_RETENTION_MS": 365 * DAY_MS,
    "RING_BYTES": 256 * 1024,
    "RING_BYTES_TOTAL": 64 * MIB,
    "APPROVAL_MS": DAY_MS,
    "DRAIN_MS_MAX": 30_000,
    "DELEGATION_DEPTH_MAX": 3,
    "JSON_DEPTH_MAX": 256,
    "PENDING_OPERATIONS_MAX": 4_096,
    "LAG_EVENTS_MAX": 10_000,
    "LAG_BYTES_MAX": 4 * MIB,
    "STALL_MS_MAX": 30_000,
    "PRIORITY": 5,
    "PRIORITY_MAX": 9,
    "CLAIM_MAX": 64,
    "KEY_CHARS_MAX": 128,
    "EVENTS_PAGE_MAX": 1_000,
}


@pytest.mark.req("I-5")
@pytest.mark.parametrize("name", sorted(CONTRACT))
def test_a_default_is_that_of_the_contract(name: str) -> None:
    assert getattr(limits, name) == CONTRACT[name]


@pytest.mark.req("I-5")
def test_every_bound_is_a_positive_whole_number() -> None:
    bounds = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert len(bounds) > 50
    assert all(type(value) is int and value > 0 for value in bounds.values())


@pytest.mark.req("I-5")
@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("HEARTBEAT_MS: Final = 10_000", "HEARTBEAT_MS: Final = 10_001"),
        ("SESSION_TASKS_MAX: Final = 1_000", "SESSION_TASKS_MAX: Final = 2_000_000"),
        ("EVENT_BYTES_MAX: Final = 1 * MIB", "EVENT_BYTES_MAX: Final = 5 * MIB"),
        ("IDEMPOTENCY_WINDOW_MS: Final = 7 *", "IDEMPOTENCY_WINDOW_MS: Final = 31 *"),
        ("WRITE_BYTES_MAX: Final = 64 *", "WRITE_BYTES_MAX: Final = 65 *"),
    ],
)
def test_a_bound_that_breaks_a_relation_stops_the_import(line: str, broken: str) -> None:
    source = inspect.getsource(limits)
    assert source.count(line) == 1
    exec(compile(source, "limits", "exec"), {})
    with pytest.raises(AssertionError):
        exec(compile(source.replace(line, broken), "limits", "exec"), {})
