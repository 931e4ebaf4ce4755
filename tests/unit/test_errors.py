"""core/errors.py: codes are those of the contract, unique, drawn and exported."""

from __future__ import annotations

import inspect
import re

import pytest

from goclaw.core import errors
from goclaw.core.errors import GoclawError, error_for_code, error_for_name

KINDS = [
    kind
    for kind in vars(errors).values()
    if inspect.isclass(kind) and issubclass(kind, GoclawError) and kind is not GoclawError
]

# PROTOCOL 2.4.
WIRE = {
    -31001: "replay_gap",
    -31002: "cursor_ahead",
    -31003: "idempotency_conflict",
    -31004: "queue_full",
    -31005: "policy_denied",
    -31006: "shutting_down",
    -31007: "already_resolved",
    -31008: "handshake_required",
    -31009: "lease_lost",
    -31010: "illegal_transition",
    -31011: "nondeterminism",
    -31012: "rate_limited",
    -31013: "scope_missing",
    -31015: "effect_unknown",
    -31016: "unknown_id",
    -31017: "too_large",
    -31018: "budget_exhausted",
    -32700: "parse_error",
    -32600: "invalid_request",
    -32601: "method_unknown",
    -32602: "invalid_params",
    -32603: "internal_error",
    -32002: "session_unknown",
    -32800: "request_cancelled",
}

# SPEC 12.
EXITS = {
    "usage": 2,
    "config_refused": 3,
    "policy_refused": 3,
    "home_in_use": 4,
    "database_refused": 5,
    "listener_failed": 6,
    "internal_error": 70,
    "policy_denied": 10,
}


@pytest.mark.req("W-5")
@pytest.mark.parametrize("rpc", sorted(WIRE))
def test_a_number_and_its_name_lead_to_one_class(rpc: int) -> None:
    kind = error_for_code(rpc)
    assert (kind.rpc, kind.code) == (rpc, WIRE[rpc])
    assert error_for_name(WIRE[rpc]) is kind


@pytest.mark.req("W-5")
def test_our_numbers_stay_out_of_the_reserved_ranges() -> None:
    standard = {rpc for rpc in WIRE if rpc < -32000}
    for kind in KINDS:
        assert kind.rpc in standard or -31999 <= kind.rpc <= -31000, kind
        assert kind.rpc != -31014


@pytest.mark.parametrize("name", sorted(EXITS))
def test_the_exit_codes_are_fixed(name: str) -> None:
    assert error_for_name(name).exit == EXITS[name]


def test_what_is_not_ours_is_the_base() -> None:
    assert error_for_code(-1) is GoclawError
    assert error_for_name("odd") is GoclawError


def test_two_classes_with_one_code_are_refused() -> None:
    with pytest.raises(TypeError, match="queue_full"):
        type("Again", (GoclawError,), {"code": "queue_full"})


def test_the_tree_at_the_top_draws_every_class() -> None:
    drawn = set(re.findall(r"\w+", errors.__doc__ or ""))
    assert {kind.__name__ for kind in KINDS} <= drawn


def test_every_class_is_exported_and_says_what_it_means() -> None:
    assert {kind.__name__ for kind in KINDS} <= set(errors.__all__)
    assert all(kind.__doc__ for kind in KINDS)


@pytest.mark.req("W-5")
def test_only_an_unknown_session_says_not_found() -> None:
    words = re.compile("not found", re.IGNORECASE)
    assert not [kind for kind in KINDS if words.search(kind.code.replace("_", " "))]


def test_a_message_brings_its_hint_and_its_data() -> None:
    error = errors.QueueFull("The queue is full.", hint="Try later.", retryAfterMs=5)
    assert str(error) == "The queue is full. Try later."
    assert (error.message, error.hint, error.data) == (
        "The queue is full.",
        "Try later.",
        {"retryAfterMs": 5},
    )
    assert str(GoclawError("Plain.")) == "Plain."
