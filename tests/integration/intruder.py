"""A program that somebody's tool might be: it says to a daemon whatever it is given, and prints
what comes back. Started by test_wire_listeners.py; needs nothing but Python.

Usage: intruder.py [--orphan]; standard input: a JSON object {"socket", "messages"} or {"port",
"token", "path"?}; prints a JSON list of answers, or the status of the upgrade.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any


def over_socket(path: str, messages: list[dict[str, Any]]) -> list[Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(path)
        lines = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
        connection.sendall(lines)
        found: list[Any] = []
        with connection.makefile("rb") as file:
            while len(found) < sum("id" in message for message in messages):
                line = file.readline()
                if not line:
                    break
                found.append(json.loads(line))
        return found


def over_port(port: int, token: str, path: str = "/ws") -> int:
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Authorization: Bearer {token}\r\n\r\n".encode()
        )
        return int(connection.recv(1024).split()[1])


def main() -> None:
    task = json.load(sys.stdin)
    if "--orphan" in sys.argv:
        parent = os.getpid()
        read, write = os.pipe()
        if os.fork():
            os._exit(0)  # the child is nobody's, or the daemon's
        os.setsid()
        os.close(write)
        os.read(read, 1)  # the parent's end; a moment later the child is handed on
        while os.getppid() == parent:
            os.sched_yield()
    if "socket" in task:
        found: Any = over_socket(task["socket"], task["messages"])
    else:
        found = over_port(**task)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
