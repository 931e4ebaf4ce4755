"""The outside world of the effect tests: a process that counts what is done to it, by key.

Owns the counts, which no kill of the engine's process touches. Not in here: the tools that call
it (effects_support.py). One JSON line in, one JSON line out, per connection.
"""

from __future__ import annotations

import asyncio
import json
import sys
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

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self.answer(json.loads(await reader.readline()))
        if answer is not None:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


async def main(path: str) -> None:
    server = await asyncio.start_unix_server(Sink().serve, path)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
