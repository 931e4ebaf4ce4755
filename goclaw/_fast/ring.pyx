# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The newest frames of one session, bounded in bytes; readers are cursors, not queues.

Owns the slots and the exact lag, as its twin says it. Not in here: what a frame says, who reads.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

__all__ = ["HISTORY_EVENTS", "Ring"]

HISTORY_EVENTS = HISTORY

cdef enum:
    HISTORY = 1 << 14  # a power of two, as every room of an index below
    SLOT_BYTES_MIN = 256  # a larger ring's index has room for slots of this size
    ROOM_MIN = 64  # slots; an idle session's ring stays under 2 KiB of index
    ARENA_BYTES_MIN = 4096
    KIND_LAST = 2
    KINDS_ALL = 7
    IN_STORE = 0  # in place of a header's size

cdef struct Slot:
    uint32_t at  # first byte in the arena
    uint8_t kind
    uint8_t header_bytes


@cython.final
cdef class Ring:
    """Holds slots with dense ids, evicts the oldest; single-threaded, takes memory as it fills."""

    cdef Py_ssize_t capacity_bytes
    cdef Py_ssize_t index_max
    cdef char *arena  # the slots' bytes in order, going round: oldest at tail
    cdef Py_ssize_t arena_bytes
    cdef Py_ssize_t tail
    cdef Py_ssize_t _held_bytes
    cdef Slot *slots  # of event id i at i & (slots_room - 1)
    cdef Py_ssize_t slots_room
    cdef Py_ssize_t count  # live slots: ids head - count + 1 .. head
    cdef uint64_t *totals  # bytes appended up to and with id i, at i & (totals_room - 1)
    cdef Py_ssize_t totals_room
    cdef Py_ssize_t known  # live totals: ids head - known + 1 .. head
    cdef long long _head

    def __init__(self, capacity_bytes: int) -> None:
        if not 1 << 10 <= capacity_bytes <= 1 << 30:
            raise ValueError("capacity_bytes must be from 1 KiB to 1 GiB")
        if self.capacity_bytes:
            raise ValueError("a ring is made once")
        self.capacity_bytes = capacity_bytes
        self.index_max = HISTORY
        while self.index_max < self.capacity_bytes // SLOT_BYTES_MIN:
            self.index_max *= 2

    def __dealloc__(self):
        free(self.arena)
        free(self.slots)
        free(self.totals)

    @property
    def head(self):
        """The newest event's id, 0 before the first append."""
        return self._head

    @property
    def oldest(self):
        """The oldest slot's event id, 0 when there is none."""
        return self._head - self.count + 1 if self.count else 0

    @property
    def held_bytes(self):
        """Bytes of the slots in the ring."""
        return self._held_bytes

    def append(self, long long event_id, int kind, bytes slot not None):
        """Add the next event. A slot over a quarter of the capacity is only marked "in store"."""
        if event_id < 1 or (self._head and event_id != self._head + 1):
            raise ValueError("event_id must be head + 1")
        if not 0 <= kind <= KIND_LAST:
            raise ValueError("kind must be 0, 1 or 2")
        cdef const char *data = PyBytes_AS_STRING(slot)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(slot)
        cdef int header_bytes = header_size(<const unsigned char *>data, size)
        if header_bytes == 0:
            raise ValueError("slot must be one unmasked WebSocket text frame")
        cdef Py_ssize_t arena_size = size if size <= self.capacity_bytes // 4 else 0
        # What may fail comes first: a MemoryError leaves the ring as it was.
        self.make_room(arena_size)
        while self._held_bytes + arena_size > self.capacity_bytes or self.count >= self.index_max - 1:
            self.evict()
        cdef Slot *placed = &self.slots[event_id & (self.slots_room - 1)]
        placed.kind = <uint8_t>kind
        placed.header_bytes = <uint8_t>(header_bytes if arena_size else IN_STORE)
        if arena_size:
            placed.at = <uint32_t>self.put(data, size)
        if self._head == 0:
            self.totals[(event_id - 1) & (self.totals_room - 1)] = 0
            self.known = 1
        cdef uint64_t before = self.totals[(event_id - 1) & (self.totals_room - 1)]
        self.totals[event_id & (self.totals_room - 1)] = before + <uint64_t>size
        self.known = min(self.known + 1, self.index_max)
        self.count += 1
        self._head = event_id

    def covers(self, long long cursor):
        """True when every event after ``cursor`` has its slot here (perhaps an in-store one)."""
        return 0 < self._head and self._head - self.count <= cursor <= self._head

    def read(self, long long cursor, Py_ssize_t bytes_max, long mask, bint lines):
        """The frames after ``cursor``, joined, and the new cursor; None when not covered."""
        if not (0 < self._head and self._head - self.count <= cursor <= self._head):
            return None
        cdef long long end = cursor
        cdef Py_ssize_t size = self.measure(&end, bytes_max, mask, lines)
        if end == cursor != self._head:
            return None
        cdef bytes joined = PyBytes_FromStringAndSize(NULL, size)
        cdef char *out = PyBytes_AS_STRING(joined)
        if size == 0:
            pass
        elif not lines and mask & KINDS_ALL == KINDS_ALL:
            # Every slot in a row: one stretch of the arena, in two pieces when it goes round.
            self.get(out, self.slots[(cursor + 1) & (self.slots_room - 1)].at, size)
        else:
            self.gather(out, cursor, end, mask, lines)
        return joined, end

    def span(self, long long cursor):
        """How many events and bytes (in-store ones too) were appended after ``cursor``."""
        if not 0 <= cursor <= self._head:
            raise ValueError("cursor must be from 0 to head")
        if self._head == 0:
            return 0, 0
        cdef long long first = max(cursor, self._head - self.known + 1)
        return self._head - cursor, self.total(self._head) - self.total(first)

    def clear(self):
        """Give the slots back; head and spans stay."""
        free(self.arena)
        self.arena = NULL
        self.arena_bytes = 0
        self.tail = 0
        self._held_bytes = 0
        free(self.slots)
        self.slots = NULL
        self.slots_room = 0
        self.count = 0

    cdef inline uint64_t total(self, long long event_id) noexcept nogil:
        return self.totals[event_id & (self.totals_room - 1)]

    cdef inline Py_ssize_t size_of(self, long long event_id) noexcept nogil:
        return <Py_ssize_t>(self.total(event_id) - self.total(event_id - 1))

    cdef void evict(self) noexcept:
        cdef long long event_id = self._head - self.count + 1
        cdef Py_ssize_t size
        if self.slots[event_id & (self.slots_room - 1)].header_bytes != IN_STORE:
            size = self.size_of(event_id)
            self.tail = (self.tail + size) % self.arena_bytes
            self._held_bytes -= size
        self.count -= 1

    cdef Py_ssize_t put(self, const char *data, Py_ssize_t size) noexcept:
        """Copy behind the newest slot, going round; where it begins."""
        cdef Py_ssize_t at = self.tail + self._held_bytes
        if at >= self.arena_bytes:
            at -= self.arena_bytes
        cdef Py_ssize_t straight = min(size, self.arena_bytes - at)
        memcpy(self.arena + at, data, straight)
        memcpy(self.arena, data + straight, size - straight)
        self._held_bytes += size
        return at

    cdef void get(self, char *out, Py_ssize_t at, Py_ssize_t size) noexcept:
        cdef Py_ssize_t straight
        if at >= self.arena_bytes:
            at -= self.arena_bytes
        straight = min(size, self.arena_bytes - at)
        memcpy(out, self.arena + at, straight)
        memcpy(out + straight, self.arena, size - straight)

    cdef Py_ssize_t measure(
        self, long long *cursor, Py_ssize_t bytes_max, long mask, bint lines
    ) noexcept:
        """Move the cursor as far as one read goes; the bytes of that read."""
        # Locals, as the compiler must take every field of self for changed by the stores below.
        cdef const uint64_t *totals = self.totals
        cdef const Slot *slots = self.slots
        cdef uint64_t totals_mask = self.totals_room - 1, slots_mask = self.slots_room - 1
        cdef long long event_id, end = cursor[0], head = self._head
        cdef uint64_t before, total
        cdef Py_ssize_t size = 0, frame_bytes
        cdef bint any_frame = False
        cdef Slot slot
        if end == head:
            return 0
        total = totals[<uint64_t>end & totals_mask]
        for event_id in range(end + 1, head + 1):
            before = total
            total = totals[<uint64_t>event_id & totals_mask]
            slot = slots[<uint64_t>event_id & slots_mask]
            if mask >> slot.kind & 1:
                if slot.header_bytes == IN_STORE:
                    break
                frame_bytes = <Py_ssize_t>(total - before) - (slot.header_bytes if lines else 0)
                if any_frame and frame_bytes > bytes_max - size:
                    break
                any_frame = True
                size += frame_bytes
            end = event_id
        cursor[0] = end
        return size

    cdef void gather(
        self, char *out, long long cursor, long long end, long mask, bint lines
    ) noexcept:
        """Copy the wanted frames in (cursor, end] one by one."""
        cdef Slot *slot
        cdef Py_ssize_t skip, size
        while cursor < end:
            cursor += 1
            slot = &self.slots[cursor & (self.slots_room - 1)]
            if mask >> slot.kind & 1:
                skip = slot.header_bytes if lines else 0
                size = self.size_of(cursor) - skip
                self.get(out, <Py_ssize_t>slot.at + skip, size)
                out += size

    cdef int make_room(self, Py_ssize_t arena_size) except -1:
        """Grow what one more slot may not fit into; rooms double up to their bounds."""
        if self.known + 2 > self.totals_room and self.totals_room < self.index_max:
            self.grow_totals()
        if self.count + 1 > self.slots_room and self.slots_room < self.index_max:
            self.grow_slots()
        if self._held_bytes + arena_size > self.arena_bytes and self.arena_bytes < self.capacity_bytes:
            self.grow_arena(self._held_bytes + arena_size)
        return 0

    cdef int grow_totals(self) except -1:
        cdef Py_ssize_t room = max(2 * self.totals_room, <Py_ssize_t>ROOM_MIN)
        cdef uint64_t *totals = <uint64_t *>malloc(room * sizeof(uint64_t))
        cdef long long event_id
        if totals == NULL:
            raise MemoryError
        for event_id in range(self._head - self.known + 1, self._head + 1):
            totals[event_id & (room - 1)] = self.total(event_id)
        free(self.totals)
        self.totals = totals
        self.totals_room = room
        return 0

    cdef int grow_slots(self) except -1:
        cdef Py_ssize_t room = max(2 * self.slots_room, <Py_ssize_t>ROOM_MIN)
        cdef Slot *slots = <Slot *>malloc(room * sizeof(Slot))
        cdef long long event_id
        if slots == NULL:
            raise MemoryError
        for event_id in range(self._head - self.count + 1, self._head + 1):
            slots[event_id & (room - 1)] = self.slots[event_id & (self.slots_room - 1)]
        free(self.slots)
        self.slots = slots
        self.slots_room = room
        return 0

    cdef int grow_arena(self, Py_ssize_t needed) except -1:
        cdef Py_ssize_t size = max(2 * self.arena_bytes, <Py_ssize_t>ARENA_BYTES_MIN, needed)
        size = min(size, self.capacity_bytes)
        cdef char *arena = <char *>malloc(size)
        cdef long long event_id
        cdef Py_ssize_t at = 0
        cdef Slot *slot
        if arena == NULL:
            raise MemoryError
        if self._held_bytes:
            self.get(arena, self.tail, self._held_bytes)
        for event_id in range(self._head - self.count + 1, self._head + 1):
            slot = &self.slots[event_id & (self.slots_room - 1)]
            if slot.header_bytes != IN_STORE:
                slot.at = <uint32_t>at
                at += self.size_of(event_id)
        free(self.arena)
        self.arena = arena
        self.arena_bytes = size
        self.tail = 0
        return 0


cdef int header_size(const unsigned char *slot, Py_ssize_t size) noexcept nogil:
    """The size of the frame's header, 0 when the slot is not that frame and nothing else."""
    cdef int header_bytes, at
    cdef uint64_t length = 0
    if size < 2 or slot[0] != 0x81 or slot[1] > 127:
        return 0
    if slot[1] < 126:
        return 2 if size == 2 + <Py_ssize_t>slot[1] else 0
    header_bytes = 4 if slot[1] == 126 else 10
    if size < header_bytes:
        return 0
    for at in range(2, header_bytes):
        length = length << 8 | slot[at]
    return header_bytes if <uint64_t>(size - header_bytes) == length else 0
