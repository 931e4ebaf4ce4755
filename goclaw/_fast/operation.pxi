"""Programs, and the operations that run them, as the thread sees them: plain memory.

Owns their shapes and an operation's arena, from submit() to drain(). Not in here: SQL, Python.
"""

cdef enum:
    RUN = 0
    EXPECT = 1
    REFUSE = 2
    STOP = 3
    NEED = 4
    EMIT = 5
    MOVE = 6

    EMIT_COLUMNS = 3           # kind, type, payload
    EVENT_COLUMNS = 10         # sid, event_id, kind, type, at, run_id, task_id, attempt, trace, payload

    AT_SID = 0                 # registers that an emitting program must set, in the order of MARKS
    AT_EVENT = 1
    AT_SALT = 2
    AT_LINK = 3
    AT_NOW = 4
    AT_TID = 5
    AT_RUN = 6
    AT_TASK = 7
    AT_ATTEMPT = 8
    AT_TRACE = 9
    MARKS_COUNT = 10
    MESSAGE_BYTES = 240
    PAGE_BYTES = 4096
    ARENA_BYTES = 6000         # a claim needs 5 thousand, most others less
    IDLE_MS = 500              # quiet this long: time to checkpoint
    LINGER_SHARE = 8           # of a flush: what a batch waits for the next of those it may expect,
    LINGER_NS_MIN = 20000      # where a flush costs enough to be shared,
    LINGER_NS_MAX = 100000     # and not for a slow disk's sake
    LIBRARY_VERSION_MIN = 3046000

cdef struct Value:
    int kind                   # SQLite's type codes; 0 and GC_NULL = null
    int size
    int64_t number             # the bits of a float are kept in `real`
    double real
    char *data

cdef struct Chunk:
    Chunk *next
    size_t used
    size_t size

cdef struct Event:
    Event *next
    Value values[EVENT_COLUMNS]

cdef struct Step:
    char *sql
    Step *same                 # an earlier step with this text, whose statement is this one's too
    int writes
    sqlite3_stmt *statement
    int mode
    int code                   # index into Writer.codes
    int skip                   # the step to go on with where a need found nothing
    int binds
    int *bind_slots
    int columns
    int *column_slots

cdef struct Program:
    int parameters
    int slots
    int late
    int steps_count
    Step *steps
    int returns_count
    int *returns
    int marks[MARKS_COUNT]     # their registers; only where a step emits

cdef struct Part:
    int program
    Value *parameters
    Value *registers           # parameters first; made anew for each run

cdef struct Operation:
    Operation *next
    int64_t ticket
    int live
    int late
    int parts_count
    int code                   # 0 = fine, else index into codes + 1
    Part *parts
    int wrote
    Event *events
    Event *last_event
    char message[MESSAGE_BYTES]
    Chunk *arena
    Chunk own                  # the first of the arena; its bytes follow the operation

cdef struct Batch:             # [0]: run in the order of their submission; [1]: late ones, after them
    Operation *first[2]
    Operation *last[2]
    int count

cdef struct Core:
    pthread_t thread
    pthread_mutex_t mutex
    pthread_cond_t condition
    int running
    int closing
    int wake_fd
    char *path
    char *pragmas
    sqlite3 *db
    sqlite3_stmt *begin
    sqlite3_stmt *commit
    sqlite3_stmt *rollback
    sqlite3_stmt *savepoint
    sqlite3_stmt *release
    sqlite3_stmt *undo
    sqlite3_stmt *count_batch
    sqlite3_stmt *read_batch
    sqlite3_stmt *event_insert
    sqlite3_stmt *head_move
    char *event_insert_sql
    char *head_move_sql
    char *batch_count_sql
    char *batch_read_sql
    Program *programs
    int programs_count
    int batch_max
    int busy_ms_max
    int wal_pages_max
    int checkpoint_pages
    int checkpoint_wait_ms
    int wal_pages
    int checkpointed           # wal_pages at the last checkpoint
    int broken                 # the handle is closed: reopen before the next batch
    int fail_commit            # tests: treat the next COMMIT as an I/O error (1 after it, 2 before)
    int code_storage           # index + 1 of 'storage_failed'
    int code_constraint
    int code_unknown
    int64_t batches            # as committed in the table writer
    Operation *first
    Operation *last
    Operation *done_first
    Operation *done_last
    Operation *spare
    int spare_count
    int pending
    int queued                 # from `first` on
    int expected               # operations that may come until the next batch has all who take part
    int lingers                # a thread of its own, so that others may submit meanwhile
    int64_t batches_run
    int64_t operations_run
    int64_t flush_ns_last
    int64_t flush_ns_sum
    char error[MESSAGE_BYTES]


cdef Operation *begin(Core *core) noexcept nogil:
    """An empty operation, from the spare ones if there is one; NULL without memory. The loop's side only."""
    cdef Operation *op = core.spare
    if op == NULL:
        op = <Operation *>malloc(sizeof(Operation) + ARENA_BYTES)
        if op == NULL:
            return NULL
    else:
        core.spare = op.next
        core.spare_count -= 1
    memset(op, 0, sizeof(Operation))
    op.arena = &op.own
    op.own.size = ARENA_BYTES
    return op


cdef void *reserve(Operation *op, size_t n) noexcept nogil:
    cdef Chunk *chunk = op.arena
    cdef size_t size
    n = (n + 15) & ~<size_t>15
    if chunk.used + n > chunk.size:
        size = n if n > ARENA_BYTES else ARENA_BYTES
        chunk = <Chunk *>malloc(sizeof(Chunk) + size)
        if chunk == NULL:
            return NULL
        chunk.next = op.arena
        chunk.used = 0
        chunk.size = size
        op.arena = chunk
    chunk.used += n
    return <char *>chunk + sizeof(Chunk) + chunk.used - n


cdef void forget(Core *core, Operation *op) noexcept nogil:
    """Free what the operation took; it is spare for the next, up to a batch of them. The loop's side only."""
    cdef Chunk *chunk
    while op.arena != &op.own:
        chunk = op.arena
        op.arena = chunk.next
        free(chunk)
    if core.spare_count < core.batch_max:
        op.next = core.spare
        core.spare = op
        core.spare_count += 1
    else:
        free(op)


cdef inline void copy_text(char *target, const char *source) noexcept nogil:
    cdef size_t n = strlen(source)
    if n >= MESSAGE_BYTES:
        n = MESSAGE_BYTES - 1
    memcpy(target, source, n)
    target[n] = 0
