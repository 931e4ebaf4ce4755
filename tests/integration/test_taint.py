"""What a session has met makes its decisions stricter: durable, visible, inherited (A-11, A-13)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from roof_support import World, world
from test_redaction import Echo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.req("A-11", "A-13")

POLICY = """
version = 1
[[rule]]
id = "all"
effect = "allow"
actions = ["protocol.call", "run.submit", "approval.answer", "admin.*", "skill.activate",
  "brain.call", "tool.call", "fs.read", "net.connect"]
[[rule]]
id = "echo"
effect = "allow"
actions = ["net.connect"]
resources = [{ cidr = "127.0.0.2/32" }]
[[rule]]
id = "leak"
effect = "ask"
actions = ["net.connect"]
conditions = { tainted = ["untrusted", "private"] }
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        made.home.root.mkdir(mode=0o700)
        made.home.policy.write_text(POLICY)
        (made.cwd / "notes.json").write_text('{"a": 1}')
        yield made


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    server.start()
    yield server
    server.listener.close()


def ran(place: World, *words: str, code: int | None = 0) -> tuple[str, dict[str, Any]]:
    """The session and the result of a run."""
    *_events, result = place.lines("run", *words, code=code)
    return result["sessionId"], result


def tainted(place: World, session: str) -> list[tuple[str, str]]:
    """(label, the tool that brought it) as the timeline has them."""
    return [
        (event["label"], event["source"])
        for event in place.lines("events", session)
        if event["type"] == "session.tainted"
    ]


def test_untrusted_private_and_a_way_out_together_are_asked_for(place: World, echo: Echo) -> None:
    """Any two of them are not; and the marks outlive the daemon."""
    place.serve()
    fetch = f"/http http://127.0.0.2:{echo.port}/"
    session, result = ran(place, fetch)
    assert result["state"] == "SUCCEEDED"
    assert tainted(place, session) == [("untrusted", "http")]
    ran(place, fetch, "--session", session)
    assert len(echo.asked) == 2
    read = '/json-query {"pointer": "/a", "file": "notes.json"}'
    ran(place, read, "--session", session)
    ran(place, read, "--session", session)  # once met, told once
    place.end()
    place.serve()
    assert tainted(place, session) == [("untrusted", "http"), ("private", "json-query")]
    ran(place, fetch, "--session", session, code=12)
    assert len(echo.asked) == 2
    (asked,) = place.lines("approvals", "list")
    assert asked["sessionId"] == session
    other, _ = ran(place, read)
    ran(place, fetch, "--session", other)
    assert len(echo.asked) == 3


def test_within_one_run_the_next_answer_is_decided_by_what_the_last_one_brought(
    place: World, echo: Echo
) -> None:
    url = f"http://127.0.0.2:{echo.port}/"
    steps = [
        {"call": "json-query", "args": {"pointer": "/a", "file": "notes.json"}},
        {"call": "http", "args": {"url": url}},
        {"call": "http", "args": {"url": url + "?again"}},
    ]
    (place.cwd / "s.json").write_text(json.dumps([{"match": "go", "steps": steps}]))
    ran(place, "go", "--brain", "script:s.json", code=12)
    assert len(echo.asked) == 1


def test_a_run_that_another_one_began_has_met_what_that_one_has(place: World, echo: Echo) -> None:
    """And the other way round, whatever the child says."""
    url = f"http://127.0.0.2:{echo.port}/"
    steps = [
        {"call": "http", "args": {"url": url}},
        {"call": "json-query", "args": {"pointer": "/a", "file": "notes.json"}},
        {"call": "delegate", "args": {"prompt": f"/http {url}", "brain": "direct"}},
    ]
    (place.cwd / "s.json").write_text(json.dumps([{"match": "go", "steps": steps}]))
    place.goclaw("run", "go", "--brain", "script:s.json", "--detach")
    child = place.popen("serve")
    assert child.stdout is not None
    child.stdout.readline()
    asked: list[dict[str, Any]] = []
    while not asked:
        asked = place.lines("approvals", "list")
    assert len(echo.asked) == 1
    parents = {line["sessionId"] for line in place.lines("task", "list")} - {asked[0]["sessionId"]}
    assert len(parents) == 1
    session, result = ran(place, '/delegate {"prompt": "/sleep 0", "brain": "direct"}')
    assert result["state"] == "SUCCEEDED"
    assert {label for label, _ in tainted(place, session)} == {"untrusted", "private"}
