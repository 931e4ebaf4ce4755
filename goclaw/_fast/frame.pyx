# cython: language_level=3, boundscheck=False, wraparound=False
"""Wire bytes of session events: a WebSocket header and a notification around a finished payload.

Owns the layout of a slot, as its twin says it. Not in here: what the payload says, who gets it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, strlen

__all__ = ["event", "packed", "text"]

cdef extern from *:
    """
    #define EVERY_BYTE 0x0101010101010101ULL
    """
    const uint64_t EVERY_BYTE

cdef enum:
    KIND_GOCLAW = 1
    KIND_LAST = 2
    HEADER_BYTES_MAX = 10

cdef struct Text:
    const char *data
    Py_ssize_t size

cdef struct Number:
    char digits[20]
    int first  # digits are written from the end

cdef struct Event:
    int kind
    Number event_id
    Number at_ms
    Number attempt
    Text session
    Text name
    Text run_id
    Text task_id
    Text trace
    Text payload
    Py_ssize_t line_bytes  # JSON and LF


def event(
    bytes session not None,
    int kind,
    long long event_id,
    bytes type not None,
    long long at_ms,
    bytes run_id not None,
    bytes task_id not None,
    long long attempt,
    bytes trace not None,
    bytes payload not None,
):
    cdef Event one
    one.kind = kind
    one.session = of_bytes(session)
    one.name = of_bytes(type)
    one.run_id = of_bytes(run_id)
    one.task_id = of_bytes(task_id)
    one.trace = of_bytes(trace)
    one.payload = of_bytes(payload)
    check_plain(one.session)
    prepare(&one, event_id, at_ms, attempt)
    cdef bytes slot = PyBytes_FromStringAndSize(NULL, slot_bytes(one.line_bytes))
    write_slot(PyBytes_AS_STRING(slot), &one)
    return slot


cdef struct PackedRow:  # as writer.pyx packs it; the texts follow: type, run, task, trace, payload
    long long event_id
    long long at_ms
    long long attempt
    long long kind
    int sizes[5]
    int padding


def packed(bytes session not None, bytes rows not None, long mask, bint lines):
    cdef const char *data = PyBytes_AS_STRING(rows)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(rows)
    cdef Py_ssize_t at = 0, count = 0, total = 0, number
    cdef Event *events = <Event *>malloc((size // <Py_ssize_t>sizeof(PackedRow) or 1) * sizeof(Event))
    cdef Event *one
    cdef PackedRow row
    cdef Text fields[5]
    cdef int i
    cdef char *out
    cdef bytes joined
    if events == NULL:
        raise MemoryError
    try:
        check_plain(of_bytes(session))
        while at < size:
            if size - at < <Py_ssize_t>sizeof(PackedRow):
                raise ValueError("packed rows are cut")
            memcpy(&row, data + at, sizeof(PackedRow))
            at += sizeof(PackedRow)
            for i in range(5):
                if not 0 <= row.sizes[i] <= size - at:
                    raise ValueError("packed rows are cut")
                fields[i] = Text(data + at, row.sizes[i])
                at += row.sizes[i]
            if not 0 <= row.kind <= KIND_LAST:
                raise ValueError("kind must be 0, 1 or 2")
            if not mask >> row.kind & 1:
                continue
            one = &events[count]
            one.kind = <int>row.kind
            one.session = of_bytes(session)
            one.name, one.run_id, one.task_id, one.trace = fields[0], fields[1], fields[2], fields[3]
            one.payload = fields[4]
            prepare(one, row.event_id, row.at_ms, row.attempt)
            total += one.line_bytes if lines else slot_bytes(one.line_bytes)
            count += 1
        joined = PyBytes_FromStringAndSize(NULL, total)
        out = PyBytes_AS_STRING(joined)
        for number in range(count):
            if lines:
                out += render(out, &events[number])
            else:
                out += write_slot(out, &events[number])
        return joined
    finally:
        free(events)


def text(bytes payload not None):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
    cdef bytes framed = PyBytes_FromStringAndSize(NULL, slot_bytes(size))
    cdef char *out = PyBytes_AS_STRING(framed)
    out += write_header(out, size)
    memcpy(out, PyBytes_AS_STRING(payload), size)
    return framed


cdef int prepare(Event *one, long long event_id, long long at_ms, long long attempt) except -1:
    """Check every field but the session, and measure the line."""
    if not 0 <= one.kind <= KIND_LAST:
        raise ValueError("kind must be 0, 1 or 2")
    if event_id < 1 or at_ms < 0 or attempt < 0:
        raise ValueError("event_id counts from 1, at_ms and attempt from 0")
    check_plain(one.name)
    check_plain(one.run_id)
    check_plain(one.task_id)
    check_plain(one.trace)
    cdef Text payload = one.payload
    if (
        payload.size < 2
        or payload.data[0] != c"{"
        or payload.data[payload.size - 1] != c"}"
        or memchr(payload.data, c"\n", payload.size) != NULL
    ):
        raise ValueError("payload must be a JSON object on one line")
    set_number(&one.event_id, event_id)
    set_number(&one.at_ms, at_ms)
    set_number(&one.attempt, attempt)
    one.line_bytes = render(NULL, one)
    return 0


cdef int check_plain(Text text) except -1:
    # Eight bytes at a time: byte by byte this was half of a page's cost.
    cdef uint64_t word = 0, bad = 0
    cdef Py_ssize_t at = 0
    while at + 8 <= text.size:
        memcpy(&word, text.data + at, 8)
        bad |= special(word)
        at += 8
    if at < text.size:
        word = EVERY_BYTE * c" "
        memcpy(&word, text.data + at, text.size - at)
        bad |= special(word)
    if bad:
        raise ValueError("session, type, run_id, task_id and trace must be printable ASCII")
    return 0


cdef inline uint64_t special(uint64_t word) noexcept nogil:
    """Not 0 when one of eight bytes is a control, quote, backslash, DEL or above ASCII."""
    cdef uint64_t quote = word ^ EVERY_BYTE * 0x22
    cdef uint64_t backslash = word ^ EVERY_BYTE * 0x5C
    cdef uint64_t delete = word ^ EVERY_BYTE * 0x7F
    # A subtraction reaches a byte's clear top bit only if the byte, or one below it, was too small.
    return EVERY_BYTE * 0x80 & (
        word
        | (word - EVERY_BYTE * 0x20) & ~word
        | (quote - EVERY_BYTE) & ~quote
        | (backslash - EVERY_BYTE) & ~backslash
        | (delete - EVERY_BYTE) & ~delete
    )


cdef inline Text of_bytes(bytes value) noexcept:
    return Text(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))


cdef inline void set_number(Number *number, long long value) noexcept nogil:
    cdef uint64_t rest = <uint64_t>value
    number.first = 20
    while True:
        number.first -= 1
        number.digits[number.first] = <char>(c"0" + rest % 10)
        rest //= 10
        if rest == 0:
            break


# Every put takes NULL for "only count", so that measuring and writing are one piece of code.


cdef inline Py_ssize_t put(char *out, Py_ssize_t at, const char *data, Py_ssize_t size) noexcept nogil:
    if out != NULL:
        memcpy(out + at, data, size)
    return at + size


cdef inline Py_ssize_t put_literal(char *out, Py_ssize_t at, const char *literal) noexcept nogil:
    return put(out, at, literal, strlen(literal))


cdef inline Py_ssize_t put_number(char *out, Py_ssize_t at, const Number *number) noexcept nogil:
    return put(out, at, &number.digits[number.first], 20 - number.first)


cdef inline Py_ssize_t put_ids(char *out, Py_ssize_t at, const Event *one) noexcept nogil:
    if one.run_id.size:
        at = put_literal(out, at, b',"runId":"')
        at = put(out, at, one.run_id.data, one.run_id.size)
        at = put_literal(out, at, b'"')
    if one.task_id.size:
        at = put_literal(out, at, b',"taskId":"')
        at = put(out, at, one.task_id.data, one.task_id.size)
        at = put_literal(out, at, b'"')
    if one.attempt.first < 19 or one.attempt.digits[19] != c"0":
        at = put_literal(out, at, b',"attempt":')
        at = put_number(out, at, &one.attempt)
    return at


cdef Py_ssize_t render(char *out, const Event *one) noexcept nogil:
    """Write JSON and LF; the number of bytes."""
    cdef Py_ssize_t at
    cdef Text members
    if one.kind == KIND_GOCLAW:  # _goclaw/session/event
        at = put_literal(
            out, 0, b'{"jsonrpc":"2.0","method":"_goclaw/session/event","params":{"sessionId":"'
        )
        at = put(out, at, one.session.data, one.session.size)
        at = put_literal(out, at, b'","event":{"type":"')
        at = put(out, at, one.name.data, one.name.size)
        at = put_literal(out, at, b'"')
        at = put_ids(out, at, one)
        members = strip(one.payload.data + 1, one.payload.size - 2)
        if members.size:
            at = put_literal(out, at, b",")
            at = put(out, at, members.data, members.size)
        at = put_literal(out, at, b'},"_meta":{')
    else:  # session/update
        at = put_literal(
            out, 0, b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"'
        )
        at = put(out, at, one.session.data, one.session.size)
        at = put_literal(out, at, b'","update":')
        at = put(out, at, one.payload.data, one.payload.size)
        at = put_literal(out, at, b',"_meta":{')
    if one.trace.size:
        at = put_literal(out, at, b'"traceparent":"')
        at = put(out, at, one.trace.data, one.trace.size)
        at = put_literal(out, at, b'",')
    at = put_literal(out, at, b'"goclaw":{"eventId":')
    at = put_number(out, at, &one.event_id)
    at = put_literal(out, at, b',"at":')
    at = put_number(out, at, &one.at_ms)
    at = put_ids(out, at, one)
    return put_literal(out, at, b"}}}}\n")


cdef inline Text strip(const char *data, Py_ssize_t size) noexcept nogil:
    while size and is_blank(data[0]):
        data += 1
        size -= 1
    while size and is_blank(data[size - 1]):
        size -= 1
    return Text(data, size)


cdef inline bint is_blank(char byte) noexcept nogil:
    return byte == c" " or byte == c"\t" or byte == c"\r"


cdef inline Py_ssize_t slot_bytes(Py_ssize_t size) noexcept nogil:
    return size + (2 if size < 126 else 4 if size < 65536 else HEADER_BYTES_MAX)


cdef inline Py_ssize_t write_slot(char *out, const Event *one) noexcept nogil:
    cdef Py_ssize_t header = write_header(out, one.line_bytes)
    return header + render(out + header, one)


cdef Py_ssize_t write_header(char *out, Py_ssize_t size) noexcept nogil:
    """FIN and opcode text, no mask, the length in its shortest form (RFC 6455, 5.2)."""
    cdef int at
    out[0] = <char>0x81
    if size < 126:
        out[1] = <char>size
        return 2
    if size < 65536:
        out[1] = 126
        out[2] = <char>(size >> 8)
        out[3] = <char>(size & 0xFF)
        return 4
    out[1] = 127
    for at in range(8):
        out[2 + at] = <char>((<uint64_t>size >> (56 - 8 * at)) & 0xFF)
    return HEADER_BYTES_MAX
