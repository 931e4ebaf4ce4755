"""A client of the storm: one blocking line to a daemon that dies all the time, and its diary.

Owns the connection, the diary's form and the words of the sink. Not in here: what anybody does with
them (storm_cast.py), what is made of the diaries (storm_judge.py). It shares no code with goclaw:
what it sees is what any client would.

A diary is JSON lines: an edge when an operation is asked for (k = invoke) and one when its answer
is known (ok, fail), or known never to come (info). Times are CLOCK_MONOTONIC seconds.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

RETRY_S = 0.02


class Lost(Exception):
    """The connection died before the answer: nobody knows whether it was done."""


class Refused(Exception):
    """The daemon answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code: int = error["code"]


class Diary:
    """One writer's file of edges; each line is on its way to the file before the call goes on."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._fd = os.open(folder / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._ids = itertools.count(1)

    def edge(self, k: str, op: str, number: int, at: float | None = None, **fields: Any) -> None:
        line = {
            "id": f"{self.name}.{number}", "t": at or time.monotonic(), "p": self.name, "k": k,
            "op": op, **fields,
        }  # fmt: skip
        os.write(self._fd, json.dumps(line).encode() + b"\n")

    def begin(self, op: str, at: float | None = None, **fields: Any) -> int:
        number = next(self._ids)
        self.edge("invoke", op, number, at, **fields)
        return number

    def fact(self, op: str, **fields: Any) -> None:
        """Something that is simply so, at one moment."""
        self.edge("ok", op, next(self._ids), **fields)


class Peer:
    """A connection to whichever daemon holds the home now. Every call may raise Lost."""

    def __init__(self, home: Path, name: str, *, receive_bytes: int | None = None) -> None:
        self.home, self.name, self.receive_bytes = home, name, receive_bytes
        self.boot_id = ""
        self.notes: list[dict[str, Any]] = []
        """Notifications that came meanwhile."""
        self._socket: socket.socket | None = None
        self._rest = b""
        self._ids = itertools.count(1)

    def connect(self, until: float) -> None:
        """Try until there is a daemon that shakes hands; Lost at ``until``."""
        while True:
            self.close()
            try:
                record = json.loads((self.home / "run" / "daemon.json").read_text())
                self._open(record["socket"])
                self.boot_id = record["bootId"]
                self.call(
                    "initialize",
                    {
                        "protocolVersion": 1,
                        "clientCapabilities": {
                            "_meta": {
                                "goclaw": {
                                    "version": 1, "notifications": True, "clientId": self.name,
                                }
                            }
                        },
                    },
                )  # fmt: skip
            except (OSError, ValueError, KeyError, Lost, Refused):
                if time.monotonic() >= until:
                    raise Lost("no daemon") from None
                time.sleep(RETRY_S)
            else:
                return

    def _open(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        if self.receive_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_bytes)
        self._socket.settimeout(30)
        self._socket.connect(path)

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The result; Refused, or Lost."""
        number = next(self._ids)
        self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        while True:
            message = self.receive()
            if message.get("id") == number and "method" not in message:
                if "error" in message:
                    raise Refused(message["error"])
                return dict(message["result"])
            if "id" not in message:
                self.notes.append(message)

    def _send(self, message: dict[str, Any]) -> None:
        if self._socket is None:
            raise Lost("not connected")
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            self.close()
            raise Lost(str(error)) from error

    def receive(self, timeout: float = 30) -> dict[str, Any]:
        """The next message; Lost. TimeoutError after ``timeout`` without one."""
        while b"\n" not in self._rest:
            if self._socket is None:
                raise Lost("not connected")
            self._socket.settimeout(timeout)
            try:
                data = self._socket.recv(65_536)
            except TimeoutError:
                raise
            except OSError as error:
                self.close()
                raise Lost(str(error)) from error
            if not data:
                self.close()
                raise Lost("closed")
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""
        self.notes.clear()  # what was not read comes again, from the cursor


def act(sink: Path, **fields: Any) -> None:
    """The side effect: the sink has written it down when this returns."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(sink))
        connection.sendall(json.dumps(fields).encode() + b"\n")
        assert connection.recv(1) == b"."
