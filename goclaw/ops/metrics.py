"""`/metrics`: the daemon's figures in the text format of Prometheus (O-3).

Owns their names and help. Not in here: the counting (``core/metrics.py``), who may see them.
The library is imported at the first scrape: it would be a third of a start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from goclaw.core import metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["CONTENT_TYPE", "Figures", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures(NamedTuple):
    """What others keep, at one moment."""

    status: Mapping[str, Any]
    """The object of `goclaw status --json`."""
    writer: tuple[int, int, int, int, int, int]
    """``Database.stats()``."""
    rings: tuple[int, int]
    """Watched sessions and the bytes of their rings."""
    lagging: int
    """Events that clients who watch have not been sent yet."""


def exposition(figures: Figures) -> bytes:
    """The page. May run on any thread: it reads numbers."""
    from prometheus_client import generate_latest
    from prometheus_client.registry import CollectorRegistry

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(figures))
    return generate_latest(registry)


class _Page:
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Any]:
        """See prometheus_client.registry.Collector."""
        yield from self._queue()
        yield from self._store()
        yield from self._rest()

    def _queue(self) -> Iterator[Any]:
        status = self._figures.status
        yield _gauge("tasks", "Tasks by state.", "state", status["tasks"])
        lanes = status["lanes"]
        yield _gauge("lanes", "Lanes there are.", None, {"": lanes["size"]})
        yield _gauge("lanes_busy", "Lanes with an attempt.", None, {"": lanes["busy"]})
        yield _histogram("claim_seconds", "Asking for a claim until having it.", metrics.CLAIM_S)
        yield _counter(
            "transitions",
            "States entered, by reason: lease_expired, retries, dead letters.",
            ("state", "reason"),
            metrics.TRANSITIONS,
        )
        fairness = status["fairness"]
        for key, name, about in (
            ("serviceSkew", "service_skew", "Turns by which a session is behind its like."),
            ("maxWaitSkew", "max_wait_skew", "Claims by which waits of ready heads differ."),
            ("longestOvertaking", "longest_overtaking", "Claims that passed a ready head."),
            ("claims", "fairness_claims", "Claims that these three are from."),
        ):
            yield _gauge(name, about, None, {"": fairness[key]})

    def _store(self) -> Iterator[Any]:
        batches, operations, pending, last_ns, all_ns, pages = self._figures.writer
        yield _counter("commits", "Transactions of the writer.", (), {(): batches})
        yield _counter("operations", "Operations they held.", (), {(): operations})
        yield _gauge("operations_pending", "Operations that wait.", None, {"": pending})
        yield _counter("flush_seconds", "Time in COMMIT.", (), {(): all_ns / 1e9})
        yield _gauge("flush_last_seconds", "The last COMMIT.", None, {"": last_ns / 1e9})
        yield _gauge("wal_pages", "Pages in the log.", None, {"": pages})
        size = self._figures.status["databaseBytes"]
        yield _gauge("database_bytes", "The database.", None, {"": size})

    def _rest(self) -> Iterator[Any]:
        status = self._figures.status
        yield _gauge("sessions", "Sessions there are.", None, {"": status["sessions"]})
        yield _gauge("connections", "Clients.", None, {"": status["connections"]})
        watched, size = self._figures.rings
        yield _gauge("rings", "Sessions that somebody watches.", None, {"": watched})
        yield _gauge("ring_bytes", "Events kept in memory for them.", None, {"": size})
        lagging = self._figures.lagging
        yield _gauge("replay_lag_events", "Events not yet sent to watchers.", None, {"": lagging})
        yield _counter(
            "backpressure_closes", "Clients that were closed, by reason.", ("reason",),
            {(reason,): count for reason, count in metrics.BACKPRESSURE_CLOSES.items()},
        )  # fmt: skip
        yield _counter(
            "decisions", "Decisions of the policy, by effect.", ("effect",),
            {(effect,): count for effect, count in metrics.DECISIONS.items()},
        )  # fmt: skip
        yield _counter(
            "skill_faults", "Faults of skills.", ("skill", "reason"), metrics.SKILL_FAULTS
        )
        yield _counter(
            "service_faults", "Timers and lanes that failed and began again.", ("service",),
            {(service,): count for service, count in metrics.SERVICE_FAULTS.items()},
        )  # fmt: skip
        yield _histogram("loop_lag_seconds", "Lateness of the event loop.", metrics.LOOP_LAG_S)


def _gauge(name: str, about: str, label: str | None, values: Mapping[str, float]) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"goclaw_{name}", about, labels=[label] if label else [])
    for value, number in values.items():
        family.add_metric([value] if label else [], number)
    return family


def _counter(name: str, about: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Any:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"goclaw_{name}", about, labels=labels)
    for key, number in tuple(values.items()):
        family.add_metric(key, number)
    return family


def _histogram(name: str, about: str, histogram: metrics.Histogram) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"goclaw_{name}", about)
    seen, buckets = 0, []
    bounds = [*map(str, histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, tuple(histogram.counts), strict=True):
        seen += count
        buckets.append((bound, seen))
    family.add_metric([], buckets, histogram.total)
    return family
