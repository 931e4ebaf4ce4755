# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: warn.undeclared=False, binding=False
"""An immutable compiled policy: native twin of ``goclaw._pure.rules``, which specifies it.

Owns the hash table over literal directories and the entries, contiguous per bucket. Not in here:
canonical forms, names, and anything that could change after construction.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy

__all__ = ["ALLOW", "ASK", "DENY", "EXACT", "GLOB", "NO_RULE", "PREFIX", "TREE", "Rules"]

ALLOW = 0
ASK = 1
DENY = 2
EXACT = 0
TREE = 1
PREFIX = 2
GLOB = 3
NO_RULE = -1

cdef enum:
    _EXACT = 0
    _TREE = 1
    _PREFIX = 2
    _GLOB = 3

cdef struct Entry:
    uint64_t forbidden
    int64_t risk_max
    int64_t bytes_max
    const char* who        # subject glob, whole
    const char* text       # resource text, whole
    int32_t rank
    uint32_t who_head      # bytes before its first star
    uint32_t who_size
    uint32_t text_head
    uint32_t text_size
    uint8_t who_kind       # EXACT, PREFIX or GLOB
    uint8_t kind

cdef struct Slot:
    uint64_t hash
    const char* key
    uint32_t key_size
    int32_t action
    uint32_t first         # its entries: [first, stop)
    uint32_t stop          # 0 = a free slot

cdef struct Table:
    uint64_t mask
    Slot* slots
    Entry* entries

cdef struct Request:
    uint64_t facts
    int64_t risk
    int64_t size_bytes
    const char* who
    size_t who_size
    int32_t action


@cython.final
cdef class Rules:
    """A compiled policy. Immutable, so any thread may ask; construction is O(n log n)."""

    cdef Table table
    cdef list answers       # per rank, so that a decision creates nothing
    cdef tuple default
    cdef char* blob
    cdef int32_t count

    def __cinit__(self, entries, /):
        """Raises ValueError for an effect or kind that does not exist, or a tree without text."""
        cdef list ordered = sorted(entries, key=_precedence)
        self.count = <int32_t>len(ordered)
        self.answers = []
        self.default = (DENY, NO_RULE)
        buckets = {}
        shared = {}
        size = 0
        for rank, entry in enumerate(ordered):
            effect, rule, action, _, _, _, subject, kind, text = entry
            if not (0 <= effect <= 2 and _EXACT <= kind <= _GLOB and (text or kind != _TREE)):
                raise ValueError(
                    f"entry {entry!r} has no such effect or kind, or a tree without text"
                )
            size += len(subject) + len(text)
            answer = (effect, rule)
            self.answers.append(shared.setdefault(answer, answer))
            buckets.setdefault((action, _key(kind, text)), []).append((rank, entry))
        self._fill(buckets, size + sum([len(key) for _, key in buckets]))

    cdef int _fill(self, dict buckets, size_t size) except -1:
        """Copies the entries, bucket after bucket, so that one bucket is one run of memory."""
        cdef uint64_t slots = 4
        cdef uint32_t at = 0
        cdef char* text
        cdef Slot* slot
        while slots < 2 * <uint64_t>len(buckets):
            slots *= 2
        self.table.mask = slots - 1
        self.table.slots = <Slot*>calloc(slots, sizeof(Slot))
        self.table.entries = <Entry*>calloc(self.count + 1, sizeof(Entry))
        self.blob = <char*>calloc(size + 1, 1)
        if self.table.slots == NULL or self.table.entries == NULL or self.blob == NULL:
            raise MemoryError()
        text = self.blob
        for (action, key), rows in buckets.items():
            slot = _free_slot(&self.table, action, key, len(key))
            slot.action = action
            slot.key_size = <uint32_t>len(key)
            slot.key = _keep(&text, key)
            slot.first = at
            for rank, entry in rows:
                _store(&self.table.entries[at], rank, entry, &text)
                at += 1
            slot.stop = at
        return 0

    def __dealloc__(self):
        free(self.table.slots)
        free(self.table.entries)
        free(self.blob)

    def __len__(self):
        return self.count

    def decide(
        self,
        int32_t action,
        uint64_t facts,
        int64_t risk,
        int64_t size_bytes,
        bytes subject not None,
        tuple resources not None,
        /,
    ):
        """See the twin. Creates no object; ten entries or ten thousand, the work is the same."""
        cdef Request request
        cdef int32_t best = self.count
        cdef bytes form
        request.facts = facts
        request.risk = risk
        request.size_bytes = size_bytes
        request.who = subject
        request.who_size = <size_t>len(subject)
        request.action = action
        for form in resources:
            if form is None:
                raise TypeError("a resource is bytes")
            best = _best(&self.table, &request, form, <size_t>len(form), best)
        if best == self.count:
            return self.default
        return self.answers[best]


def _precedence(tuple entry):
    return (-entry[0], entry[1])


cdef bytes _key(int kind, bytes text):
    """The text itself, or the directory of its literal beginning."""
    if kind == _EXACT or kind == _TREE:
        return text
    head = text if kind == _PREFIX else text.partition(b"*")[0]
    return head[:max(head.rfind(b"/"), 0)]


cdef const char* _keep(char** text, bytes value) except NULL:
    cdef char* start = text[0]
    memcpy(start, <const char*>value, len(value))
    text[0] = start + len(value)
    return start


cdef int _store(Entry* entry, int32_t rank, tuple source, char** text) except -1:
    _, _, _, forbidden, risk_max, bytes_max, subject, kind, resource = source
    entry.rank = rank
    entry.forbidden = forbidden
    entry.risk_max = risk_max
    entry.bytes_max = bytes_max
    entry.who_kind = _shape(subject)
    entry.who_head = <uint32_t>len(subject.partition(b"*")[0])
    entry.who_size = <uint32_t>len(subject)
    entry.who = _keep(text, subject)
    entry.kind = kind if kind != _GLOB else _shape(resource)
    entry.text_head = <uint32_t>len(resource if kind != _GLOB else resource.partition(b"*")[0])
    entry.text_size = <uint32_t>len(resource)
    entry.text = _keep(text, resource)
    return 0


cdef uint8_t _shape(bytes glob):
    """A glob without a star is exact, one whose only star ends it as ``**`` is a prefix."""
    if b"*" not in glob:
        return _EXACT
    return _PREFIX if glob.partition(b"*")[2] == b"*" else _GLOB


cdef Slot* _free_slot(Table* table, int32_t action, const char* key, size_t size) noexcept nogil:
    cdef uint64_t hash = _begin(action)
    cdef size_t start = 0
    cdef size_t end
    cdef uint64_t at
    while True:
        end = _segment(key, start, size)
        hash = _mix(hash, key + start, end - start)
        if end == size:
            break
        start = end
    at = _spread(hash) & table.mask
    while table.slots[at].stop:
        at = (at + 1) & table.mask
    table.slots[at].hash = hash
    return &table.slots[at]


cdef inline size_t _segment(const char* text, size_t start, size_t size) noexcept nogil:
    """The end of the segment that begins at ``start``: the next ``/`` after it, or the end."""
    cdef const void* found
    if start >= size:
        return size
    found = memchr(text + start + 1, c"/", size - start - 1)
    return size if found == NULL else <size_t>(<const char*>found - text)


cdef inline uint64_t _begin(int32_t action) noexcept nogil:
    return (<uint64_t><uint32_t>action + 1) * <uint64_t>0x9E3779B97F4A7C15


cdef inline uint64_t _spread(uint64_t hash) noexcept nogil:
    return hash ^ (hash >> 29)


cdef inline uint64_t _mix(uint64_t hash, const char* text, size_t size) noexcept nogil:
    """Folds one segment into the hash, eight bytes a step. Keys come from the user's own policy and
    are compared in full after a hit, so nothing hangs on the strength of this hash."""
    cdef uint64_t word
    cdef uint32_t low
    cdef uint32_t high
    hash ^= size
    while size >= 8:
        memcpy(&word, text, 8)
        hash = (hash ^ word) * <uint64_t>0x9FB21C651E98DF25
        hash ^= hash >> 32
        text += 8
        size -= 8
    if size >= 4:
        # two overlapping halves reach every byte without a loop
        memcpy(&low, text, 4)
        memcpy(&high, text + size - 4, 4)
        word = (<uint64_t>high << 32) | low
    elif size:
        word = (
            (<uint64_t><uint8_t>text[size >> 1] << 16)
            | (<uint64_t><uint8_t>text[size - 1] << 8)
            | <uint8_t>text[0]
        )
    else:
        word = 0
    hash = (hash ^ word) * <uint64_t>0x9FB21C651E98DF25
    return hash ^ (hash >> 32)


cdef int32_t _best(
    const Table* table, const Request* request, const char* form, size_t size, int32_t best
) noexcept nogil:
    """The lower of ``best`` and the rank of the first entry that applies to this form.

    An entry lies in the bucket of its own text or of the directory of its literal beginning, so
    the empty text, every directory of the form and the form itself are all there is to look at.
    """
    cdef uint64_t hash = _begin(request.action)
    cdef size_t start = 0
    cdef size_t end
    best = _probe(table, request, form, size, _mix(hash, form, 0), 0, best)
    if size == 0:
        return best
    while True:
        end = _segment(form, start, size)
        hash = _mix(hash, form + start, end - start)
        best = _probe(table, request, form, size, hash, end, best)
        if end == size:
            return best
        start = end


cdef inline int32_t _probe(
    const Table* table,
    const Request* request,
    const char* form,
    size_t size,
    uint64_t hash,
    size_t key_size,
    int32_t best,
) noexcept nogil:
    cdef uint64_t at = _spread(hash) & table.mask
    cdef const Slot* slot
    while True:
        slot = &table.slots[at]
        if not slot.stop:
            return best
        if (
            slot.hash == hash
            and slot.key_size == key_size
            and slot.action == request.action
            and memcmp(slot.key, form, key_size) == 0
        ):
            return _scan(table, request, form, size, slot, best)
        at = (at + 1) & table.mask


cdef int32_t _scan(
    const Table* table,
    const Request* request,
    const char* form,
    size_t size,
    const Slot* slot,
    int32_t best,
) noexcept nogil:
    cdef uint32_t at
    cdef const Entry* entry
    for at in range(slot.first, slot.stop):
        entry = &table.entries[at]
        if entry.rank >= best:
            return best
        if (
            not request.facts & entry.forbidden
            and request.risk <= entry.risk_max
            and request.size_bytes <= entry.bytes_max
            and _fits(
                entry.kind, entry.text, entry.text_head, entry.text_size,
                form, size, slot.key_size,
            )
            and _fits(
                entry.who_kind, entry.who, entry.who_head, entry.who_size,
                request.who, request.who_size, 0,
            )
        ):
            return entry.rank
    return best


cdef inline bint _fits(
    uint8_t kind,
    const char* pattern,
    uint32_t head,
    uint32_t pattern_size,
    const char* text,
    size_t size,
    size_t known,
) noexcept nogil:
    """``known`` bytes are equal already: the bucket's key. A tree's text is its bucket's key, and
    a bucket is only asked on a boundary, so nothing is left to test."""
    if kind == _TREE:
        return True
    if size < head or memcmp(pattern + known, text + known, head - known) != 0:
        return False
    if kind == _EXACT:
        return size == pattern_size
    return kind == _PREFIX or _glob(
        pattern + head, pattern_size - head, text + head, size - head
    )


cdef bint _glob(const char* glob, size_t glob_size, const char* text, size_t size) noexcept nogil:
    """Whole match. Of each kind of star only the last one met can need to take more: what came
    before it fitted at its earliest place, which leaves the rest the most room."""
    cdef size_t at = 0
    cdef size_t place = 0
    cdef size_t one = 0            # text taken by the last "*", glob after it
    cdef size_t one_next = 0       # 0 = none: no glob continues before its star
    cdef size_t many = 0
    cdef size_t many_next = 0
    while True:
        if place < glob_size and glob[place] == c"*":
            if place + 1 < glob_size and glob[place + 1] == c"*":
                place += 2
                many, many_next, one_next = at, place, 0
            else:
                place += 1
                one, one_next = at, place
            continue
        if at == size and place == glob_size:
            return True
        if at < size and place < glob_size and glob[place] == text[at]:
            at += 1
            place += 1
            continue
        if one_next and one < size and text[one] != c"/":
            one += 1
            at, place = one, one_next
        elif many_next and many < size:
            many += 1
            at, place, one_next = many, many_next, 0
        else:
            return False
