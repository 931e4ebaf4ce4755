"""Two id spaces joined: what an editor says becomes the daemon's, and back (PROTOCOL 2.9).

Owns the editor's ids, what a vanilla editor is not shown, and the history that is held until it is
whole. Sans-I/O. Not in here: reconnecting (``client/link.py``), descriptors (``acp.py``).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from goclaw.client.link import (
    Answered,
    Asked,
    Happened,
    Missed,
    Refused,
    Told,
    Withdrawn,
    encode,
    goclaw_meta,
)
from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import DaemonGone, GoclawError, InvalidRequest, ParseError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from goclaw.client.link import Incoming, Link

__all__ = ["Splice"]

# Facts of our connection to the daemon; the editor's never breaks.
_OURS: Final = ("_goclaw/backpressure", "_goclaw/shutdown")


class Splice:
    """The translation. ``to_editor`` holds finished lines, to be taken and written in order."""

    def __init__(self, link: Link, client_id: str, brain: str | None) -> None:
        self.to_editor: list[bytes] = []
        self.warnings: list[str] = []
        """Sentences for stderr."""
        self._link, self._client_id, self._brain = link, client_id, brain
        self._opted_in = False
        self._editor_ids: dict[int, Any] = {}  # of the requests that have no answer, by link id
        self._histories: dict[str, list[bytes]] = {}  # by session, while session/load runs
        self._history_bytes = 0

    # -- from the editor ------------------------------------------------------------------------

    def from_editor(self, line: bytes) -> None:
        """Take one line of the editor; what is no message is answered as the daemon would."""
        try:
            message = _read(line)
        except ValueError as error:
            self._refuse(None, ParseError(f"The message is not valid JSON: {error}."))
            return
        except TooLarge as error:
            self._refuse(None, error)
            return
        if not isinstance(message, dict):
            what = "Batches are not part of ACP: send each message alone."
            if not isinstance(message, list):
                what = "A message must be a JSON object."
            self._refuse(None, InvalidRequest(what))
            return
        try:
            self._take(message)
        except GoclawError as error:
            self._refuse(message.get("id"), error)
        except ValueError as error:  # what cannot be JSON again: lone surrogates
            self._refuse(message.get("id"), ParseError(f"The message is not valid JSON: {error}."))

    def _take(self, message: dict[str, Any]) -> None:
        method = message.get("method")
        if "method" not in message and ("result" in message or "error" in message):
            self._reply(message)
            return
        if message.get("jsonrpc") != "2.0" or not isinstance(method, str):
            raise InvalidRequest("The message is no JSON-RPC 2.0 request.")
        params = message.get("params")
        if params is None:
            params = {}
        if not isinstance(params, dict):
            raise InvalidRequest('The member "params" must be an object.')
        if "id" not in message:
            self._notify(method, params)
            return
        editor_id = message["id"]
        if type(editor_id) is not int and type(editor_id) is not str and editor_id is not None:
            message["id"] = None
            raise InvalidRequest('The member "id" must be an integer, a string or null.')
        if editor_id is not None and editor_id in self._editor_ids.values():
            message["id"] = None
            raise InvalidRequest("A request with this id is still open.", requestId=editor_id)
        request_id = self._link.request(method, self._prepared(method, params))
        self._editor_ids[request_id] = editor_id
        session = params.get("sessionId")
        if method == "session/load" and isinstance(session, str):
            self._histories[session] = []

    def _prepared(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            return self._greeting(params)
        if method == "session/new" and self._brain is not None:
            return _extended(params, {"brain": self._brain})
        return params

    def _greeting(self, params: dict[str, Any]) -> dict[str, Any]:
        """The editor's capabilities, and our own word that we know goclaw's extension."""
        capabilities = params.get("clientCapabilities")
        capabilities = capabilities if isinstance(capabilities, dict) else {}
        own = goclaw_meta(capabilities)
        self._opted_in = own.get("version") == 1 and bool(own.get("notifications"))
        extension: dict[str, Any] = {"version": 1, "notifications": True}
        if not isinstance(own.get("clientId"), str):
            extension["clientId"] = self._client_id
        return {**params, "clientCapabilities": _extended(capabilities, extension, over=True)}

    def _notify(self, method: str, params: dict[str, Any]) -> None:
        if method == "$/cancel_request":
            for request_id, editor_id in self._editor_ids.items():
                if editor_id == params.get("requestId") and editor_id is not None:
                    self._link.notify(method, {**params, "requestId": request_id})
                    return
            return
        self._link.notify(method, params)

    def _reply(self, message: dict[str, Any]) -> None:
        ask_id = message.get("id")
        if type(ask_id) is int:
            name = "error" if message.get("error") is not None else "result"
            self._link.reply(ask_id, {name: message.get(name)})

    def _refuse(self, editor_id: Any, error: GoclawError) -> None:
        body = {"code": error.rpc, "message": error.message, "data": {"name": error.code}}
        self._emit(encode({"jsonrpc": "2.0", "id": editor_id, "error": body}))

    # -- from the daemon ------------------------------------------------------------------------

    def from_daemon(self, found: Sequence[Incoming]) -> None:
        """Take what the link understood. DaemonGone when the daemon wants nothing more of us."""
        for incoming in found:
            if isinstance(incoming, Happened):
                self._happened(incoming)
            elif isinstance(incoming, Answered):
                self._answered(incoming)
            elif isinstance(incoming, Asked):
                self._emit(encode({
                    "jsonrpc": "2.0", "id": incoming.ask_id, "method": incoming.method,
                    "params": incoming.params,
                }))  # fmt: skip
            elif isinstance(incoming, Withdrawn):
                self._tell("$/cancel_request", {"requestId": incoming.ask_id})
            elif isinstance(incoming, Missed):
                self._missed(incoming)
            elif isinstance(incoming, Told):
                if incoming.method not in _OURS and self._shows(incoming.method):
                    self._emit(incoming.line)
            elif isinstance(incoming, Refused):
                raise DaemonGone(
                    f"The daemon came back and refused us: {incoming.error.get('message')}",
                    hint="Restart the editor's connection.",
                )

    def _shows(self, method: str) -> bool:
        return self._opted_in or not method.startswith("_goclaw/")

    def _happened(self, event: Happened) -> None:
        held = self._histories.get(event.session) if event.replay else None
        if held is not None:
            held.append(event.line)
            self._history_bytes += len(event.line)
            if self._history_bytes > limits.LOAD_BYTES_MAX:
                self._release(event.session)
                self._histories[event.session] = []
            return
        if not self._shows(event.method):
            self._tell_end(event)
            return
        update = event.params.get("update")
        kind = update.get("sessionUpdate") if isinstance(update, dict) else None
        if kind == "user_message_chunk" and not event.replay and not self._opted_in:
            return  # the user typed it here: v1 shows it in a history only
        self._emit(event.line)

    def _tell_end(self, event: Happened) -> None:
        """A vanilla editor that took up a running turn has no request that its end would answer."""
        own = event.params.get("event")
        ended = isinstance(own, dict) and own.get("type") == "run.ended"
        if ended and not self._link.is_prompting(event.session):
            at = rfc3339(int(goclaw_meta(event.params).get("at", 0)))
            update = {"sessionUpdate": "session_info_update", "updatedAt": at}
            self._tell("session/update", {"sessionId": event.session, "update": update})

    def _answered(self, answered: Answered) -> None:
        if answered.request_id not in self._editor_ids:
            return
        for session in list(self._histories) if answered.method == "session/load" else ():
            if not self._link.is_loading(session):
                self._release(session)
        message = {**answered.message, "id": self._editor_ids.pop(answered.request_id)}
        self._emit(encode(message))

    def _release(self, session: str) -> None:
        lines = self._histories.pop(session)
        self._history_bytes -= sum(map(len, lines))
        self.to_editor += lines

    def restart_histories(self) -> None:
        """The connection is gone: a session/load tells its history from the start again."""
        for session, lines in self._histories.items():
            self._history_bytes -= sum(map(len, lines))
            self._histories[session] = []

    def _missed(self, missed: Missed) -> None:
        why = str(missed.error.get("message", ""))
        text = f"Some events of this session could not be shown ({why}). Load it again to see all."
        self.warnings.append(f"session {missed.session}: {text}")
        thought = {
            "sessionUpdate": "agent_thought_chunk",
            "content": {"type": "text", "text": text},
        }
        self._tell("session/update", {"sessionId": missed.session, "update": thought})

    def _tell(self, method: str, params: dict[str, Any]) -> None:
        self._emit(encode({"jsonrpc": "2.0", "method": method, "params": params}))

    def _emit(self, line: bytes) -> None:
        self.to_editor.append(line)


def _read(line: bytes) -> object:
    """Strict JSON: what the daemon refuses must not become acceptable by passing through here."""
    if len(line) > limits.FRAME_BYTES_MAX:
        most = limits.FRAME_BYTES_MAX
        raise TooLarge(f"A message may have {most} bytes.", limit=most, unit="bytes")
    try:
        value: object = _STRICT.decode(line.decode())
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return members


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _extended(
    value: dict[str, Any], members: dict[str, Any], *, over: bool = False
) -> dict[str, Any]:
    """``value`` with ``members`` in its ``_meta.goclaw``; what stands there wins, unless over."""
    meta = value.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    own = goclaw_meta(value)
    both = {**own, **members} if over else {**members, **own}
    return {**value, "_meta": {**meta, "goclaw": both}}
