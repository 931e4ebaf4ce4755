"""A brain whose key is a stored secret: it reaches its own host, and no byte that is kept (A-5).

Owns one home with a real daemon and a model's server. Not in here: secrets of tools
(``test_secrets.py``), keys of the environment (``test_brain_models.py``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from brains_support import configure, model_server
from roof_support import CLOCK, World, world

from goclaw.policy import default

if TYPE_CHECKING:
    from pathlib import Path

KEY = "pass-phrase of a model 0123456789"
OTHER = "what the other secret holds 987"
POLICY = (
    default.TEXT
    + """
[[rule]]
id = "models"
effect = "allow"
actions = ["brain.call"]
subjects = [{ kind = "run" }]
resources = [{ exact = "model" }]

[[rule]]
id = "models-places"
effect = "allow"
actions = ["net.connect"]
subjects = [{ kind = "daemon", id = "model" }]
resources = [{ cidr = "127.0.0.1/32" }]

[[rule]]
id = "models-keys"
effect = "allow"
actions = ["secret.use"]
subjects = [{ kind = "daemon", id = "model" }]
resources = [{ exact = "mine" }]
"""
)


def keep(place: World, name: str, value: str, tool: str) -> None:
    command = [sys.executable, "-m", "goclaw", "secret", "set", name, "--host", "127.0.0.1"]
    subprocess.run(
        [*command, "--tool", tool], env=place.environ, cwd=place.cwd, input=value, text=True,
        check=True, capture_output=True,
    )  # fmt: skip


def brains_check(place: World) -> dict[str, Any]:
    (found,) = place.lines("doctor", code=None)
    (check,) = [one for one in found["checks"] if one["name"] == "brains"]
    return dict(check)


def code_of(place: World, prompt: str) -> str:
    lines = place.lines("run", "--brain", "model", prompt, code=1)
    return str(lines[-1]["error"]["code"])


@pytest.mark.req("A-5", "I-7", "B-2", "U-7")
def test_a_stored_secret_is_the_key_of_a_brain(tmp_path: Path) -> None:
    with world(tmp_path) as place, model_server([{"text": "well"}]) as server:
        place.home.ensure(POLICY, CLOCK.random_bytes)
        configure(place.home.root, server.url, 'key = "secret:mine"')
        assert brains_check(place)["detail"].endswith("secret:mine, which does not exist.")
        place.serve("--listen", "none")
        assert code_of(place, "hello") == "brain_key_missing"
        assert server.calls == 0
        keep(place, "mine", KEY, "http")
        assert code_of(place, "hello") == "brain_key_missing", "it is bound to another tool"
        assert brains_check(place)["status"] == "fail"
        keep(place, "mine", KEY, "model")
        keep(place, "other", OTHER, "model")
        assert brains_check(place)["status"] == "ok"

        # a reference in a prompt stays one, also where the brain could have the value
        prompt = f"what is secret:other, and {OTHER}, and {KEY}?"
        lines = place.lines("run", "--brain", "model", prompt)
        assert lines[-1]["text"] == "well"
        request = server.report()["requests"][-1]
        assert request["headers"]["authorization"] == f"Bearer {KEY}"
        said = json.dumps(request["body"])
        assert "secret:other, and secret:other#" in said
        assert KEY not in said
        assert OTHER not in said

        place.goclaw("secret", "rm", "mine")
        assert code_of(place, "again") == "brain_key_missing", "what is removed is dead at once"
        place.end()
        kept = [path for path in place.home.root.rglob("*") if path.is_file()]
        assert len(kept) > 5
        assert [path for path in kept if KEY.encode() in path.read_bytes()] == []


@pytest.mark.req("A-2", "A-5")
def test_its_use_needs_a_decision(tmp_path: Path) -> None:
    with world(tmp_path) as place, model_server([{"text": "well"}]) as server:
        policy = POLICY.replace('{ exact = "mine" }', '{ exact = "another" }')
        place.home.ensure(policy, CLOCK.random_bytes)
        configure(place.home.root, server.url, 'key = "secret:mine"')
        keep(place, "mine", KEY, "model")
        assert place.lines("run", "--brain", "model", "hello", code=10)[-1]["error"]["code"] == (
            "policy_denied"
        )
        assert server.calls == 0
