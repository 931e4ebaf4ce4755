"""A client of the Agent Client Protocol on its official Python SDK, played by a test.

Owns nothing: it reads one order a line on stdin and tells one event a line on stdout, as
``interop_partner.py`` lists them. Not in here: any byte of the wire, which is the SDK's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from typing import Any

from acp import RequestError, schema
from acp.client.connection import ClientSideConnection
from acp.transports import spawn_stdio_transport
from acp.ws.client import create_websocket_stream

METHODS: dict[str, tuple[str, Any]] = {
    "initialize": ("initialize", schema.InitializeRequest),
    "session/new": ("new_session", schema.NewSessionRequest),
    "session/load": ("load_session", schema.LoadSessionRequest),
    "session/resume": ("resume_session", schema.ResumeSessionRequest),
    "session/list": ("list_sessions", schema.ListSessionsRequest),
    "session/close": ("close_session", schema.CloseSessionRequest),
    "session/prompt": ("prompt", schema.PromptRequest),
    "session/cancel": ("cancel", schema.CancelNotification),
}


def tell(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Complaints(logging.Handler):
    """What the SDK logs is what it could not take: to the test, a finding."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            error = record.exc_info[1] if record.exc_info else ""
            tell({"event": "complaint", "text": f"{record.getMessage()} {error}"})


def plain(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True) if model else {}


class Editor:
    """The client's side of one connection."""

    def __init__(self, conn: str) -> None:
        self._conn, self._asks = conn, 0
        self.open: dict[int, asyncio.Future[Any]] = {}

    async def session_update(self, session_id: str, update: Any, **meta: Any) -> None:
        params = {"sessionId": session_id, "update": plain(update), "_meta": meta}
        tell({"conn": self._conn, "event": "note", "method": "session/update", "params": params})

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **meta: Any
    ) -> Any:
        params = {
            "sessionId": session_id,
            "toolCall": plain(tool_call),
            "options": [plain(option) for option in options],
            "_meta": meta,
        }
        self._asks += 1
        number = self._asks
        answer = self.open[number] = asyncio.get_running_loop().create_future()
        method = "session/request_permission"
        event = {"event": "ask", "ask": number, "method": method, "params": params}
        tell({"conn": self._conn, **event})
        return schema.RequestPermissionResponse.model_validate(await answer)

    async def ext_notification(self, method: str, params: dict[str, Any]) -> None:
        tell({"conn": self._conn, "event": "note", "method": f"_{method}", "params": params})


class Connection:
    """One connection of the SDK, and the tasks that wait on it."""

    def __init__(self, conn: str) -> None:
        self.conn, self.editor = conn, Editor(conn)
        self._undo = contextlib.AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._refused: Exception | None = None

    async def open(self, order: dict[str, Any]) -> None:
        if "url" in order:
            try:
                transport = await create_websocket_stream(
                    order["url"], headers={"Authorization": f"Bearer {order['token']}"}
                )
            except Exception as error:  # told to whoever asks for something
                self._refused = error
                return
            self.sdk = ClientSideConnection(self.editor, transport)  # type: ignore[arg-type]
        else:
            reader, writer, self._process = await self._undo.enter_async_context(
                spawn_stdio_transport(
                    *order["command"], env={**os.environ, **order["env"]}, stderr=None
                )
            )
            self.sdk = ClientSideConnection(self.editor, writer, reader)  # type: ignore[arg-type]

    async def request(self, n: int, method: str, params: dict[str, Any]) -> None:
        reply: dict[str, Any]
        try:
            reply = {"result": await self.call(method, params)}
        except RequestError as error:
            reply = {"error": {"code": error.code, "message": str(error), "data": error.data}}
        except Exception as error:  # what the SDK makes of an answer it cannot read
            reply = {"error": {"code": None, "message": repr(error), "data": None}}
        tell({"conn": self.conn, "event": "reply", "n": n, **reply})

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        if self._refused is not None:
            raise self._refused
        if method.startswith("_"):
            return await self.sdk.ext_method(method[1:], params)
        name, model = METHODS[method]
        parsed = model.model_validate(params)
        named = {f: getattr(parsed, f) for f in parsed.model_fields_set if f != "field_meta"}
        return plain(await getattr(self.sdk, name)(**named, **(params.get("_meta") or {})))

    async def end(self) -> None:
        await self.sdk.close()
        await self._undo.aclose()
        if self._process is not None:
            tell({"conn": self.conn, "event": "exit", "code": self._process.returncode})
        tell({"conn": self.conn, "event": "closed"})


async def main() -> None:
    logging.getLogger().addHandler(Complaints())
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    connections: dict[str, Connection] = {}
    tasks = set()
    tell({"event": "ready"})
    while line := await orders.readline():
        order = json.loads(line)
        match order["do"]:
            case "open":
                one = connections[order["conn"]] = Connection(order["conn"])
                await one.open(order)
            case "request":
                one = connections[order["conn"]]
                task = loop.create_task(one.request(order["n"], order["method"], order["params"]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                await asyncio.sleep(0)  # requests leave in the order of the orders
            case "notify":
                await connections[order["conn"]].call(order["method"], order["params"])
            case "answer":
                ask = connections[order["conn"]].editor.open.pop(order["ask"])
                if "error" in order:
                    error = order["error"]
                    ask.set_exception(RequestError(error["code"], error["message"]))
                else:
                    ask.set_result(order["result"])
            case "end":
                await connections[order["conn"]].end()


asyncio.run(main())
