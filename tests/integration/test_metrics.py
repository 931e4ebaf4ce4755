"""`/metrics`, `/healthz` and `/readyz` (O-3, U-10), asked over HTTP from a daemon of its own.

Owns what the figures say after work whose figures are known. Not in here: the figures' sources.
"""

from __future__ import annotations

import http.client
import signal
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families
from roof_support import World, script_file, world

from goclaw.core.metrics import Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.req("O-3")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def get(place: World, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    record = place.home.read_daemon_json()
    assert record is not None
    assert record.ws is not None
    connection = http.client.HTTPConnection(urlsplit(record.ws).netloc, timeout=30)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def bearer(place: World) -> dict[str, str]:
    return {"Authorization": f"Bearer {place.home.token()}"}


def figures(place: World) -> dict[str, float]:
    status, page = get(place, "/metrics", bearer(place))
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(page):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.mark.req("Q-8", "R-5")
def test_the_figures_are_those_of_the_work_that_was_done(place: World) -> None:
    place.serve()
    before = figures(place)
    for number in range(3):
        place.goclaw("run", '/sha256 {"text": "abc"}', "--key", f"k{number}")
    place.goclaw("run", "/sha256 nonsense", code=None)
    after = figures(place)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert after["goclaw_tasks{state=SUCCEEDED}"] + after.get("goclaw_tasks{state=FAILED}", 0) == 4
    assert grown("goclaw_transitions_total{reason=,state=CLAIMED}") == 4
    assert grown("goclaw_transitions_total{reason=,state=RUNNING}") == 4
    assert grown("goclaw_claim_seconds_count") == 4
    assert grown("goclaw_claim_seconds_bucket{le=+Inf}") == 4
    assert 0 < grown("goclaw_claim_seconds_sum") < 120
    assert grown("goclaw_commits_total") > 0
    assert grown("goclaw_operations_total") >= 4 * 3
    assert grown("goclaw_flush_seconds_total") > 0
    assert grown("goclaw_decisions_total{effect=allow}") >= 4
    assert after["goclaw_lanes"] == 4
    assert after["goclaw_fairness_claims"] == 4
    assert {"goclaw_service_skew", "goclaw_max_wait_skew", "goclaw_longest_overtaking"} <= {*after}
    assert after["goclaw_sessions"] >= 1
    assert after["goclaw_replay_lag_events"] == 0
    assert after["goclaw_database_bytes"] > 0


@pytest.mark.req("A-9", "A-10")
def test_nobody_without_the_token_sees_them(place: World) -> None:
    place.serve()
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        status, page = get(place, "/metrics", headers)
        assert status == 401
        assert "goclaw_" not in page
    token = place.home.token()
    for path in (f"/metrics?token={token}", f"/metrics/{token}", "/metrics/"):
        status, page = get(place, path, bearer(place))
        assert status in (400, 404)
        assert token not in page
    assert get(place, "/metrics", {**bearer(place), "Host": "evil.example"})[0] == 403
    assert get(place, "/metrics", {**bearer(place), "Origin": "https://evil.example"})[0] == 403


def test_health_needs_no_token_and_says_nothing_else(place: World) -> None:
    daemon = place.serve()
    assert get(place, "/healthz") == (200, "ok\n")
    assert get(place, "/readyz") == (200, "ok\n")
    assert get(place, "/healthz", {"Host": "evil.example"})[0] == 403
    assert get(place, "/healthz?x=1")[0] == 400
    assert get(place, "/nothing", bearer(place))[0] == 404
    brain = script_file(place.cwd, [{"say": "slow", "chunks": 2, "delayMs": 1500}], match="")
    place.goclaw("run", "go", "--brain", brain, "--detach")
    while figures(place)["goclaw_lanes_busy"] == 0:
        pass
    daemon.send_signal(signal.SIGTERM)
    seen = set()
    while 503 not in seen:  # it drains: alive, and not for new work
        seen.add(get(place, "/readyz")[0])
    assert get(place, "/healthz")[0] == 200
    assert daemon.wait(60) == 0


def test_each_observation_is_in_the_bucket_that_it_fits() -> None:
    histogram = Histogram(1.0, 2.0)
    for seconds in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.add(seconds)
    assert (histogram.counts, histogram.total) == ([2, 2, 1], 8.0)
