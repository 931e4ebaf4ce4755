"""The strict decoder, the encoders, the line splitter and the books of one peer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from row_support import pack
from websockets.sync.client import connect

from goclaw.core import errors, limits
from goclaw.protocol import jsonrpc
from goclaw.protocol.jsonrpc import Answer, Call, Cancel, LineSplitter, Peer, Send, decode
from goclaw.protocol.messages import (
    KINDS_OPTED_IN,
    KINDS_VANILLA,
    Batch,
    EventKind,
    Malformed,
    Notification,
    RemoteError,
    Request,
    Response,
    parse,
)
from goclaw.testing import answers

if TYPE_CHECKING:
    from collections.abc import Iterator

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "jsonrpc.json").read_bytes())


# -- decoder -----------------------------------------------------------------------------------

ACCEPTED: list[tuple[str, Any]] = [
    ("null", None),
    (" [ ] ", []),
    ('{"a":1,"b":{"a":1}}', {"a": 1, "b": {"a": 1}}),
    ('[{"a":1},{"a":2}]', [{"a": 1}, {"a": 2}]),
    ('{"":1,"\\u0000":2}', {"": 1, "\0": 2}),
    ('"\\ud83d\\ude00 \\/ \\u0041"', "\U0001f600 / A"),
    ("18446744073709551615", 2**64 - 1),
    ("18446744073709551616", 2**64),
    ("-9223372036854775809", -(2**63) - 1),
    ("9" * 300, int("9" * 300)),
    ("[0.1,-0,1e2,5e-324]", [0.1, 0, 100.0, 5e-324]),
    ("1e-999", 0.0),
    ("[" * 256 + "]" * 256, None),
    ('{"k":' * 255 + "[1]" + "}" * 255, None),
]

REFUSED: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("space", b" \n"),
    ("byte order mark", b"\xef\xbb\xbf{}"),
    ("UTF-16", '{"a":1}'.encode("utf-16-le")),
    ("overlong UTF-8", b'"\xc0\xaf"'),
    ("a surrogate in UTF-8", b'"\xed\xa0\x80"'),
    ("beyond Unicode", b'"\xf4\x90\x80\x80"'),
    ("cut UTF-8", b'"\xe2\x82"'),
    ("high surrogate alone", b'"\\ud800"'),
    ("low surrogate alone", b'"\\udfff"'),
    ("surrogates in the wrong order", b'"\\ude00\\ud83d"'),
    ("a surrogate as key", b'{"\\ud800":1}'),
    ("NaN", b"NaN"),
    ("minus infinity", b"[-Infinity]"),
    ("overflow", b"1e999"),
    ("negative overflow", b"[-1e309]"),
    ("an integer beyond any float", b"9" * 400),
    ("a number of 401 characters", b"0." + b"1" * 399),
    ("a long exponent", b"1e-" + b"0" * 398 + b"1"),
    ("leading zero", b"[01]"),
    ("hex", b"0x10"),
    ("plus", b"+1"),
    ("a bare control character", b'"\x01"'),
    ("a NUL after the text", b"{}\x00"),
    ("single quotes", b"{'a':1}"),
    ("a key twice", b'{"a":1,"a":1}'),
    ("a key twice, with space", b'{"a": 1, "a": 1}'),
    ("a key twice beside a shrinking number", b'{"a":1e5,"b":1,"b":1}'),
    ("a key twice in another spelling", b'{"a":1,"\\u0061":1}'),
    ("a key twice, deep", b'[[{"x":[{"k":0,"l":1,"k":2}]}]]'),
    ("a null key twice", b'{"":null,"":null}'),
    ("257 lists", b"[" * 257 + b"]" * 257),
    ("257 lists with a fraction", b"[0.5," + b"[" * 256 + b"]" * 257),
    ("257 objects", b'{"k":' * 256 + b"{}" + b"}" * 256),
    ("1,023 lists with a fraction", b"[" * 1023 + b"0.5" + b"]" * 1023),
    ("a million lists", b"[" * 1_000_000),
    ("a million objects", b'{"":' * 1_000_000),
]


@pytest.mark.req("W-1")
@pytest.mark.parametrize(("text", "value"), ACCEPTED, ids=range(len(ACCEPTED)))
def test_decoder_accepts(text: str, value: Any) -> None:
    got = decode(text.encode())
    assert repr(got) == repr(value if value is not None else json.loads(text))


@pytest.mark.req("W-1", "A-14")
@pytest.mark.parametrize("data", [data for _, data in REFUSED], ids=[name for name, _ in REFUSED])
def test_decoder_refuses(data: bytes) -> None:
    with pytest.raises(errors.ParseError) as caught:
        decode(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.req("W-1")
def test_decoder_names_the_key_that_stands_twice() -> None:
    with pytest.raises(errors.ParseError, match="'same' stands twice"):
        decode(b'{"other":1,"same":1,"same":2}')
    with pytest.raises(errors.ParseError) as caught:
        decode(b'{"%b":1,"%b":2}' % (b"k" * 10_000, b"k" * 10_000))
    assert len(str(caught.value)) < 200


@pytest.mark.req("W-1", "I-5")
def test_decoder_bounds_the_size_of_a_message() -> None:
    room = limits.FRAME_BYTES_MAX - 2
    assert decode(b'"' + b"x" * room + b'"') == "x" * room
    with pytest.raises(errors.TooLarge) as caught:
        decode(b'"' + b"x" * (room + 1) + b'"')
    assert caught.value.data == {"limit": limits.FRAME_BYTES_MAX, "unit": "bytes"}


@pytest.mark.req("W-1")
def test_a_prompt_of_3_mb_is_one_message() -> None:
    text = 'if (x[1]) { say("ü: \\n"); } // [{"\n' * 90_000
    data = json.dumps({"prompt": [{"type": "text", "text": text}]}, ensure_ascii=False).encode()
    assert len(data) > 3_000_000
    assert decode(data) == {"prompt": [{"type": "text", "text": text}]}


@pytest.mark.req("W-1", "I-5")
def test_the_deepest_text_the_parser_follows_needs_little_stack() -> None:
    """orjson judges its own depth (1,024) before ours is judged: a small thread survives it."""
    outcome: list[object] = []

    def run() -> None:
        for text in (b"[" * 1024 + b"]" * 1024, b'{"k":' * 1023 + b"1" + b"}" * 1023):
            try:
                outcome.append(decode(text))
            except errors.ParseError as error:
                outcome.append(type(error))

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert outcome == [errors.ParseError, errors.ParseError]


# -- what a value is ---------------------------------------------------------------------------


@pytest.mark.req("W-1")
def test_parse_tells_messages_apart() -> None:
    v2 = {"jsonrpc": "2.0"}
    assert parse({**v2, "id": 1, "method": "m", "params": {}}) == Request(1, "m", {})
    assert parse({**v2, "id": None, "method": "m"}) == Request(None, "m", None)
    assert parse({**v2, "method": "m", "params": None}) == Notification("m", None)
    assert parse({**v2, "id": 1, "result": None}) == Response(1)
    assert parse({**v2, "id": 1, "result": 5, "error": None}) == Response(1, 5)
    assert parse([{**v2, "method": "m"}]) == Batch((Notification("m", None),))
    failed = parse({**v2, "id": 1, "error": {"code": -3, "message": "no", "data": [1]}})
    assert failed == Response(1, error=RemoteError(-3, "no", [1]))
    assert parse({**v2, "id": 1, "method": "m", "result": 1}) == Request(1, "m", None)


@pytest.mark.req("W-1")
@pytest.mark.parametrize(
    "broken",
    [
        {"id": 1, "result": 1},
        {"jsonrpc": "2.0", "id": 1, "error": None},
        {"jsonrpc": "2.0", "id": 1, "error": "no"},
        {"jsonrpc": "2.0", "id": 1, "error": {}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1.5, "message": ""}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": True, "message": ""}},
        {"jsonrpc": "2.0", "id": 1, "result": 1, "error": {"code": 1, "message": ""}},
    ],
)
def test_a_broken_answer_fails_its_request(broken: object) -> None:
    answer = parse(broken)
    assert isinstance(answer, Response)
    assert answer.error is not None
    assert answer.error.code == -32600


@pytest.mark.req("W-1")
def test_an_error_without_text_is_still_an_error() -> None:
    answer = parse({"jsonrpc": "2.0", "id": 1, "error": {"code": 7, "message": None}})
    assert answer == Response(1, error=RemoteError(7, ""))


@pytest.mark.req("W-1", "I-5")
def test_a_batch_is_bounded() -> None:
    assert isinstance(parse([1] * limits.BATCH_MESSAGES_MAX), Batch)
    refused = parse([1] * (limits.BATCH_MESSAGES_MAX + 1))
    assert isinstance(refused, Malformed)
    assert refused.id is None


@pytest.mark.req("W-5")
def test_errors_of_a_peer_become_ours() -> None:
    def exception(code: int, data: object = None) -> errors.GoclawError:
        return RemoteError(code, "text", data).exception()

    full = exception(-31004, {"name": "queue_full", "hint": "Wait.", "limit": 5})
    assert (type(full), full.hint, full.data) == (errors.QueueFull, "Wait.", {"limit": 5})
    assert type(exception(-31004)) is errors.QueueFull
    assert type(exception(-32603, {"name": "storage_failed"})) is errors.StorageFailed
    assert type(exception(-32602, {"name": "queue_full"})) is errors.InvalidParams
    assert type(exception(-32602, {"name": 5, "hint": 6})) is errors.InvalidParams
    assert type(exception(12345, "text")) is errors.GoclawError
    assert exception(-31001, {"message": 1, "self": 2}).data == {"message": 1, "self": 2}


# -- encoders ----------------------------------------------------------------------------------


@pytest.mark.req("W-1")
def test_encoders_write_one_line() -> None:
    assert jsonrpc.encode_request(1, "m") == b'{"jsonrpc":"2.0","id":1,"method":"m"}'
    assert (
        jsonrpc.encode_request("a", "m", [1])
        == b'{"jsonrpc":"2.0","id":"a","method":"m","params":[1]}'
    )
    assert (
        jsonrpc.encode_notification("n", {"a": "\n"})
        == b'{"jsonrpc":"2.0","method":"n","params":{"a":"\\n"}}'
    )
    assert jsonrpc.encode_notification("n") == b'{"jsonrpc":"2.0","method":"n"}'
    assert jsonrpc.encode_result(None, None) == b'{"jsonrpc":"2.0","id":null,"result":null}'


@pytest.mark.req("W-1")
def test_encoders_never_fail_on_what_was_decoded() -> None:
    big = 2**80
    assert json.loads(jsonrpc.encode_result(big, [big])) == {
        "jsonrpc": "2.0",
        "id": big,
        "result": [big],
    }
    deep: Any = 1
    for _ in range(limits.JSON_DEPTH_MAX):
        deep = [deep]
    assert json.loads(jsonrpc.encode(deep)) == deep
    # A file name that is not UTF-8 must not break the line it is reported in.
    assert jsonrpc.encode({"path": "a\udcff"}) == b'{"path":"a?"}'


@pytest.mark.req("W-5")
def test_an_error_carries_code_name_details_and_hint() -> None:
    error = errors.QueueFull("The queue\n is  full.", hint="Wait.", queued=5, limit=5)
    assert json.loads(jsonrpc.encode_error(3, error)) == {
        "jsonrpc": "2.0",
        "id": 3,
        "error": {
            "code": -31004,
            "message": "The queue is full.",
            "data": {"name": "queue_full", "queued": 5, "limit": 5, "hint": "Wait."},
        },
    }
    assert jsonrpc.error_object(errors.InternalError("x"))["data"] == {"name": "internal_error"}


@pytest.mark.req("W-5")
def test_an_unknown_method_is_named_shortly_and_never_with_the_words_of_a_lost_session() -> None:
    error = jsonrpc.method_unknown("m\n" * 40_000)
    assert len(str(error)) < 200
    assert "\n" not in str(error)
    assert "not found" not in str(error)


# -- frames ------------------------------------------------------------------------------------


@pytest.mark.req("W-3")
def test_a_page_of_the_store_is_the_live_frames_again() -> None:
    live = [
        jsonrpc.event_frame(
            session="ses_1",
            kind=EventKind(number % 3),
            event_id=number,
            event_type="task.queued",
            at_ms=1_000 + number,
            run_id="run_1",
            task_id="",
            attempt=0,
            trace="",
            payload=b'{"a":1}',
        )
        for number in range(1, 10)
    ]
    rows = [
        (number, number % 3, "task.queued", 1_000 + number, "run_1", None, 0, None, b'{"a":1}')
        for number in range(1, 10)
    ]
    page = jsonrpc.packed_frames("ses_1", pack(rows), mask=KINDS_OPTED_IN, lines=False)
    assert page == b"".join(live)
    found = jsonrpc.packed_frames("ses_1", pack(rows), mask=KINDS_VANILLA, lines=True)
    lines = found.splitlines()
    ids = [json.loads(line)["params"]["_meta"]["goclaw"]["eventId"] for line in lines]
    assert ids == [3, 6, 9]
    assert jsonrpc.text_frame(b"{}") == b"\x81\x02{}"


# -- lines -------------------------------------------------------------------------------------


@pytest.mark.req("W-1")
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_lines_come_out_whole_however_they_arrive(step: int) -> None:
    stream = b'{"a":1}\n\n \r\n{"b":\r2}\r\n{"c":3}\nrest'
    splitter = LineSplitter()
    lines = []
    for at in range(0, len(stream), step):
        lines += splitter.feed(stream[at : at + step])
    assert lines == [b'{"a":1}', b'{"b":\r2}\r', b'{"c":3}']
    assert splitter.feed(b" of it\n") == [b"rest of it"]


@pytest.mark.req("W-1", "I-5")
def test_a_line_over_the_bound_is_refused_and_the_next_one_heard() -> None:
    splitter = LineSplitter()
    piece = b"x" * 1_000_000
    for _ in range(20):
        assert splitter.feed(piece) == []
    cut, following = splitter.feed(b'"\n{"id":1}\n')
    assert len(cut) == limits.FRAME_BYTES_MAX + 1
    with pytest.raises(errors.TooLarge):
        decode(cut)
    assert following == b'{"id":1}'


# -- the peer ----------------------------------------------------------------------------------


def request(number: int | str | None, method: str = "m", **params: object) -> bytes:
    return jsonrpc.encode_request(number, method, params)


def sent(incoming: list[jsonrpc.Incoming]) -> Any:
    """The JSON of the only thing that came back."""
    (only,) = incoming
    assert isinstance(only, Send)
    return json.loads(only.data)


def call(incoming: list[jsonrpc.Incoming]) -> Call:
    (only,) = incoming
    assert isinstance(only, Call)
    return only


def fits(expected: dict[str, Any], got: Any) -> bool:
    if got.get("jsonrpc") != "2.0" or repr(got["id"]) != repr(expected["id"]):
        return False
    if "error" in expected:
        return "result" not in got and got["error"]["code"] == expected["error"]
    return "error" not in got and got["result"] == expected["result"]


def check_vector(expected: Any, out: list[bytes]) -> None:
    if expected is None:
        assert out == []
        return
    (line,) = out
    assert b"\n" not in line
    got = json.loads(line)
    if isinstance(expected, dict):
        assert fits(expected, got)
        return
    assert len(got) == len(expected)
    for item in expected:
        found = next(index for index, answer in enumerate(got) if fits(item, answer))
        del got[found]


@pytest.mark.req("W-1", "W-5")
@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_vector(vector: dict[str, Any]) -> None:
    check_vector(vector["answer"], answers(Peer(batches=True), vector["send"].encode()))


@pytest.mark.req("W-1")
def test_the_stub_answers_over_stdio() -> None:
    """One process, all vectors in a row: no bad line ends the connection."""
    ping = '{"jsonrpc":"2.0","id":"ping","method":"get_data"}'
    spoken = [vector for vector in VECTORS if vector["send"].strip()]  # a blank line is skipped
    stream = "".join(f"{vector['send']}\n{ping}\n" for vector in spoken)
    done = subprocess.run(
        [sys.executable, "-m", "goclaw.testing", "rpc-stub", "--stdio"],
        input=stream.encode(),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    groups: list[list[bytes]] = [[]]
    for line in done.stdout.splitlines():
        if line == b'{"jsonrpc":"2.0","id":"ping","result":["hello",5]}':
            groups.append([])
        else:
            groups[-1].append(line)
    assert groups.pop() == []
    assert len(groups) == len(spoken)
    for vector, out in zip(spoken, groups, strict=True):
        check_vector(vector["answer"], out)


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of ``goclaw.testing`` running in its own process."""
    command = [sys.executable, "-m", "goclaw.testing", request.param, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready, _, url = process.stdout.readline().strip().partition(" ")
        assert ready == "ready"
        yield url
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.req("W-1")
@pytest.mark.parametrize("served", ["rpc-stub"], indirect=True)
def test_the_stub_answers_over_websocket(served: str) -> None:
    with connect(served, max_size=None) as socket:
        for vector in VECTORS:
            socket.send(vector["send"])
            socket.send('{"jsonrpc":"2.0","id":"ping","method":"get_data"}')
            out = []
            while b'"ping"' not in (data := socket.recv(decode=False)):
                out.append(data)
            check_vector(vector["answer"], out)


@pytest.mark.req("W-1")
@pytest.mark.parametrize("served", ["ws-echo"], indirect=True)
def test_the_echo_sends_back_text_bytes_and_fragments(served: str) -> None:
    with connect(served, max_size=None) as socket:
        for message in ("text \u00fc", b"\x00\xff", "x" * (limits.FRAME_BYTES_MAX + 1)):
            socket.send(message)
            assert socket.recv() == message
        socket.send(["two ", "parts"])
        assert socket.recv() == "two parts"
    url = urllib.parse.urlsplit(served)
    again = subprocess.run(
        [sys.executable, "-m", "goclaw.testing", "ws-echo", "--port", str(url.port)],
        capture_output=True,
        check=False,
    )
    assert again.returncode == errors.ListenerFailed.exit
    assert again.stderr.count(b"\n") == 1


@pytest.mark.req("W-1")
def test_an_array_on_an_acp_connection_gets_one_refusal() -> None:
    peer = Peer()
    answer = sent(peer.receive(b"[" + request(1) + b"," + request(2) + b"]"))
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)
    assert peer.calls == frozenset()
    assert call(peer.receive(request(1))).request.id == 1


@pytest.mark.req("W-1")
def test_each_request_is_answered_exactly_once() -> None:
    peer = Peer()
    first = call(peer.receive(request(1)))
    assert peer.result(first, {}) == b'{"jsonrpc":"2.0","id":1,"result":{}}'
    with pytest.raises(errors.InternalError):
        peer.error(first, errors.InternalError("late"))
    again = call(peer.receive(request(1)))  # an answered id may be used again
    assert again is not first
    failed = peer.error(again, errors.RequestCancelled("Cancelled."))
    assert failed is not None
    assert json.loads(failed)["error"]["code"] == -32800


@pytest.mark.req("W-1")
def test_an_open_id_is_not_taken_twice() -> None:
    peer = Peer()
    number, text = call(peer.receive(request(1))), call(peer.receive(request("1")))
    answer = sent(peer.receive(request(1)))
    assert answer["id"] is None  # under its id the first request would be taken for refused
    assert answer["error"]["data"]["requestId"] == 1
    assert peer.calls == {number, text}
    null = [call(peer.receive(request(None))) for _ in range(2)]
    assert len(peer.calls) == 4
    for one in null:
        peer.result(one, None)
    assert peer.calls == {number, text}


@pytest.mark.req("W-1", "I-5")
def test_open_requests_are_bounded_in_both_directions() -> None:
    peer = Peer()
    calls = [call(peer.receive(request(number))) for number in range(limits.REQUESTS_MAX)]
    answer = sent(peer.receive(request("one more")))
    assert (answer["id"], answer["error"]["code"]) == ("one more", -31012)
    assert answer["error"]["data"]["retryAfterMs"] > 0
    peer.result(calls[7], 1)
    assert call(peer.receive(request("one more"))).request.id == "one more"

    for _ in range(limits.REQUESTS_MAX):
        peer.request("session/request_permission")
    with pytest.raises(errors.RateLimited):
        peer.request("session/request_permission")
    peer.forget(1)
    peer.request("session/request_permission")


@pytest.mark.req("W-1", "W-7")
def test_cancel_finds_the_open_request_and_still_owes_its_answer() -> None:
    peer = Peer()
    first = call(peer.receive(request("p")))
    cancel = jsonrpc.encode_notification("$/cancel_request", {"requestId": "p"})
    assert peer.receive(cancel) == [Cancel(first)]
    assert peer.receive(cancel) == [Cancel(first)]
    assert peer.error(first, errors.RequestCancelled("Cancelled.")) is not None
    assert peer.receive(cancel) == []
    for params in (None, [], ["p"], {}, {"requestId": None}, {"requestId": [1]}):
        assert peer.receive(jsonrpc.encode_notification("$/cancel_request", params)) == []


@pytest.mark.req("W-1")
def test_answers_find_their_request_and_strays_nobody() -> None:
    peer = Peer()
    first, data = peer.request("session/request_permission", {"options": []})
    second, _ = peer.request("fs/read_text_file")
    assert json.loads(data) == {
        "jsonrpc": "2.0",
        "id": first,
        "method": "session/request_permission",
        "params": {"options": []},
    }
    assert peer.outstanding == {first: "session/request_permission", second: "fs/read_text_file"}
    assert json.loads(peer.cancel(first)) == {
        "jsonrpc": "2.0",
        "method": "$/cancel_request",
        "params": {"requestId": first},
    }
    answer = jsonrpc.encode_result(first, {"outcome": "cancelled"})
    assert peer.receive(answer) == [
        Answer(first, "session/request_permission", Response(first, {"outcome": "cancelled"}))
    ]
    assert peer.receive(answer) == []
    assert peer.receive(jsonrpc.encode_result(str(second), 1)) == []
    assert peer.receive(jsonrpc.encode_result(None, 1)) == []
    peer.forget(second)
    peer.forget(second)
    assert peer.receive(jsonrpc.encode_result(second, 1)) == []


@pytest.mark.req("W-1")
def test_the_answers_of_a_batch_travel_together() -> None:
    peer = Peer(batches=True)
    parts = [request(1), b"5", request(2), jsonrpc.encode_notification("n")]
    first, second, note = peer.receive(b"[" + b",".join(parts) + b"]")
    assert note == Notification("n", None)
    assert isinstance(first, Call)
    assert isinstance(second, Call)
    assert peer.result(second, "b") is None
    whole = peer.result(first, "a")
    assert whole is not None
    assert [item["id"] for item in json.loads(whole)] == [None, 2, 1]


@pytest.mark.req("W-1")
def test_what_cannot_be_read_is_answered_under_null() -> None:
    peer = Peer()
    assert sent(peer.receive(b"{"))["error"]["code"] == -32700
    assert sent(peer.receive(b" " * (limits.FRAME_BYTES_MAX + 1)))["error"]["code"] == -31017
    assert sent(peer.receive(b"5"))["error"]["code"] == -32600
