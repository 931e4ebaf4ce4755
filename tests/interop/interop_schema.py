"""Holds what an agent sent to the official JSON schema of ACP v1, and to the rules beside it.

Owns the strict reading of the schema and the findings. Not in here: where messages come from
(``interop_recording.py``).
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import jsonschema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from interop_recording import Sent

SCHEMA = "@agentclientprotocol/sdk/schema/v1/schema.json"

# Where the schema leaves a gap that its method names fill.
CANCEL_REQUEST = "$/cancel_request"

# Requests after which a session's events may come again.
REPLAYING = ("session/load", "session/resume", "_goclaw/session/subscribe")

CLOSED = {"unevaluatedProperties": False}


class Judge:
    """Reads whole recorded connections. One judge serves many; it keeps nothing between them."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = _strict(schema)
        self._results = self._by_method("agent", "Response")
        self._requests = self._by_method("client", "Request")
        self._notifications = self._by_method("client", "Notification")
        self._notifications[CANCEL_REQUEST] = "CancelRequestNotification"
        self._validators: dict[str, jsonschema.Draft202012Validator] = {}

    @classmethod
    def of_package(cls, node_modules: Path) -> Judge:
        """The judge by the schema that the installed SDK carries."""
        return cls(json.loads((node_modules / SCHEMA).read_text("utf-8")))

    def _by_method(self, side: str, ending: str) -> dict[str, str]:
        return {
            definition["x-method"]: name
            for name, definition in self._schema["$defs"].items()
            if definition.get("x-side") == side and name.endswith(ending)
        }

    def findings(self, messages: Iterable[Sent]) -> list[str]:
        """One sentence for each fault of the agent's side; empty when there is none."""
        return list(_Connection(self).read(messages))

    def mismatch(self, definition: str, value: object) -> str | None:
        """Why ``value`` is not what ``definition`` says, or None."""
        validator = self._validators.get(definition)
        if validator is None:
            validator = self._validators[definition] = jsonschema.Draft202012Validator(
                {"$defs": self._schema["$defs"], "$ref": f"#/$defs/{definition}", **CLOSED}
            )
        error = jsonschema.exceptions.best_match(validator.iter_errors(value))
        if error is None:
            return None
        return f"no {definition}: {error.json_path}: {error.message[:300]}"

    def result_of(self, method: str) -> str | None:
        return self._results.get(method)

    def request(self, method: str) -> str | None:
        return self._requests.get(method)

    def notification(self, method: str) -> str | None:
        return self._notifications.get(method)


class _Connection:
    """One connection, read from its first message on."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._asked: dict[tuple[type, Any], dict[str, Any]] = {}  # by id: the open request
        self._own: set[tuple[type, Any]] = set()
        self._faulty = 0  # client messages that deserve an error with a null id
        self._sessions: set[str] = set()
        self._last: dict[str, int] = {}  # by session: the last event id, or a barrier above it
        self._opted_in = False

    def read(self, messages: Iterable[Sent]) -> Iterator[str]:
        for sent in messages:
            if sent.side == "client":
                self._client(sent.raw)
            else:
                for why in self._agent(sent.raw):
                    yield f"message {sent.number}: {why}: {sent.raw[:300]!r}"

    def _client(self, raw: bytes) -> None:
        try:
            message = json.loads(raw)
        except ValueError:
            self._faulty += 1
            return
        if not isinstance(message, dict):
            self._faulty += 1
            return
        if "method" not in message or "id" not in message:
            return
        self._asked[_key(message["id"])] = message
        params = message.get("params")
        if not isinstance(params, dict):
            return
        if message["method"] == "initialize":
            meta = (params.get("clientCapabilities") or {}).get("_meta") or {}
            self._opted_in = bool((meta.get("goclaw") or {}).get("notifications"))
        session = params.get("sessionId")
        if isinstance(session, str):
            self._sessions.add(session)
            if message["method"] in REPLAYING:
                self._last.pop(session, None)

    def _agent(self, raw: bytes) -> Iterator[str]:
        try:
            message = json.loads(raw.decode("utf-8"))
        except ValueError as error:
            yield f"not JSON in UTF-8 ({error})"
            return
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            yield "no JSON-RPC 2.0 object"
            return
        if extra := message.keys() - {"jsonrpc", "id", "method", "params", "result", "error"}:
            yield f"unknown members {sorted(extra)}"
        if "method" in message:
            yield from self._call(message)
        else:
            yield from self._answer(message)

    def _call(self, message: dict[str, Any]) -> Iterator[str]:
        method, params = message["method"], message.get("params") or {}
        if "result" in message or "error" in message:
            yield "a call with a result"
        if "id" in message:
            key = _key(message["id"])
            if key in self._own:
                yield f"request id {message['id']!r} a second time"
            self._own.add(key)
        yield from self._place(params)
        if method.startswith("_"):
            if not self._opted_in:
                yield f"{method} to a client that did not opt in"
            return
        definition = (
            self._judge.request(method) if "id" in message else self._judge.notification(method)
        )
        if definition is None:
            yield f"{method} is no {'request' if 'id' in message else 'notification'} to a client"
            return
        if why := self._judge.mismatch(definition, params):
            yield why
        elif "sessionId" in params and params["sessionId"] not in self._sessions:
            yield f"{method} of a session that the client does not know yet"

    def _place(self, params: dict[str, Any]) -> Iterator[str]:
        """Event ids rise, and no event comes after the answer whose barrier is above it (2.2)."""
        event_id = _event_id(params)
        if event_id is None:
            return
        last = self._last.get(params["sessionId"], 0)
        if event_id <= last:
            yield f"event {event_id} after event or barrier {last}"
        if self._opted_in and last and event_id > last + 1:
            yield f"event {event_id} right after event {last}"
        self._last[params["sessionId"]] = event_id

    def _answer(self, message: dict[str, Any]) -> Iterator[str]:
        if ("result" in message) == ("error" in message):
            yield "neither a result nor an error alone"
            return
        if "error" in message and (why := self._judge.mismatch("Error", message["error"])):
            yield why
        if message.get("id") is None:
            if "result" in message or not self._faulty:
                yield "an answer to nobody"
            self._faulty -= 1
            return
        asked = self._asked.pop(_key(message["id"]), None)
        if asked is None:
            yield "an answer to no open request"
            return
        if "result" not in message:
            return
        result = message["result"]
        definition = self._judge.result_of(asked["method"])
        if definition is not None and (why := self._judge.mismatch(definition, result)):
            yield f"{asked['method']}: {why}"
        if isinstance(result, dict) and isinstance(result.get("sessionId"), str):
            self._sessions.add(result["sessionId"])
        if asked["method"] == "session/prompt" and (barrier := _event_id(result)) is not None:
            session = asked["params"]["sessionId"]
            last = self._last.get(session, 0)
            if self._opted_in and last < barrier:
                yield f"an answer of barrier {barrier} after event {last}"
            self._last[session] = max(last, barrier)


def _event_id(value: dict[str, Any]) -> int | None:
    """``value._meta.goclaw.eventId``."""
    found = ((value.get("_meta") or {}).get("goclaw") or {}).get("eventId")
    return found if isinstance(found, int) else None


def _key(message_id: object) -> tuple[type, Any]:
    return type(message_id), message_id


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with every object closed: a custom field belongs under ``_meta`` (1.6).

    Closed is the place of use, not the definition, so that an ``allOf`` of two halves still joins.
    """
    strict = copy.deepcopy(schema)
    for definition in strict["$defs"].values():
        _close(definition)
    return strict


def _close(node: object) -> None:
    if isinstance(node, list):
        for item in node:
            _close(item)
    elif isinstance(node, dict):
        for name, item in node.get("properties", {}).items():
            if name != "_meta":
                _close_use(item)
        if isinstance(node.get("items"), dict):
            _close_use(node["items"])
        for word in ("allOf", "anyOf", "oneOf"):
            _close(node.get(word, []))


def _close_use(use: dict[str, Any]) -> None:
    _close(use)
    if use.keys() & {"$ref", "allOf", "anyOf", "oneOf", "properties"}:
        use.update(CLOSED)
