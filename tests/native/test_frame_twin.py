"""frame: the native module and its twin write the same bytes, and those bytes are right."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_support import pack
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from goclaw._pure import frame as pure

native: Any = pytest.importorskip(
    "goclaw._fast.frame", reason="the native modules are not built", exc_type=ImportError
)
TWINS = pytest.mark.parametrize("twin", [native, pure], ids=["native", "pure"])

EVENT: dict[str, Any] = {
    "session": b"ses_1",
    "kind": 0,
    "event_id": 41,
    "type": b"update",
    "at_ms": 1_700_000_000_000,
    "run_id": b"run_1",
    "task_id": b"tsk_1",
    "attempt": 1,
    "trace": b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "payload": b'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"hi"}}',
}

IDS = ("session", "type", "run_id", "task_id", "trace")
FORBIDDEN = (0, 0x1F, 0x22, 0x5C, 0x7F, 0x80, 0xFF)

plain = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\'))
name = st.one_of(plain, st.just(""), st.text(max_size=40))  # mostly good, also forbidden ones
number = st.one_of(st.integers(-1, 200), st.integers(-(2**63), 2**63 - 1))
payload = st.one_of(
    st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=3).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode()
    ),
    st.sampled_from([b"", b"{", b"}", b"{}", b"{ \t\r}", b"{\n}", b"[]", b'{"a":1} ', b' {"a":1}']),
    st.integers(60_000, 70_000).map(lambda size: b'{"long":"%b"}' % (b"x" * size)),
)
row = st.tuples(
    number, st.integers(-1, 4), name, number, st.none() | name, st.none() | name, number,
    st.none() | name, payload,
)  # fmt: skip
good_row = st.tuples(
    st.integers(1, 2**62), st.integers(0, 2), plain, st.integers(0, 2**62), st.none() | plain,
    st.none() | plain, st.integers(0, 9), st.none() | plain, st.sampled_from([b"{}", b'{"a":1}']),
)  # fmt: skip


def outcome(function: Any, *arguments: Any) -> Any:
    """The result, or the class of the refusal."""
    try:
        return function(*arguments)
    except ValueError as error:
        return type(error)


def arguments(values: tuple[Any, ...], session: bytes) -> list[Any]:
    """``event``'s arguments for a row."""
    event_id, kind, event_type, at_ms, run_id, task_id, attempt, trace, data = values
    texts = [(text or "").encode() for text in (event_type, run_id, task_id, trace)]
    return [session, kind, event_id, texts[0], at_ms, texts[1], texts[2], attempt, texts[3], data]


@pytest.mark.req("W-3")
@given(values=row, session=st.sampled_from([b"ses_1", b"", b'"', b"\xff", b"s" * 300]))
def test_event_of_both_twins_is_equal(values: tuple[Any, ...], session: bytes) -> None:
    given_to_both = arguments(values, session)
    assert outcome(native.event, *given_to_both) == outcome(pure.event, *given_to_both)


@pytest.mark.req("W-3", "P-2")
@given(
    rows=st.lists(row, max_size=6),
    session=st.sampled_from([b"ses_1", b"\\"]),
    mask=st.integers(0, 31),
    lines=st.booleans(),
)
def test_packed_of_both_twins_is_equal(
    rows: list[tuple[Any, ...]], session: bytes, mask: int, lines: bool
) -> None:
    data = pack(rows)
    found = outcome(native.packed, session, data, mask, lines)
    assert found == outcome(pure.packed, session, data, mask, lines)
    if not lines and isinstance(found, bytes):
        kept = [row for row in rows if mask >> row[1] & 1]
        assert found == b"".join(pure.event(*arguments(row, session)) for row in kept)


@TWINS
@pytest.mark.req("W-3")
@given(
    values=st.tuples(
        st.integers(1, 2**63 - 1), st.integers(0, 2), plain, st.integers(0, 2**63 - 1),
        st.none() | plain, st.none() | plain, st.integers(0, 9), st.none() | plain,
        st.dictionaries(st.text(max_size=5), st.text(max_size=200), max_size=3),
    )
)  # fmt: skip
def test_an_event_reads_back_as_what_was_put_in(twin: Any, values: tuple[Any, ...]) -> None:
    event_id, kind, event_type, at_ms, run_id, task_id, attempt, trace, members = values
    members = {f"m{key}": text for key, text in members.items()}
    data = json.dumps(members).encode()
    slot = twin.event(*arguments((*values[:8], data), b"ses_1"))
    frames = pure_frames(slot)
    assert len(frames) == 1
    assert frames[0].endswith(b"\n")
    assert frames[0].count(b"\n") == 1
    message = json.loads(frames[0])
    ids: dict[str, Any] = {"runId": run_id, "taskId": task_id, "attempt": attempt}
    ids = {key: value for key, value in ids.items() if value}
    meta: dict[str, Any] = {"goclaw": {"eventId": event_id, "at": at_ms, **ids}}
    if trace:
        meta["traceparent"] = trace
    params: dict[str, Any] = {"sessionId": "ses_1", "_meta": meta}
    if kind == 1:
        method, params["event"] = "_goclaw/session/event", {"type": event_type, **ids, **members}
    else:
        method, params["update"] = "session/update", members
    assert message == {"jsonrpc": "2.0", "method": method, "params": params}


@TWINS
@pytest.mark.req("W-3")
def test_the_wire_is_as_written_down(twin: Any) -> None:
    line = (
        b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"ses_1","update":'
        b'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"hi"}},"_meta":'
        b'{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","goclaw":'
        b'{"eventId":41,"at":1700000000000,"runId":"run_1","taskId":"tsk_1","attempt":1}}}}\n'
    )
    assert twin.event(**EVENT) == b"\x81\x7e" + len(line).to_bytes(2, "big") + line
    bare = {"run_id": b"", "task_id": b"", "attempt": 0, "trace": b"", "kind": 1, "payload": b"{}"}
    assert twin.event(**{**EVENT, **bare})[4:] == (
        b'{"jsonrpc":"2.0","method":"_goclaw/session/event","params":{"sessionId":"ses_1","event":'
        b'{"type":"update"},"_meta":{"goclaw":{"eventId":41,"at":1700000000000}}}}\n'
    )


@TWINS
@pytest.mark.req("W-3")
@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": 3},
        {"kind": -1},
        {"event_id": 0},
        {"at_ms": -1},
        {"attempt": -1},
        {"payload": b""},
        {"payload": b"[1]"},
        {"payload": b'{"a":1}x'},
        {"payload": b'{"a":\n1}'},  # would be two lines to a line client
        *({field: b"abcdefgh" + bytes([byte])} for field in IDS for byte in FORBIDDEN),
        *({field: bytes([byte]) + b"bcdefgh"} for field in IDS for byte in FORBIDDEN),
    ],
    ids=repr,
)
def test_what_would_break_the_wire_is_refused(twin: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|counts from"):
        twin.event(**{**EVENT, **wrong})


@TWINS
@pytest.mark.req("W-3")
def test_every_plain_byte_is_taken_at_every_place(twin: Any) -> None:
    for byte in set(range(0x20, 0x7F)) - {0x22, 0x5C}:
        for place in range(9):
            text = b"a" * place + bytes([byte]) + b"~" * (8 - place)
            assert text in twin.event(**{**EVENT, "session": text})
            assert twin.packed(text, b"", 7, True) == b""


@pytest.mark.req("W-3")
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_text_frames_have_the_shortest_header(size: int) -> None:
    data = b"x" * size
    framed = native.text(data)
    assert framed == pure.text(data)
    assert pure_frames(framed) == [data]


@TWINS
@pytest.mark.req("W-3")
def test_rows_that_are_no_rows_are_refused(twin: Any) -> None:
    good = (1, 0, "t", 0, None, None, 0, None, b"{}")
    assert twin.packed(b"s", pack([good, good]), 7, True).count(b"\n") == 2
    for at, value in ((0, 0), (1, 3), (1, -1), (2, '"'), (2, b"\xff"), (8, b"{"), (8, b"{\n}")):
        row = (*good[:at], value, *good[at + 1 :])
        with pytest.raises(ValueError, match=r"must|counts from"):
            twin.packed(b"s", pack([good, row]), 7, True)
    with pytest.raises(ValueError, match="printable ASCII"):
        twin.packed(b'"', b"", 7, True)


@pytest.mark.req("I-5")
def test_native_keeps_no_reference() -> None:
    values = list(EVENT.values())
    row = (1, 0, "type", 5, "run", "task", 1, "trace", b'{"a":%d}' % id(values))
    data, bad = pack([row, row]), pack([row, (*row[:8], b"{\n}")])
    session = b"s%d" % id(values)
    watched = [*values, session, data, bad]
    before = [sys.getrefcount(item) for item in watched]
    for _ in range(1_000):
        native.packed(session, data, 7, False)
        assert outcome(native.packed, session, bad, 7, False) is ValueError
        native.event(*values)
    assert [sys.getrefcount(item) for item in watched] == before


def pure_frames(stream: bytes) -> list[bytes]:
    """The payloads of a client's view of the stream, by the WebSocket library's own parser."""
    reader = StreamReader()
    reader.feed_data(stream)
    reader.feed_eof()
    payloads = []
    while not reader_at_end(reader):
        parser = Frame.parse(reader.read_exact, mask=False)
        try:
            next(parser)
        except StopIteration as done:
            frame: Frame = done.value
        else:
            raise AssertionError("the stream ends inside a frame")
        assert frame.fin
        assert frame.opcode is Opcode.TEXT
        payloads.append(bytes(frame.data))
    return payloads


def reader_at_end(reader: StreamReader) -> bool:
    return len(reader.buffer) == 0


def test_the_native_module_is_native() -> None:
    assert not native.__file__.endswith(".py")


@given(
    rows=st.lists(good_row, max_size=5),
    mask=st.integers(0, 7),
    lines=st.booleans(),
    cut=st.integers(1, 400),
)
def test_packed_rows_that_are_cut_are_refused_or_shorter(
    rows: list[tuple[Any, ...]], mask: int, lines: bool, cut: int
) -> None:
    data = pack(rows)
    whole = pure.packed(b"s", data, mask, lines)
    damaged = data[: max(0, len(data) - cut)]
    found = outcome(native.packed, b"s", damaged, mask, lines)
    assert found == outcome(pure.packed, b"s", damaged, mask, lines)
    assert found is ValueError or whole.startswith(found)
