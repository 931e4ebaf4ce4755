"""What travels on the wire, as values: JSON-RPC messages and the kinds of session events.

Owns the shapes and the rules an arbitrary JSON value is held to (PROTOCOL 1.1, 4). Not in here:
bytes (``protocol/jsonrpc.py``), what a method means (``gateway/handlers.py``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from goclaw.core import limits
from goclaw.core.errors import GoclawError, InvalidRequest, error_for_code, error_for_name

__all__ = [
    "KINDS_OPTED_IN",
    "KINDS_VANILLA",
    "Batch",
    "EventKind",
    "EventRow",
    "Id",
    "Malformed",
    "Message",
    "Notification",
    "RemoteError",
    "Request",
    "Response",
    "parse",
]

Id: TypeAlias = str | int | None
"""A request's id. null is an id that a request may carry; it is echoed like any other."""


class EventKind(enum.IntEnum):
    """How one session event looks on the wire; the ring's and the page's mask is ``1 << kind``."""

    STANDARD = 0
    """An ACP ``session/update`` that every client understands."""
    GOCLAW = 1
    """A ``_goclaw/session/event``: opted-in clients only."""
    USER = 2
    """A ``user_message_chunk``: standard shape, but live only for those who did not type it."""


KINDS_OPTED_IN: Final = 0b111
"""Every kind: the union of both methods is dense (PROTOCOL 2.2)."""
KINDS_VANILLA: Final = 1 << EventKind.STANDARD


EventRow: TypeAlias = tuple[int, int, str, int, str | None, str | None, int, str | None, bytes]
"""A stored event: event id, kind, type, epoch ms, run, task, attempt, traceparent, payload."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call that is owed exactly one answer."""

    id: Id
    method: str
    params: dict[str, Any] | list[Any] | None


@dataclass(frozen=True, slots=True)
class Notification:
    """A call that is never answered, whatever happens."""

    method: str
    params: dict[str, Any] | list[Any] | None


@dataclass(frozen=True, slots=True)
class RemoteError:
    """The error object of a response, as the peer wrote it."""

    code: int
    message: str
    data: Any = None

    def exception(self) -> GoclawError:
        """Our class for the peer's error: by the name in data, else by the code."""
        data = dict(self.data) if isinstance(self.data, dict) else {}
        name, hint = data.pop("name", None), data.pop("hint", "")
        kind = error_for_name(name) if isinstance(name, str) else GoclawError
        if kind.rpc != self.code:  # the code decides: a foreign peer may use the same word
            kind = error_for_code(self.code)
        error = kind(self.message, hint=hint if isinstance(hint, str) else "")
        error.data = data
        return error


@dataclass(frozen=True, slots=True)
class Response:
    """An answer to one of our requests; ``error`` None means success."""

    id: Id
    result: Any = None
    error: RemoteError | None = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """JSON that is no JSON-RPC message; answer ``error`` under ``id`` and go on."""

    id: Id
    error: GoclawError


@dataclass(frozen=True, slots=True)
class Batch:
    """A non-empty array; its answers travel in one array, in any order."""

    items: tuple[Message | Malformed, ...]


Message: TypeAlias = Request | Notification | Response


def parse(value: object) -> Message | Batch | Malformed:
    """Say what a decoded JSON value is. Total: what fits no rule comes back as Malformed."""
    if type(value) is not list:
        return _single(value)
    if not value:
        return Malformed(None, InvalidRequest("A batch must hold at least one message."))
    if len(value) > limits.BATCH_MESSAGES_MAX:
        many = f"A batch may hold {limits.BATCH_MESSAGES_MAX} messages, this one has {len(value)}."
        return Malformed(None, InvalidRequest(many))
    return Batch(tuple(_single(item) for item in value))


def _single(value: object) -> Message | Malformed:
    if type(value) is not dict:
        return Malformed(None, InvalidRequest("A message must be a JSON object."))
    if "method" not in value and ("result" in value or "error" in value):
        return _response(value)
    id_good = "id" not in value or _is_id(value["id"])
    id_echo: Id = value.get("id") if id_good else None
    if value.get("jsonrpc") != "2.0":
        return Malformed(id_echo, InvalidRequest('The member "jsonrpc" must be the string "2.0".'))
    method = value.get("method")
    if type(method) is not str:
        return Malformed(id_echo, InvalidRequest('The member "method" must be a string.'))
    params = value.get("params")
    if params is not None and type(params) is not dict and type(params) is not list:
        return Malformed(id_echo, InvalidRequest('The member "params" must be an object or array.'))
    if not id_good:
        rule = f"an integer, null, or a string of at most {limits.ID_CHARS_MAX} characters"
        return Malformed(None, InvalidRequest(f'The member "id" must be {rule}.'))
    if "id" in value:
        return Request(id_echo, method, params)
    return Notification(method, params)


def _is_id(value: object) -> bool:
    # Exact types: true is an int in Python, and a fraction has no exact equal to compare with.
    kind = type(value)
    if kind is str:
        return len(value) <= limits.ID_CHARS_MAX  # type: ignore[arg-type]
    return kind is int or value is None


def _response(value: dict[str, Any]) -> Response | Malformed:
    if "id" not in value or not _is_id(value["id"]):
        return Malformed(None, InvalidRequest("A response must carry the id of its request."))
    # From here on somebody may wait under that id: a broken answer fails that request, visibly.
    broken = RemoteError(InvalidRequest.rpc, "The peer's answer is no JSON-RPC 2.0 response.")
    error = value.get("error")
    if value.get("jsonrpc") != "2.0":
        return Response(value["id"], error=broken)
    if error is None:
        result_given = "result" in value
        return Response(value["id"], value.get("result"), None if result_given else broken)
    if type(error) is not dict or value.get("result") is not None:
        return Response(value["id"], error=broken)
    code, text, data = error.get("code"), error.get("message"), error.get("data")
    if type(code) is not int:
        return Response(value["id"], error=broken)
    return Response(value["id"], error=RemoteError(code, text if type(text) is str else "", data))
