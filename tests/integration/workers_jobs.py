"""Handlers for `goclaw worker` in the tests: each payload is a script of steps.

Owns what a worker of the tests can be made to do: act on the sink under an effect (send, caught,
all), show something (say), write or wait for a line in the file of marks (note, wait, busy, block),
stop, kill or end itself as a signal would (stop, die, exit), and end in every way (retry, fail,
raise, return, lost, hang, spurious). Not in here: any test.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from typing import Any

from goclaw.worker import AsyncContext, Context, EffectFailed, Failure, Retry

MARKS = os.environ.get("JOBS_MARKS", "")
SINK = os.environ.get("JOBS_SINK", "")


def send(tool: str, key: str, **options: Any) -> dict[str, Any]:
    """One line to the sink, one back; ConnectionError when it takes it and says nothing."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(SINK)
        request = {"op": "send", "tool": tool, "key": key, **options}
        line.sendall(json.dumps(request).encode() + b"\n")
        answer = line.makefile().readline()
    if not answer:
        raise ConnectionResetError("the sink said nothing")
    found: dict[str, Any] = json.loads(answer)
    return found


def note(word: str) -> None:
    """A line in the file of marks, at once."""
    with open(MARKS, "a", encoding="utf-8") as file:
        file.write(f"{word} {os.getpid()}\n")


def has(word: str) -> bool:
    """True when that word stands in the file of marks."""
    with open(MARKS, encoding="utf-8") as file:
        return any(line.split()[0] == word for line in file if line.strip())


def act(step: list[Any], context: Any) -> Any:
    """A step without the context's own methods."""
    verb, *rest = step
    match verb:
        case "note":
            note(rest[0])
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "retry":
            raise Retry("come again", code=rest[0], after_ms=1)
        case "fail":
            raise Failure("never", code=rest[0])
        case "raise":
            raise ValueError("a fault")
        case "exit":
            sys.exit(3)
        case "large":
            return "x" * rest[0]
        case "no-json":
            return object()
    return None


def call_of(options: dict[str, Any], effect_class: str) -> Any:
    """The call of an effect: what it does to the sink, and how it ends."""

    def call(key: str) -> Any:
        for step in options.get("before", []):
            act(step, None)
        if "refuse" in options:
            raise EffectFailed({"code": options["refuse"]})
        if options.get("unsent"):
            raise Retry("nothing was sent", code="unsent", after_ms=1)
        found = send(effect_class, key, reset=bool(options.get("reset")))
        for step in options.get("after", []):
            act(step, None)
        return found

    return call


def now(options: dict[str, Any], context: Any) -> bool:
    """True unless the step is for other attempts."""
    return context.attempt in options.get("attempts", [context.attempt])


def handle(context: Context) -> Any:
    """A plain function."""
    value: Any = None
    for step in context.payload:
        verb, *rest = step
        if rest and isinstance(rest[-1], dict) and not now(rest[-1], context):
            continue
        if verb == "send":
            options = rest[-1] if isinstance(rest[-1], dict) else {}
            kind = options.get("class", "irreversible")
            within = (
                options
                if now({"attempts": options.get("within", [context.attempt])}, context)
                else {}
            )
            value = context.effect(
                rest[0], {"name": rest[0]}, call_of(within, kind), effect_class=kind
            )
        elif verb == "caught":
            try:
                context.effect(rest[0], {"name": rest[0]}, call_of(rest[-1], "irreversible"))
            except EffectFailed as failed:
                value = {"caught": failed.error}
        elif verb == "say":
            chunk = {"type": "text", "text": rest[0]}
            context.emit({"sessionUpdate": "agent_message_chunk", "content": chunk})
        elif verb == "wait":
            while not has(rest[0]) and not context.wait_cancelled(20):
                pass
            value = "cancelled" if context.cancelled else value
        elif verb == "busy":
            while not has(rest[0]):
                sum(range(1000))
        elif verb == "lost":
            while not context.wait_cancelled(20):
                pass
            note("lost")
        elif verb == "return":
            value = rest[0]
        else:
            value = act(step, context) or value
    return value


async def handle_async(context: AsyncContext) -> Any:
    """A coroutine function: effects of one step at a time, or all at once."""
    value: Any = None
    for step in context.payload:
        verb, *rest = step
        if verb == "all":

            async def call(key: str) -> Any:
                return send("irreversible", key)

            value = await asyncio.gather(
                *(context.effect(name, {"name": name}, call) for name in rest)
            )
        elif verb == "say":
            chunk = {"type": "text", "text": rest[0]}
            await context.emit({"sessionUpdate": "agent_message_chunk", "content": chunk})
        elif verb == "hang":
            try:
                await asyncio.Event().wait()
            finally:
                note("let-go")
        elif verb == "block":
            note("blocks")
            while not has(rest[0]):
                sum(range(1000))
        elif verb == "spurious":
            raise asyncio.CancelledError
        else:
            value = act(step, context) or value
    return value
