"""JSON-RPC 2.0 as bytes: a strict decoder, encoders, lines, frames, and the books of one peer.

Owns what is accepted as JSON, how errors are written, and which requests are open in either
direction. Sans-I/O. Not in here: sockets, and what a method does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import orjson

from goclaw._fast import frame
from goclaw.core import limits
from goclaw.core.errors import (
    GoclawError,
    InternalError,
    InvalidRequest,
    MethodUnknown,
    ParseError,
    RateLimited,
    TooLarge,
)
from goclaw.protocol.lines import LineSplitter
from goclaw.protocol.messages import (
    Batch,
    EventKind,
    Id,
    Malformed,
    Message,
    Notification,
    Request,
    Response,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = [
    "Answer",
    "Call",
    "Cancel",
    "Incoming",
    "LineSplitter",
    "Peer",
    "Send",
    "canonical",
    "decode",
    "encode",
    "encode_error",
    "encode_notification",
    "encode_request",
    "encode_result",
    "error_object",
    "event_frame",
    "method_unknown",
    "packed_frames",
    "text_frame",
]

CANCEL_METHOD: Final = "$/cancel_request"

# -- bytes to values ---------------------------------------------------------------------------


def decode(data: bytes) -> object:
    """One JSON text, strictly: any doubt is a refusal.

    Refused with ParseError: bytes that are not UTF-8, a byte order mark, NaN and infinities (also
    by overflow), lone surrogates, a key given twice in one object, nesting beyond
    ``limits.JSON_DEPTH_MAX``, numbers of more than ``limits.JSON_NUMBER_CHARS_MAX`` characters.
    Over ``limits.FRAME_BYTES_MAX``: TooLarge. Integers stay exact at any length within the bound.
    """
    if len(data) > limits.FRAME_BYTES_MAX:
        raise TooLarge(
            f"A message may have {limits.FRAME_BYTES_MAX} bytes, this one has {len(data)}.",
            limit=limits.FRAME_BYTES_MAX,
            unit="bytes",
        )
    try:
        # It refuses nesting beyond 1,024 by itself, so no text can exhaust the stack here.
        value: object = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ParseError(f"The message is not valid JSON: {error}.") from None
    if _is_exact(value) and _is_shortest(data, value):
        return value
    return _STRICT.decode(data.decode())


def _is_exact(value: object) -> bool:
    """True when there is no float, so nothing was rounded. Refuses what is nested too deep."""
    exact = True
    level: list[Any] = [[value]]
    for _ in range(limits.JSON_DEPTH_MAX + 1):
        below: list[Any] = []
        for container in level:
            for child in container.values() if type(container) is dict else container:
                kind = type(child)
                if kind is dict or kind is list:
                    below.append(child)
                elif kind is float:
                    exact = False
        if not below:
            return exact
        level = below
    raise ParseError(f"The message is nested deeper than {limits.JSON_DEPTH_MAX} levels.")


def _is_shortest(data: bytes, value: object) -> bool:
    """True when no shorter text means ``value``: then none of its keys can have stood twice.

    Without fractions orjson's rendering is the shortest there is, and most senders write so.
    """
    try:
        return len(orjson.dumps(value)) == len(data)
    except TypeError:  # it renders 254 levels, we accept a few more
        return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ParseError(f"The key {_shown(twice)} stands twice in one object.")
    return members


def _integer(digits: str) -> int:
    _check_number(digits)
    return int(digits)


def _fraction(digits: str) -> float:
    _check_number(digits)
    return float(digits)


def _check_number(digits: str) -> None:
    if len(digits) > limits.JSON_NUMBER_CHARS_MAX:
        raise ParseError(f"A number may have {limits.JSON_NUMBER_CHARS_MAX} characters.")


def _shown(name: str) -> str:
    """A foreign name, safe for one line of an error message."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_fraction
)

# -- values to bytes ---------------------------------------------------------------------------


def encode(value: object) -> bytes:
    """Compact UTF-8 JSON on one line, no newline at the end. A lone surrogate is sent as "?"."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # Integers beyond 64 bits (an id must be echoed exactly) and lone surrogates (file names).
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")


def canonical(value: object) -> bytes:
    """The same bytes for the same JSON value, in whatever order its members came."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        text = json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True
        )
        return text.encode("utf-8", "replace")


def encode_request(request_id: Id, method: str, params: object = None) -> bytes:
    """A request; ``params`` None leaves the member out."""
    message = {"jsonrpc": "2.0", "id": request_id, "method": method}
    return encode(message if params is None else {**message, "params": params})


def encode_notification(method: str, params: object = None) -> bytes:
    """A notification; ``params`` None leaves the member out."""
    message = {"jsonrpc": "2.0", "method": method}
    return encode(message if params is None else {**message, "params": params})


def encode_result(request_id: Id, result: object) -> bytes:
    """A success; ``result`` may hold ``orjson.Fragment`` parts that are JSON already."""
    return encode({"jsonrpc": "2.0", "id": request_id, "result": result})


def encode_error(request_id: Id, error: GoclawError) -> bytes:
    """A failure, see ``error_object``."""
    return encode({"jsonrpc": "2.0", "id": request_id, "error": error_object(error)})


def error_object(error: GoclawError) -> dict[str, Any]:
    """``{code, message, data}``: one line of prose; data = the details, ``name`` and ``hint``."""
    data: dict[str, Any] = {"name": error.code, **error.data}
    if error.hint:
        data["hint"] = error.hint
    return {"code": error.rpc, "message": " ".join(error.message.split()), "data": data}


def method_unknown(method: str) -> MethodUnknown:
    """The answer to a request whose method nobody has; a long name is cut."""
    return MethodUnknown(f"There is no method {_shown(method)}.")


# -- frames ------------------------------------------------------------------------------------


def event_frame(
    *,
    session: str,
    kind: EventKind,
    event_id: int,
    event_type: str,
    at_ms: int,
    run_id: str,
    task_id: str,
    attempt: int,
    trace: str,
    payload: bytes,
) -> bytes:
    """The ring slot of one committed event: WebSocket header, notification, LF.

    ``payload`` is a JSON object on one line, spliced and not parsed; empty strings and attempt 0
    are left out. ValueError for ids that would need escaping.
    """
    return frame.event(
        session.encode(),
        kind,
        event_id,
        event_type.encode(),
        at_ms,
        run_id.encode(),
        task_id.encode(),
        attempt,
        trace.encode(),
        payload,
    )


def packed_frames(session: str, rows: bytes, *, mask: int, lines: bool) -> bytes:
    """Rows as the store packs them, as the very bytes that ``event_frame`` made of them when they
    were live; they never become Python objects.

    Only kinds in ``mask``; as lines without the WebSocket headers.
    """
    return frame.packed(session.encode(), rows, mask, lines)


def text_frame(payload: bytes) -> bytes:
    """One unmasked WebSocket text frame around a finished message."""
    return frame.text(payload)


# -- the books of one connection ---------------------------------------------------------------


class _Batch:
    """Answers of one batch, until the last of its requests has one."""

    __slots__ = ("answers", "open")

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.open = 0

    def render(self) -> bytes | None:
        """The array, or None while a request is open or when there is nothing to say."""
        if self.open or not self.answers:
            return None
        return b"[" + b",".join(self.answers) + b"]"


@dataclass(eq=False, slots=True)
class Call:
    """A request of the peer: owed one answer through ``Peer.result`` or ``Peer.error``."""

    request: Request
    batch: _Batch | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """The peer gave up on ``call``, which still needs its answer (a result or -32800)."""

    call: Call


@dataclass(frozen=True, slots=True)
class Answer:
    """The peer answered our request ``request_id``."""

    request_id: int
    method: str
    response: Response


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes that are owed at once: the answer to something that was no message."""

    data: bytes


Incoming: TypeAlias = Call | Notification | Cancel | Answer | Send


class Peer:
    """Both directions of one connection, without I/O: who owes whom an answer.

    ``batches`` False (ACP) answers an array with one -32600. At most ``limits.REQUESTS_MAX``
    requests are open in each direction. Not thread-safe: it belongs to its connection.
    """

    __slots__ = ("_batches", "_by_id", "_calls", "_outstanding", "_request_id")

    def __init__(self, *, batches: bool = False) -> None:
        self._batches = batches
        self._calls: set[Call] = set()
        self._by_id: dict[str | int, Call] = {}  # of _calls those whose id is not null
        self._outstanding: dict[int, str] = {}
        self._request_id = 0

    @property
    def calls(self) -> Collection[Call]:
        """The peer's requests that have no answer yet."""
        return frozenset(self._calls)

    @property
    def outstanding(self) -> Mapping[int, str]:
        """Our requests that have no answer yet: id and method."""
        return MappingProxyType(self._outstanding)

    def receive(self, data: bytes) -> list[Incoming]:
        """What one message means, in order. Never raises: bad input becomes ``Send``."""
        try:
            message = parse(decode(data))
        except GoclawError as error:
            return [Send(encode_error(None, error))]
        if not isinstance(message, Batch):
            return self._single(message, None)
        if not self._batches:
            refusal = InvalidRequest("Batches are not part of ACP: send each message alone.")
            return [Send(encode_error(None, refusal))]
        batch = _Batch()
        found: list[Incoming] = []
        for item in message.items:
            for incoming in self._single(item, batch):
                if isinstance(incoming, Send):
                    batch.answers.append(incoming.data)
                else:
                    found.append(incoming)
        whole = batch.render()
        return found if whole is None else [*found, Send(whole)]

    def _single(self, message: Message | Malformed, batch: _Batch | None) -> list[Incoming]:
        if isinstance(message, Request):
            return [self._open(message, batch)]
        if isinstance(message, Response):
            return self._match(message)
        if isinstance(message, Malformed):
            return [Send(encode_error(message.id, message.error))]
        if message.method == CANCEL_METHOD:
            return self._cancelled(message)
        return [message]

    def _open(self, request: Request, batch: _Batch | None) -> Call | Send:
        if request.id is not None and request.id in self._by_id:
            # Under that id the answer would be taken for the first request's.
            refusal = InvalidRequest("A request with this id is still open.", requestId=request.id)
            return Send(encode_error(None, refusal))
        if len(self._calls) >= limits.REQUESTS_MAX:
            limited = RateLimited(
                f"At most {limits.REQUESTS_MAX} requests may be open on one connection.",
                hint="Wait for an answer, then send it again.",
                retryAfterMs=limits.BACKOFF_MS_MIN,
            )
            return Send(encode_error(request.id, limited))
        call = Call(request, batch)
        self._calls.add(call)
        if request.id is not None:
            self._by_id[request.id] = call
        if batch is not None:
            batch.open += 1
        return call

    def _match(self, response: Response) -> list[Incoming]:
        # A stray or late answer is nobody's business, and an answer is never answered.
        if type(response.id) is not int or response.id not in self._outstanding:
            return []
        return [Answer(response.id, self._outstanding.pop(response.id), response)]

    def _cancelled(self, message: Notification) -> list[Incoming]:
        request_id = message.params.get("requestId") if isinstance(message.params, dict) else None
        if type(request_id) is not int and type(request_id) is not str:
            return []
        call = self._by_id.get(request_id)  # None: answered already, the cancel came too late
        return [] if call is None else [Cancel(call)]

    def result(self, call: Call, result: object) -> bytes | None:
        """The bytes to send; None while other requests of its batch are open.

        InternalError when ``call`` has its answer already.
        """
        return self._close(call, encode_result(call.request.id, result))

    def error(self, call: Call, error: GoclawError) -> bytes | None:
        """See ``result``."""
        return self._close(call, encode_error(call.request.id, error))

    def _close(self, call: Call, answer: bytes) -> bytes | None:
        if call not in self._calls:
            raise InternalError("A request was to be answered twice.")
        self._calls.discard(call)
        if call.request.id is not None:
            del self._by_id[call.request.id]
        if call.batch is None:
            return answer
        call.batch.open -= 1
        call.batch.answers.append(answer)
        return call.batch.render()

    def request(self, method: str, params: object = None) -> tuple[int, bytes]:
        """A new request's id and bytes. RateLimited when too many have no answer."""
        if len(self._outstanding) >= limits.REQUESTS_MAX:
            raise RateLimited(
                f"The peer owes {limits.REQUESTS_MAX} answers.", retryAfterMs=limits.BACKOFF_MS_MIN
            )
        self._request_id += 1
        data = encode_request(self._request_id, method, params)
        self._outstanding[self._request_id] = method
        return self._request_id, data

    def cancel(self, request_id: int) -> bytes:
        """``$/cancel_request`` for one of ours; its answer is still awaited."""
        return encode_notification(CANCEL_METHOD, {"requestId": request_id})

    def forget(self, request_id: int) -> None:
        """Wait no longer; a late answer is dropped. Twice is fine."""
        self._outstanding.pop(request_id, None)
