"""A server for the fan-out bench, as a process of its own: goclaw's gateway, or picows.

Usage: fanout_server.py goclaw HOME, or fanout_server.py picows. Prints one JSON line {"port",
"token", "session", "pid"} when ready; then each line {"events", "rate"} of its standard input makes
so many events at that rate (0: at once), to whoever is connected. An event carries the time at
which it was due.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import uvloop
from replay_server import TEXT, gateway_on

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TICK_S = 0.001


def update(due_ns: int) -> dict[str, Any]:
    return {
        "sessionUpdate": "agent_message_chunk",
        "messageId": "message_01k6zq3v8x2m4n6p8r0s2t4v6w",
        "content": {"type": "text", "text": f"due={due_ns:019} {TEXT}"},
    }


async def obey(make: Callable[[list[int]], Awaitable[None]]) -> None:
    """Carry out what standard input says; ``make`` gets the due times of the next events."""
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[bytes] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin.buffer:
            loop.call_soon_threadsafe(orders.put_nowait, line)

    threading.Thread(target=read, daemon=True).start()
    while True:
        order = json.loads(await orders.get())
        count, rate = order["events"], order["rate"]
        began = time.monotonic_ns()
        if not rate:
            await make([began] * count)
            continue
        made, running = 0, set()
        while made < count:
            due = min(count, (time.monotonic_ns() - began) * rate // 1_000_000_000)
            if due > made:
                times = [began + n * 1_000_000_000 // rate for n in range(made, due)]
                task = asyncio.ensure_future(make(times))
                running.add(task)
                task.add_done_callback(running.discard)
                made = due
            await asyncio.sleep(TICK_S)
        await asyncio.gather(*running)


async def serve_goclaw(home: Path) -> None:
    database, gateway, token, session = await gateway_on(home, ring_bytes=1 << 20)
    port = await gateway.serve_ws("127.0.0.1", 0)
    say(port, token, session.session_id)

    async def make(times: list[int]) -> None:
        await asyncio.gather(
            *(
                database.write(
                    "session_event", sid=session.sid, kind=0, type="update",
                    payload=orjson.dumps(update(due)), now=1_700_000_000_000,
                )
                for due in times
            )
        )  # fmt: skip

    await obey(make)


async def serve_picows() -> None:
    import picows

    clients: list[Any] = []
    number = 0

    class Listener(picows.WSListener):
        def on_ws_connected(self, transport: Any) -> None:
            clients.append(transport)

        def on_ws_disconnected(self, transport: Any) -> None:
            clients.remove(transport)

    server = await picows.ws_create_server(lambda _request: Listener(), "127.0.0.1", 0)
    say(server.sockets[0].getsockname()[1], "", "")

    async def make(times: list[int]) -> None:
        nonlocal number
        for due in times:
            number += 1
            meta = {"goclaw": {"eventId": number, "at": 1_700_000_000_000}}
            params = {
                "sessionId": "session_01k6zq3v8x2m4n6p8r0s2t4v6w",
                "update": update(due),
                "_meta": meta,
            }
            message = orjson.dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})
            for client in clients:
                client.send(picows.WSMsgType.TEXT, message)

    await obey(make)


def say(port: int, token: str, session: str) -> None:
    ready = {"port": port, "token": token, "session": session, "pid": os.getpid()}
    print(json.dumps(ready), flush=True)


if __name__ == "__main__":
    uvloop.run(serve_picows() if sys.argv[1] == "picows" else serve_goclaw(Path(sys.argv[2])))
