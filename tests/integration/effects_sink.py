"""The outside world of the effect tests: a process that counts what is done to it, by key.

Owns the counts, which no kill of the engine's process touches. Not in here: the tools that call
it (effects_support.py). One JSON line in, one JSON line out, per connection. Hundreds of tests
start one each: without asyncio it starts in a third of the time.
"""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from collections import Counter
from typing import Any


class Sink:
    def __init__(self) -> None:
        self.sends: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()

    def answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        key = request.get("key", "")
        match request["op"]:
            case "report":
                return {"sends": self.sends, "effects": self.effects}
            case "forget":
                self.sends.clear()
                self.effects.clear()
                return {}
            case "probe":
                return {"happened": self.effects[key] > 0}
            case "send":
                self.sends[key] += 1
                # The far side of a keyed tool is what deduplicates.
                if not (request["tool"] == "keyed" and self.effects[key]):
                    self.effects[key] += 1
                return None if request.get("reset") else {"effects": self.effects[key]}
        return {"error": "no such operation"}


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 100

    def __init__(self, path: str) -> None:
        super().__init__(path, Caller)
        self.sink, self.turn = Sink(), threading.Lock()


class Caller(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        with self.server.turn:
            answer = self.server.sink.answer(request)
        if answer is not None:
            self.wfile.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    with Server(sys.argv[1]) as server:
        print("ready", flush=True)
        server.serve_forever()
