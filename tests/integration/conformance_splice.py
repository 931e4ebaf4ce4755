"""A bridge that is wrong on purpose, as a program: lines between its pipes and a socket.

    python conformance_splice.py SOCKET LIE

Owns the lies about W-13 that the kit must notice; that it ends with its server is one, too. Not in
here: the kit, the lies that a server tells (``conformance_liar.py``).
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys

__all__ = ["LIES"]

LIES = {
    "banner": "holds nothing but messages",
    "exit code": "leaves with 0",
    "stays": "leaves with 0",
    "takes the turn along": "the turn goes on",
    "no file": "holds nothing but messages",
    "short lines": "3 MB",
    "ends": "the death of its server",
}
"""Each lie, and words of the promise that it breaks."""

_LINE_BYTES_MAX = 64 << 10


def main(path: str, lie: str) -> int:
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    if lie == "banner":
        os.write(1, b"splice 1.0\n")
    if lie == "no file" and stat.S_ISREG(os.fstat(1).st_mode):
        return 1
    length = 0
    while True:
        ready = select.select([0, server.fileno()], [], [])[0]
        if server.fileno() in ready:
            try:
                data = server.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return 1
            while data:
                data = data[os.write(1, data) :]
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return ended(server, lie)
            length = len(data) - 1 - data.rfind(b"\n") if b"\n" in data else length + len(data)
            if lie == "short lines" and length > _LINE_BYTES_MAX:
                return 1
            server.sendall(data)


def ended(server: socket.socket, lie: str) -> int:
    if lie == "takes the turn along":
        server.sendall(b'{"jsonrpc":"2.0","id":"end","method":"_goclaw/task/list"}\n')
        answer = b""
        while b'"id":"end"' not in answer:
            answer += server.recv(1 << 16)
        for part in answer.split(b'"taskId":"')[1:]:
            task = part.partition(b'"')[0].decode()
            server.sendall(
                b'{"jsonrpc":"2.0","id":"cut","method":"_goclaw/task/cancel",'
                b'"params":{"taskId":"%s"}}\n' % task.encode()
            )
        answer = b""
        while b'"id":"cut"' not in answer:
            answer += server.recv(1 << 16)
    if lie == "stays":
        select.select([server], [], [])
        while server.recv(1 << 16):
            pass
    return 1 if lie == "exit code" else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
