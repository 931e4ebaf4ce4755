"""core/faults.py: off costs nothing, on strikes at the named hit, unknown names are refused."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from goclaw.core import faults
from goclaw.core.errors import ConfigRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.req("R-6")

CHILD = """
import os
from goclaw.core import faults
faults.arm(os.environ)
for n in range(1, 6):
    print(n, flush=True)
    faults.faultpoint("after_claim")
"""


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm({})


def hits(count: int, name: str = "after_claim") -> list[int]:
    """The ordinals of the hits that fail."""
    failed = []
    for n in range(1, count + 1):
        try:
            faults.faultpoint(name)
        except OSError:
            failed.append(n)
    return failed


def test_many_hits_at_once_are_as_many() -> None:
    faults.arm({"GOCLAW_FAULTS": "after_claim:fail@3"})
    faults.faultpoint("after_claim", 2)
    with pytest.raises(OSError, match="fault point after_claim"):
        faults.faultpoint("after_claim", 2)
    assert faults.hits() == {"after_claim": 3}
    faults.faultpoint("after_claim", 2)
    assert faults.hits() == {"after_claim": 5}


def test_a_failure_is_that_of_a_disk() -> None:
    faults.arm({"GOCLAW_FAULTS": "after_claim:fail"})
    with pytest.raises(OSError, match="fault point after_claim") as caught:
        faults.faultpoint("after_claim")
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        (None, []),
        ("", []),
        ("after_claim:fail", [1]),
        ("after_claim:fail@3", [3]),
        ("after_claim:fail@2,after_claim:fail@4,", [2, 4]),
        ("after_commit:fail", []),
        ("after_claim:delay=0,after_claim:fail@2", [2]),
        ("after_claim:delay=1@1", []),
    ],
)
def test_a_fault_strikes_at_its_hit_only(text: str | None, failed: list[int]) -> None:
    faults.arm({} if text is None else {"GOCLAW_FAULTS": text})
    assert hits(5) == failed


def test_arming_counts_from_zero_again() -> None:
    faults.arm({"GOCLAW_FAULTS": "after_claim:fail@2"})
    assert hits(1) == []
    faults.arm({"GOCLAW_FAULTS": "after_claim:fail@2"})
    assert hits(3) == [2]


def test_a_delay_blocks_the_caller_at_every_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    faults.arm({"GOCLAW_FAULTS": "after_claim:delay=50,after_claim:delay=7@2"})
    assert hits(3) == []
    assert waits == [0.05, 0.05, 0.007, 0.05]


def test_kill_is_a_kill() -> None:
    environ = {**os.environ, "GOCLAW_FAULTS": "after_claim:kill@3"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD], env=environ, capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert child.stdout.split() == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("after_lunch:kill", "there is no fault point 'after_lunch'"),
        ("after_claim", "is not understood"),
        ("after_claim:explode", "is not understood"),
        ("after_claim:kill@", "is not understood"),
        ("after_claim:kill@-1", "is not understood"),
        ("after_claim:delay", "is not understood"),
        ("after_claim:kill=5", "is not understood"),
        ("after_claim:delay=5ms", "is not understood"),
        ("after_claim:kill@0", "is out of range"),
        ("after_claim:delay=999999", "is out of range"),
        ("after_claim:kill after_commit:kill", "is not understood"),
    ],
)
def test_what_is_not_known_is_refused_and_arms_nothing(text: str, says: str) -> None:
    with pytest.raises(ConfigRefused, match="GOCLAW_FAULTS") as caught:
        faults.arm({"GOCLAW_FAULTS": f"after_claim:fail,{text}"})
    assert says in str(caught.value)
    assert caught.value.hint
    assert hits(3) == []
