"""acpx, a foreign client as people install it, against the bridge: one prompt, then a session whose
daemon dies between two prompts.

It needs Node >= 22.13, which the npm package ``node`` carries: together 230 MB, so the suite goes
without and .ci/soak installs them. Not in here: the SDKs (``test_interop_sdk.py``).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from interop_daemon import Daemon

MODULES = os.environ.get("GOCLAW_ACPX_MODULES", "")
WAIT_S = 60


@pytest.mark.req("W-10", "W-13", "U-3")
@pytest.mark.timeout(300)
@pytest.mark.skipif(not MODULES, reason="acpx brings a Node of its own, 230 MB: .ci/soak has it")
def test_acpx_keeps_its_session_over_a_crash(home: Path, tmp_path: Path) -> None:
    daemon = Daemon(home / "goclaw")
    (tmp_path / "f.txt").write_text("one two three\n")
    environ = {
        **os.environ, **daemon.env, "HOME": str(home),
        "PATH": f"{Path(MODULES) / '.bin'}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    agent = f"{sys.executable} -m goclaw acp"
    base = ["acpx", "--agent", agent, "--cwd", str(tmp_path), "--ttl", "5", "--format", "json"]

    def acpx(*words: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [*base, *words], env=environ, cwd=tmp_path, capture_output=True, text=True,
            timeout=WAIT_S,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def counts(messages: list[dict[str, Any]]) -> None:
        (end,) = (m["result"] for m in messages if "stopReason" in (m.get("result") or {}))
        assert end["stopReason"] == "end_turn"
        said = [
            m["params"]["update"]["content"]["text"]
            for m in messages
            if m.get("params", {}).get("update", {}).get("sessionUpdate") == "agent_message_chunk"
        ]
        assert json.loads("".join(said)) == {"lines": 1, "words": 3, "bytes": 14}

    try:
        counts(acpx("exec", "/word-count f.txt"))
        (made,) = acpx("sessions", "new")
        session = made["acpxSessionId"]
        counts(acpx("/word-count f.txt"))
        os.kill(daemon.record["pid"], signal.SIGKILL)
        counts(acpx("/word-count f.txt"))
        (shown,) = acpx("status")
        assert shown["acpxSessionId"] == session
        acpx("sessions", "close")
        done = daemon.goclaw("events", session, "--json")
        events = [json.loads(line) for line in done.stdout.splitlines()]
        assert [event["eventId"] for event in events] == list(range(1, len(events) + 1))
        assert sum(event["type"] == "run.ended" for event in events) == 2
    finally:
        daemon.stop(hurry=True)
