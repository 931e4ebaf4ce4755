"""A model's server that follows a file: chat completions and messages, streamed, with faults.

Owns the scenario's form (docs/brains.md), the two protocols from the server's side and the counting
of calls. Not in here: the command line. What is answered follows from the conversation alone, so
that a client that asks again after a crash is answered the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import orjson

from goclaw.core import limits
from goclaw.core.errors import ConfigRefused, ListenerFailed
from goclaw.core.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ModelServer", "load_scenario", "serve_model"]

_ECHO: Final[list[dict[str, Any]]] = [{"match": "", "replies": []}]
_KEPT: Final = 256  # requests that /report shows
_FINISH: Final = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal"}


def load_scenario(path: Path | None) -> list[dict[str, Any]]:
    """A JSON list of ``{match, replies}``; without a file every prompt is said back."""
    if path is None:
        return _ECHO
    try:
        found = orjson.loads(read_regular(path, limits.SCRIPT_BYTES_MAX))
    except (OSError, ValueError) as error:
        raise ConfigRefused(
            f"The scenario {path} cannot be read: {error}.", hint="docs/brains.md describes it."
        ) from None
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and {"match", "replies"} == one.keys() for one in found
    ):
        raise ConfigRefused(
            f"The scenario {path} is no list of objects with `match` and `replies`.",
            hint="docs/brains.md describes it.",
        )
    return found


async def serve_model(host: str, port: int, scenario: list[dict[str, Any]]) -> None:
    """Until cancelled; one line when it listens."""
    model = ModelServer(scenario)
    try:
        server = await asyncio.start_server(model.serve, host, port)
    except OSError as error:
        raise ListenerFailed(
            f"{host}:{port} cannot be listened on: {error.strerror}.", hint="Take port 0."
        ) from None
    async with server:
        print(f"ready http://{host}:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await server.serve_forever()


class ModelServer:
    """``serve`` answers one connection. GET says what was asked, PUT begins another scenario."""

    def __init__(self, scenario: list[dict[str, Any]]) -> None:
        self._begin(scenario)

    def _begin(self, scenario: list[dict[str, Any]]) -> None:
        self._scenario = scenario
        self._asked: Counter[str] = Counter()
        self._requests: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer; then the connection is closed, whatever the fault."""
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError):
            method, path, headers = await _head(reader)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if method == "PUT":
                self._begin(orjson.loads(body))
                await _whole(writer, 200, {}, {})
            elif method == "GET":
                report = {"calls": self._asked.total(), "asked": self._asked}
                await _whole(writer, 200, {}, {**report, "requests": self._requests})
            else:
                await self._answer(writer, path, headers, orjson.loads(body))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _answer(
        self, writer: asyncio.StreamWriter, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> None:
        prompt, step = _place(body["messages"])
        self._requests = [*self._requests[1 - _KEPT :], {"headers": headers, "body": body}]
        where = f"{prompt[:200]}#{step}"
        times = self._asked[where]
        self._asked[where] += 1
        reply = self._reply(prompt, step, times)
        if "status" in reply:
            found = reply.get("body", {"error": {"message": f"status {reply['status']}"}})
            await _whole(writer, reply["status"], reply.get("headers", {}), found)
            return
        messages = path.endswith("/messages")
        events = list(_messages(reply) if messages else _completions(reply))
        writer.write(_line(200, {"content-type": "text/event-stream", **_CHUNKED}))
        for number, event in enumerate(events):
            if number == reply.get("cutAfter"):
                writer.transport.abort()
                return
            if reply.get("delayMs"):
                await _pause(reply["delayMs"])
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _reply(self, prompt: str, step: int, times: int) -> dict[str, Any]:
        """By prompt and step; a list is what is answered the first, second ... time."""
        for entry in self._scenario:
            if re.search(entry["match"], prompt):
                replies = entry["replies"]
                if step >= len(replies):
                    return {"text": prompt if not replies else "end"}
                found = replies[step]
                if isinstance(found, list):
                    found = found[min(times, len(found) - 1)]
                return dict(found)
        return {"text": prompt}


_CHUNKED: Final = {"transfer-encoding": "chunked"}


def _place(messages: list[dict[str, Any]]) -> tuple[str, int]:
    """The last prompt, and how many answers there are to it."""
    step = 0
    for message in reversed(messages):
        if message["role"] == "assistant":
            step += 1
        elif message["role"] == "user" and isinstance(message["content"], str):
            return message["content"], step
    return "", step


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str]]:
    method, path, _ = (await reader.readline()).decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return method, path, headers


def _line(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1")


async def _whole(
    writer: asyncio.StreamWriter, status: int, headers: dict[str, str], found: object
) -> None:
    body = found.encode() if isinstance(found, str) else orjson.dumps(found)
    length = {"content-length": str(len(body))}
    writer.write(_line(status, {"content-type": "application/json", **length, **headers}) + body)
    await writer.drain()


async def _pause(wait_ms: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_ms / 1000):
            await asyncio.Event().wait()


def _pieces(reply: dict[str, Any]) -> list[str]:
    text, count = reply.get("text", ""), max(1, reply.get("chunks", 1))
    size = max(1, -(-len(text) // count))
    return [text[at : at + size] for at in range(0, len(text), size)]


def _calls(reply: dict[str, Any]) -> list[tuple[str, str]]:
    """Arguments that are a text are sent as they are, whatever they are."""
    return [
        (
            call["name"],
            call["arguments"]
            if isinstance(call["arguments"], str)
            else orjson.dumps(call["arguments"]).decode(),
        )
        for call in reply.get("calls", [])
    ]


def _usage(reply: dict[str, Any]) -> tuple[int, int] | None:
    found = reply.get("usage", [100, 10])
    return None if found is None else (found[0], found[1])


def _completions(reply: dict[str, Any]) -> Iterator[bytes]:
    for garbage in reply.get("garbage", []):
        yield f"data: {garbage}\n\n".encode()
    if "think" in reply:
        yield _data({"choices": [{"delta": {"reasoning_content": reply["think"]}}]})
    for piece in _pieces(reply):
        yield _data({"choices": [{"delta": {"content": piece}}]})
    if "refusal" in reply:
        yield _data({"choices": [{"delta": {"refusal": reply["refusal"]}}]})
    for index, (name, arguments) in enumerate(_calls(reply)):
        call = {"index": index, "id": f"c{index}", "type": "function"}
        first = {**call, "function": {"name": name, "arguments": arguments[:3]}}
        yield _data({"choices": [{"delta": {"tool_calls": [first]}}]})
        rest = {"index": index, "function": {"arguments": arguments[3:]}}
        yield _data({"choices": [{"delta": {"tool_calls": [rest]}}]})
    if "error" in reply:
        yield _data({"error": reply["error"]})
        return
    finish = reply.get("finish", "tool_calls" if reply.get("calls") else "stop")
    yield _data({"choices": [{"delta": {}, "finish_reason": finish}]})
    usage = _usage(reply)
    if usage is not None:
        counted = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
        yield _data({"choices": [], "usage": counted})
    yield b"data: [DONE]\n\n"


def _messages(reply: dict[str, Any]) -> Iterator[bytes]:
    usage = _usage(reply) or (0, 0)
    yield _event({"type": "message_start", "message": {"usage": {"input_tokens": usage[0]}}})
    for garbage in reply.get("garbage", []):
        yield f"data: {garbage}\n\n".encode()
    if "think" in reply:
        yield from _block(0, {"type": "thinking"}, "thinking_delta", "thinking", [reply["think"]])
    pieces = _pieces({**reply, "text": reply.get("refusal", reply.get("text", ""))})
    if pieces:
        yield from _block(1, {"type": "text", "text": ""}, "text_delta", "text", pieces)
    for index, (name, arguments) in enumerate(_calls(reply), 2):
        block = {"type": "tool_use", "id": f"t{index}", "name": name, "input": {}}
        parts = [arguments[:3], arguments[3:]]
        yield from _block(index, block, "input_json_delta", "partial_json", parts)
    if "error" in reply:
        yield _event({"type": "error", "error": reply["error"]})
        return
    finish = reply.get("finish", "tool_use" if reply.get("calls") else "stop")
    finish = "refusal" if "refusal" in reply else _FINISH.get(finish, finish)
    delta = {"stop_reason": finish}
    yield _event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage[1]}})
    yield _event({"type": "message_stop"})


def _block(
    index: int, block: dict[str, Any], kind: str, name: str, pieces: list[str]
) -> Iterator[bytes]:
    yield _event({"type": "content_block_start", "index": index, "content_block": block})
    for piece in pieces:
        delta = {"type": kind, name: piece}
        yield _event({"type": "content_block_delta", "index": index, "delta": delta})
    yield _event({"type": "content_block_stop", "index": index})


def _data(found: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(found) + b"\n\n"


def _event(found: dict[str, Any]) -> bytes:
    return f"event: {found['type']}\n".encode() + _data(found)
