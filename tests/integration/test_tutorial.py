"""The tutorial, typed: every block of its commands in one shell, in order (U-1).

Owns what stands for ids there. Not in here: the commands of other pages, which the grammar takes
(test_house_docs.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from goclaw.core.home import Home

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"

# What a person copies from what was printed before; the shell's own words for it.
COPIED = {
    word: f'$(goclaw {listing} list --json | sed -n \'1s/.*"{name}":"\\([^"]*\\)".*/\\1/p\')'
    for word, listing, name in (
        ("RUN", "task", "runId"),
        ("SESSION", "task", "sessionId"),
        ("APPROVAL", "approvals", "approvalId"),
    )
}


@pytest.mark.req("U-1", "U-2")
@pytest.mark.timeout(300)
def test_the_first_hour_goes_as_it_is_written(home: Path) -> None:
    text = TUTORIAL.read_text("utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)[1:]
    typed = "".join(blocks)
    for word, copied in COPIED.items():
        typed = re.sub(rf"(?<= ){word}\b", copied.replace("\\", r"\\"), typed)
    program = home / "goclaw"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m goclaw "$@"\n')
    program.chmod(0o700)
    environ = {
        "HOME": str(home), "PATH": f"{home}:/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(TUTORIAL.parents[1]),
    }  # fmt: skip
    with open(home / "told", "w") as file:
        shell = subprocess.Popen(
            ["bash", "-euc", f"{typed}wait\n"], cwd=home, env=environ, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        said, _ = shell.communicate()
        left = Home(home / "first-home").read_daemon_json()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
    told = (home / "told").read_text()
    assert shell.returncode == 0, (said, told)
    assert left is None, "the last daemon ended in good order"
    assert '{"lines": 1, "words": 3, "bytes": 14}' in said
    assert "exit code 12" in said
    assert "SUSPENDED" not in said.split("exit code 12")[1].split("answered: allow")[1]
    assert "FAILED" not in said
