"""Scopes and the tokens of attempts, without a wire (A-10)."""

from __future__ import annotations

import pytest

from goclaw.gateway import executors, handlers, operators, work
from goclaw.gateway.scopes import ATTEMPT_METHODS, Scope, attempt_token, scope_of, task_of


@pytest.mark.req("A-10")
def test_every_method_has_a_scope() -> None:
    methods = handlers.METHODS | work.METHODS | operators.METHODS | executors.METHODS
    without = {method for method in methods if scope_of(method) is None}
    assert without == {"initialize"}
    assert scope_of("_goclaw/worker/claim") is Scope.WORKER
    assert scope_of("_goclaw/admin/shutdown") is Scope.ADMIN
    assert set(executors.METHODS) - {"_goclaw/worker/claim"} == ATTEMPT_METHODS


@pytest.mark.req("A-10")
def test_a_token_names_its_task_and_tells_no_lease() -> None:
    lease_token = bytes(range(16))
    task_id = "task_01jqv5m7s3x8c2n4b6k9p0r1t2"
    token = attempt_token("secret", task_id, lease_token)
    assert task_of(token) == task_id
    assert lease_token.hex() not in token
    others = {
        attempt_token("secret", task_id, bytes(16)),
        attempt_token("another", task_id, lease_token),
        attempt_token("secret", task_id[:-1] + "3", lease_token),
    }
    assert len(others | {token}) == 4
    for text in ("", "attempt_", token + "0", token[:-1], token.upper(), f"Bearer {token}"):
        assert task_of(text) is None
