# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, autotestdict=False
"""The one writer: a thread without the GIL that runs programs of SQL in shared transactions.

Owns the writing handle, group commit and the order of commits. Not in here: what a program means
(store/queries.sql), who waits for it (store/database.py).

A program is data: steps of SQL that share registers. The thread takes up to `batch_max` operations,
runs them in one transaction, commits once, and wakes the loop through a pipe. It never touches Python.
An operation that fails undoes nothing but itself: one that failed before it wrote leaves nothing to
undo; after the first that failed later, the batch is rolled back and run again with a SAVEPOINT each
(a SAVEPOINT copies every page it touches: 1.6x of a cycle, 2026-11).
"""

cimport cython
from libc.stdint cimport int64_t, uint8_t
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strcmp, strlen

import os

cdef extern from "sha256.h" nogil:
    ctypedef struct gc_sha256:
        pass
    int gc_sha256_setup(int plain)
    void gc_sha256_begin(gc_sha256 *s)
    void gc_sha256_add(gc_sha256 *s, const void *data, size_t n)
    void gc_sha256_end(gc_sha256 *s, uint8_t *out)

cdef extern from "sqlite_table.h" nogil:
    ctypedef struct sqlite3:
        pass
    ctypedef struct sqlite3_stmt:
        pass
    ctypedef struct sqlite3_value:
        pass
    ctypedef struct sqlite3_context:
        pass
    ctypedef void (*gc_function)(sqlite3_context *, int, sqlite3_value **) noexcept nogil
    ctypedef int (*gc_wal_hook)(void *, sqlite3 *, const char *, int) noexcept nogil
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int GC_OK, GC_IOERR, GC_ROW, GC_DONE, GC_INTEGER, GC_FLOAT, GC_TEXT, GC_BLOB, GC_NULL
    int GC_OPEN_FLAGS, GC_FUNCTION_FLAGS, GC_READ_FLAGS
    int gc_table_complete()
    int gc_thread_start(pthread_t *thread, void *(*main)(void *) noexcept nogil, void *argument)
    int64_t gc_now_ns()
    int gc_wait_ms(pthread_cond_t *condition, pthread_mutex_t *mutex, int wait_ms)
    int pthread_join(pthread_t thread, void **result)
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_cond_init(pthread_cond_t *condition, void *attributes)
    int pthread_cond_signal(pthread_cond_t *condition)
    int pthread_cond_destroy(pthread_cond_t *condition)
    long read(int fd, void *data, size_t n)
    long write(int fd, const void *data, size_t n)
    int close(int fd)
    int getpid()
    int gc_bind_blob(sqlite3_stmt *, int, const void *, int, void *)
    int gc_bind_double(sqlite3_stmt *, int, double)
    int gc_bind_int64(sqlite3_stmt *, int, int64_t)
    int gc_bind_null(sqlite3_stmt *, int)
    int gc_bind_parameter_count(sqlite3_stmt *)
    const char *gc_bind_parameter_name(sqlite3_stmt *, int)
    int gc_bind_text(sqlite3_stmt *, int, const char *, int, void *)
    int gc_busy_timeout(sqlite3 *, int)
    const void *gc_column_blob(sqlite3_stmt *, int)
    int gc_column_bytes(sqlite3_stmt *, int)
    int gc_column_count(sqlite3_stmt *)
    double gc_column_double(sqlite3_stmt *, int)
    int64_t gc_column_int64(sqlite3_stmt *, int)
    const char *gc_column_name(sqlite3_stmt *, int)
    const unsigned char *gc_column_text(sqlite3_stmt *, int)
    int gc_column_type(sqlite3_stmt *, int)
    const char *gc_errmsg(sqlite3 *)
    int gc_exec(sqlite3 *, const char *, void *, void *, char **)
    int gc_finalize(sqlite3_stmt *)
    int gc_get_autocommit(sqlite3 *)
    int gc_libversion_number()
    int gc_reset(sqlite3_stmt *)
    void gc_result_blob(sqlite3_context *, const void *, int, void *)
    int gc_step(sqlite3_stmt *)
    const void *gc_value_blob(sqlite3_value *)
    int gc_value_bytes(sqlite3_value *)
    int64_t gc_value_int64(sqlite3_value *)
    const unsigned char *gc_value_text(sqlite3_value *)
    int gc_prepare_v3(sqlite3 *, const char *, int, unsigned int, sqlite3_stmt **, const char **)
    int gc_open_v2(const char *, sqlite3 **, int, const char *)
    int gc_create_function_v2(sqlite3 *, const char *, int, int, void *, gc_function, void *, void *, void *)
    const char *gc_sourceid()
    void *gc_wal_hook_set(sqlite3 *, gc_wal_hook, void *)
    int gc_close_v2(sqlite3 *)
    int gc_db_config(sqlite3 *, int, int, int *)
    int gc_stmt_readonly(sqlite3_stmt *)
    int GC_ENABLE_QPSG, GC_PERSISTENT

cdef enum:
    RUN = 0
    EXPECT = 1
    REFUSE = 2
    STOP = 3
    NEED = 4
    EMIT = 5

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
    int64_t batches_run
    int64_t operations_run
    int64_t flush_ns_last
    int64_t flush_ns_sum
    char error[MESSAGE_BYTES]


# -- arena ---------------------------------------------------------------------------------------

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


# -- SQL functions of the hash chain ---------------------------------------------------------------

cdef void hash_link(uint8_t *out, const void *link, int link_size, int64_t event_id, int64_t at,
                    const void **texts, int *sizes, const void *digest, int digest_size) noexcept nogil:
    """link' = H(link, event_id, at, type 0, run 0, task 0, digest)."""
    cdef gc_sha256 s
    cdef uint8_t word[17]
    cdef int i, k
    gc_sha256_begin(&s)
    gc_sha256_add(&s, link, link_size)
    for k in range(8):
        word[k] = <uint8_t>(event_id >> (56 - 8 * k))
        word[8 + k] = <uint8_t>(at >> (56 - 8 * k))
    word[16] = 0
    gc_sha256_add(&s, word, 16)
    for i in range(3):
        gc_sha256_add(&s, texts[i], sizes[i])
        gc_sha256_add(&s, &word[16], 1)
    gc_sha256_add(&s, digest, digest_size)
    gc_sha256_end(&s, out)


cdef void chain_link(sqlite3_context *context, int n, sqlite3_value **values) noexcept nogil:
    cdef uint8_t out[32]
    cdef const void *texts[3]
    cdef int sizes[3]
    cdef int i
    for i in range(3):
        texts[i] = gc_value_text(values[3 + i])
        sizes[i] = gc_value_bytes(values[3 + i])
    hash_link(out, gc_value_blob(values[0]), gc_value_bytes(values[0]), gc_value_int64(values[1]),
              gc_value_int64(values[2]), texts, sizes, gc_value_blob(values[6]), gc_value_bytes(values[6]))
    gc_result_blob(context, out, 32, <void *>-1)


cdef int wal_moved(void *core, sqlite3 *db, const char *name, int pages) noexcept nogil:
    if pages < (<Core *>core).wal_pages:
        (<Core *>core).checkpointed = 0   # the log has begun anew
    (<Core *>core).wal_pages = pages
    return 0


# -- handle ----------------------------------------------------------------------------------------

cdef int open_handle(Core *core) noexcept nogil:
    """Open, set pragmas, prepare everything; 0 = fine, else core.error says why and the handle is closed."""
    cdef int i, k, rc
    cdef Step *step
    rc = gc_open_v2(core.path, &core.db, GC_OPEN_FLAGS, NULL)
    if rc == GC_OK:
        gc_busy_timeout(core.db, core.busy_ms_max)
        # apsw's SQLite has STAT4: without this promise it compiles a statement anew whenever a
        # binding that the planner peeked at changes, which cost 3x of a cycle (2026-11).
        gc_db_config(core.db, GC_ENABLE_QPSG, 1, NULL)
        rc = gc_create_function_v2(core.db, b"chain_link", 7, GC_FUNCTION_FLAGS, NULL, chain_link, NULL, NULL, NULL)
    if rc == GC_OK:
        rc = gc_exec(core.db, core.pragmas, NULL, NULL, NULL)
    if rc == GC_OK:
        gc_wal_hook_set(core.db, wal_moved, core)
        rc = prepare(core, b"BEGIN IMMEDIATE", &core.begin)
    if rc == GC_OK:
        rc = prepare(core, b"COMMIT", &core.commit)
    if rc == GC_OK:
        rc = prepare(core, b"ROLLBACK", &core.rollback)
    if rc == GC_OK:
        rc = prepare(core, b"SAVEPOINT operation", &core.savepoint)
    if rc == GC_OK:
        rc = prepare(core, b"RELEASE operation", &core.release)
    if rc == GC_OK:
        rc = prepare(core, b"ROLLBACK TO operation", &core.undo)
    if rc == GC_OK:
        rc = prepare(core, core.batch_count_sql, &core.count_batch)
    if rc == GC_OK:
        rc = prepare(core, core.batch_read_sql, &core.read_batch)
    if rc == GC_OK:
        rc = prepare(core, core.event_insert_sql, &core.event_insert)
    if rc == GC_OK:
        rc = prepare(core, core.head_move_sql, &core.head_move)
    if rc == GC_OK:
        for i in range(core.programs_count):
            for k in range(core.programs[i].steps_count):
                step = &core.programs[i].steps[k]
                if step.same != NULL:
                    step.statement = step.same.statement
                else:
                    rc = prepare(core, step.sql, &step.statement)
                if rc != GC_OK:
                    break
                step.writes = not gc_stmt_readonly(step.statement) or step.mode == EMIT
            if rc != GC_OK:
                break
    if rc == GC_OK:
        if gc_step(core.read_batch) == GC_ROW:
            core.batches = gc_column_int64(core.read_batch, 0)
        rc = gc_reset(core.read_batch)
    if rc != GC_OK:
        if core.db != NULL:
            copy_text(core.error, gc_errmsg(core.db))
        else:
            copy_text(core.error, b"out of memory")
        close_handle(core)
        return 1
    return 0


cdef int prepare(Core *core, const char *sql, sqlite3_stmt **statement) noexcept nogil:
    # Persistent: else the programs' statements take all of the connection's quick memory, and each
    # run of one goes to malloc (1.2x of a batch, 2026-11).
    return gc_prepare_v3(core.db, sql, -1, GC_PERSISTENT, statement, NULL)


cdef void drop(sqlite3_stmt **statement) noexcept nogil:
    if statement[0] != NULL:
        gc_finalize(statement[0])
        statement[0] = NULL


cdef void close_handle(Core *core) noexcept nogil:
    cdef int i, k
    for i in range(core.programs_count):
        for k in range(core.programs[i].steps_count):
            if core.programs[i].steps[k].same != NULL:
                core.programs[i].steps[k].statement = NULL
            else:
                drop(&core.programs[i].steps[k].statement)
    drop(&core.begin)
    drop(&core.commit)
    drop(&core.rollback)
    drop(&core.savepoint)
    drop(&core.release)
    drop(&core.undo)
    drop(&core.count_batch)
    drop(&core.read_batch)
    drop(&core.event_insert)
    drop(&core.head_move)
    if core.db != NULL:
        gc_close_v2(core.db)
        core.db = NULL


cdef int run_plain(sqlite3_stmt *statement) noexcept nogil:
    cdef int rc = gc_step(statement)
    while rc == GC_ROW:
        rc = gc_step(statement)
    gc_reset(statement)
    return GC_OK if rc == GC_DONE else rc


# -- running a batch -------------------------------------------------------------------------------

cdef int keep_column(Operation *op, sqlite3_stmt *statement, int column, Value *value) noexcept nogil:
    """Copy a column into a register; 0 = fine."""
    cdef int kind = gc_column_type(statement, column)
    cdef const void *data
    value.kind = kind
    value.size = 0             # a NULL where a text was: the chain hashes by size
    if kind == GC_INTEGER:
        value.number = gc_column_int64(statement, column)
    elif kind == GC_FLOAT:
        value.real = gc_column_double(statement, column)
    elif kind == GC_TEXT or kind == GC_BLOB:
        if kind == GC_TEXT:
            data = gc_column_text(statement, column)
        else:
            data = gc_column_blob(statement, column)
        value.size = gc_column_bytes(statement, column)
        value.data = <char *>reserve(op, value.size + 1)
        if value.data == NULL:
            value.kind = GC_NULL
            return 1
        if value.size > 0:
            memcpy(value.data, data, value.size)
    return 0


cdef void bind(sqlite3_stmt *statement, int position, Value *value) noexcept nogil:
    # SQLITE_STATIC: registers live in the operation's arena, which outlives the step
    if value.kind == GC_INTEGER:
        gc_bind_int64(statement, position, value.number)
    elif value.kind == GC_TEXT:
        gc_bind_text(statement, position, value.data, value.size, NULL)
    elif value.kind == GC_BLOB:
        gc_bind_blob(statement, position, value.data, value.size, NULL)
    elif value.kind == GC_FLOAT:
        gc_bind_double(statement, position, value.real)
    else:
        gc_bind_null(statement, position)


cdef int refused(Core *core, Operation *op, int rc) noexcept nogil:
    """SQLite said no; always 1."""
    copy_text(op.message, gc_errmsg(core.db))
    op.code = core.code_constraint if rc & 255 == 19 else core.code_storage
    return 1


cdef inline bint is_text(Value *value) noexcept nogil:
    """Text or NULL."""
    return value.kind == GC_TEXT or value.kind == GC_NULL or value.kind == 0


cdef int emit(Core *core, Operation *op, Program *program, Value *registers, sqlite3_stmt *row) noexcept nogil:
    """One row (kind, type, payload) becomes the session's next event; 0 = fine."""
    cdef Value *mark[MARKS_COUNT]
    cdef Event *event
    cdef gc_sha256 s
    cdef uint8_t *hashes
    cdef const void *texts[3]
    cdef int sizes[3]
    cdef int i, rc
    for i in range(MARKS_COUNT):
        mark[i] = &registers[program.marks[i]]
    if mark[AT_EVENT].kind != GC_INTEGER or mark[AT_NOW].kind != GC_INTEGER or mark[AT_SALT].kind != GC_BLOB \
            or mark[AT_LINK].kind != GC_BLOB or not is_text(mark[AT_RUN]) or not is_text(mark[AT_TASK]) \
            or gc_column_type(row, 1) != GC_TEXT \
            or (gc_column_type(row, 2) != GC_TEXT and gc_column_type(row, 2) != GC_BLOB):
        copy_text(op.message, b"an event lacks its session, time, type or payload")
        op.code = core.code_constraint
        return 1
    event = <Event *>reserve(op, sizeof(Event))
    hashes = <uint8_t *>reserve(op, 64)
    if event == NULL or hashes == NULL:
        return refused(core, op, 7)
    memset(event, 0, sizeof(Event))
    if keep_column(op, row, 0, &event.values[2]) or keep_column(op, row, 1, &event.values[3]) \
            or keep_column(op, row, 2, &event.values[9]):
        return refused(core, op, 7)
    mark[AT_EVENT].number += 1
    event.values[0] = mark[AT_SID][0]
    event.values[1] = mark[AT_EVENT][0]
    event.values[4] = mark[AT_NOW][0]
    event.values[5] = mark[AT_RUN][0]
    event.values[6] = mark[AT_TASK][0]
    event.values[7] = mark[AT_ATTEMPT][0]
    event.values[8] = mark[AT_TRACE][0]
    event.values[9].kind = GC_BLOB
    gc_sha256_begin(&s)
    gc_sha256_add(&s, mark[AT_SALT].data, mark[AT_SALT].size)
    gc_sha256_add(&s, event.values[9].data, event.values[9].size)
    gc_sha256_end(&s, hashes)
    texts[0], texts[1], texts[2] = event.values[3].data, mark[AT_RUN].data, mark[AT_TASK].data
    sizes[0], sizes[1], sizes[2] = event.values[3].size, mark[AT_RUN].size, mark[AT_TASK].size
    hash_link(hashes + 32, mark[AT_LINK].data, mark[AT_LINK].size, mark[AT_EVENT].number, mark[AT_NOW].number,
              texts, sizes, hashes, 32)
    mark[AT_LINK].kind = GC_BLOB
    mark[AT_LINK].size = 32
    mark[AT_LINK].data = <char *>(hashes + 32)
    bind(core.event_insert, 1, &event.values[0])
    bind(core.event_insert, 2, &event.values[1])
    bind(core.event_insert, 3, &event.values[2])
    bind(core.event_insert, 4, &event.values[3])
    bind(core.event_insert, 5, &event.values[4])
    bind(core.event_insert, 6, mark[AT_TID])
    bind(core.event_insert, 7, &event.values[7])
    bind(core.event_insert, 8, &event.values[9])
    gc_bind_blob(core.event_insert, 9, hashes, 32, NULL)
    rc = run_plain(core.event_insert)
    if rc != GC_OK:
        return refused(core, op, rc)
    if op.last_event == NULL:
        op.events = event
    else:
        op.last_event.next = event
    op.last_event = event
    return 0


cdef int move_head(Core *core, Operation *op, Program *program, Value *registers) noexcept nogil:
    cdef int rc
    bind(core.head_move, 1, &registers[program.marks[AT_EVENT]])
    bind(core.head_move, 2, &registers[program.marks[AT_LINK]])
    bind(core.head_move, 3, &registers[program.marks[AT_NOW]])
    bind(core.head_move, 4, &registers[program.marks[AT_SID]])
    rc = run_plain(core.head_move)
    return refused(core, op, rc) if rc != GC_OK else 0


cdef int run_step(Core *core, Operation *op, Program *program, Step *step, Value *registers, int *rows) noexcept nogil:
    """Run one statement to its end; 0 = fine, 1 = SQLite said no (op.message)."""
    cdef int i, rc
    cdef sqlite3_stmt *statement = step.statement
    for i in range(step.binds):
        bind(statement, i + 1, &registers[step.bind_slots[i]])
    rows[0] = 0
    if step.writes:
        op.wrote = 1
    rc = gc_step(statement)
    while rc == GC_ROW:
        rows[0] += 1
        if step.mode == EMIT:
            if emit(core, op, program, registers, statement):
                gc_reset(statement)
                return 1
        else:
            for i in range(step.columns):
                if keep_column(op, statement, i, &registers[step.column_slots[i]]):
                    gc_reset(statement)
                    return refused(core, op, 7)
        rc = gc_step(statement)
    if rc != GC_DONE:
        refused(core, op, rc)
        gc_reset(statement)
        return 1
    gc_reset(statement)
    return 0


cdef int run_parts(Core *core, Operation *op) noexcept nogil:
    """Run an operation's parts; 0 = done, 1 = failed (op.code)."""
    cdef int p, k, rows, ended = 0
    cdef Part *part
    cdef Program *program
    cdef Step *step
    cdef Event *before
    for p in range(op.parts_count):
        part = &op.parts[p]
        program = &core.programs[part.program]
        memset(part.registers, 0, program.slots * sizeof(Value))
        memcpy(part.registers, part.parameters, program.parameters * sizeof(Value))
    for p in range(op.parts_count):
        part = &op.parts[p]
        program = &core.programs[part.program]
        before = op.last_event
        k = 0
        while k < program.steps_count:
            step = &program.steps[k]
            k += 1
            if run_step(core, op, program, step, part.registers, &rows):
                return 1
            if step.mode == RUN or step.mode == EMIT:
                continue
            if (step.mode == EXPECT and rows == 0) or (step.mode == REFUSE and rows):
                op.code = step.code
                return 1
            if step.mode == STOP and rows:
                ended = 1
                break
            if step.mode == NEED and rows == 0:
                k = step.skip
        if op.last_event != before and move_head(core, op, program, part.registers):
            return 1
        if ended:
            break
    return 0


cdef void fail_all(Operation *batch, int code, const char *message) noexcept nogil:
    while batch != NULL:
        batch.code = code
        batch.events = NULL
        batch.last_event = NULL
        copy_text(batch.message, message)
        batch = batch.next


cdef int run_one(Core *core, Operation *op, int careful) noexcept nogil:
    """One operation: 0 = done or failed alone, 1 = the transaction is gone, 2 = run again, carefully."""
    op.code = 0
    op.wrote = 0
    op.events = NULL
    op.last_event = NULL
    op.message[0] = 0
    if careful and run_plain(core.savepoint) != GC_OK:
        return 1
    if run_parts(core, op):
        op.events = NULL
        op.last_event = NULL
        if gc_get_autocommit(core.db):
            return 1
        if careful:
            if run_plain(core.undo) != GC_OK:
                return 1
        elif op.wrote:
            return 2
    return careful and run_plain(core.release) != GC_OK


cdef int run_all(Core *core, Operation *batch, int careful) noexcept nogil:
    """Every operation of the batch; answers as run_one."""
    cdef int rc
    while batch != NULL:
        rc = run_one(core, batch, careful)
        if rc:
            return rc
        batch = batch.next
    return 0


cdef void run_batch(Core *core, Operation *batch) noexcept nogil:
    """One transaction; afterwards every operation of the batch has its answer."""
    cdef int rc
    cdef int64_t expected, began
    if core.broken:
        if open_handle(core):
            fail_all(batch, core.code_storage, core.error)
            return
        core.broken = 0
    rc = run_plain(core.begin) != GC_OK
    if rc == 0:
        rc = run_all(core, batch, 0)
        if rc == 2:
            rc = run_plain(core.rollback) != GC_OK or run_plain(core.begin) != GC_OK or run_all(core, batch, 1)
    if rc:
        copy_text(core.error, gc_errmsg(core.db))
        if not gc_get_autocommit(core.db) and run_plain(core.rollback) != GC_OK:
            close_handle(core)
            core.broken = 1
        fail_all(batch, core.code_storage, core.error)
        return
    rc = run_plain(core.count_batch)
    expected = core.batches + 1
    began = gc_now_ns()
    if rc == GC_OK and core.fail_commit != 2:
        rc = run_plain(core.commit)
    copy_text(core.error, gc_errmsg(core.db))
    if core.fail_commit:
        copy_text(core.error, b"a test asked for this failure")
        rc = GC_IOERR
        core.fail_commit = 0
    if rc == GC_OK:
        core.batches = expected
        core.flush_ns_last = gc_now_ns() - began
        core.flush_ns_sum += core.flush_ns_last
        return
    # Nobody knows what reached the disk: only the reopened file can tell.
    close_handle(core)
    if open_handle(core):
        core.broken = 1
        fail_all(batch, core.code_unknown, core.error)
    elif core.batches != expected:
        fail_all(batch, core.code_storage, core.error)


cdef void checkpoint(Core *core, int idle) noexcept nogil:
    """Fold the log into the file: whatever is new when idle, else in steps, so that each stall is short.

    PASSIVE waits for nobody. Only a log over its bound, which readers have kept from beginning anew,
    is worth a wait for them, and then once a step.
    """
    cdef int grown = core.wal_pages - core.checkpointed
    if core.broken or core.db == NULL or grown <= 0 or (grown < core.checkpoint_pages and not idle):
        return
    if core.wal_pages > core.wal_pages_max:
        gc_busy_timeout(core.db, core.checkpoint_wait_ms)
        gc_exec(core.db, b"PRAGMA wal_checkpoint(RESTART)", NULL, NULL, NULL)
        gc_busy_timeout(core.db, core.busy_ms_max)
    else:
        gc_exec(core.db, b"PRAGMA wal_checkpoint(PASSIVE)", NULL, NULL, NULL)
    core.checkpointed = core.wal_pages


cdef Operation *take(Core *core) noexcept nogil:
    """Cut up to batch_max operations off the queue, late ones to its end; the mutex is held."""
    cdef Operation *heads[2]
    cdef Operation *tails[2]
    cdef Operation *op
    cdef int n = 0
    heads[0] = heads[1] = tails[0] = tails[1] = NULL
    while n < core.batch_max and core.first != NULL:
        op = core.first
        core.first = op.next
        op.next = NULL
        if heads[op.late] == NULL:
            heads[op.late] = op
        else:
            tails[op.late].next = op
        tails[op.late] = op
        n += 1
    if core.first == NULL:
        core.last = NULL
    core.batches_run += n > 0
    core.operations_run += n
    if heads[0] == NULL:
        return heads[1]
    tails[0].next = heads[1]
    return heads[0]


cdef void run_queued(Core *core) noexcept nogil:
    """One batch on the calling thread; for writers without a thread."""
    cdef Operation *batch = take(core)
    if batch != NULL:
        run_batch(core, batch)
        hand_over(core, batch)
        checkpoint(core, 0)


cdef void hand_over(Core *core, Operation *batch) noexcept nogil:
    """Put a batch on the done list, in commit order; the mutex is held."""
    if core.done_first == NULL:
        core.done_first = batch
    else:
        core.done_last.next = batch
    while batch.next != NULL:
        batch = batch.next
    core.done_last = batch


cdef void *thread_main(void *argument) noexcept nogil:
    cdef Core *core = <Core *>argument
    cdef Operation *batch
    cdef char one = 1
    pthread_mutex_lock(&core.mutex)
    while True:
        while core.first == NULL and not core.closing:
            if gc_wait_ms(&core.condition, &core.mutex, IDLE_MS if core.wal_pages != core.checkpointed else 3600000):
                pthread_mutex_unlock(&core.mutex)
                checkpoint(core, 1)
                pthread_mutex_lock(&core.mutex)
        batch = take(core)
        if batch == NULL:
            break
        pthread_mutex_unlock(&core.mutex)
        run_batch(core, batch)
        pthread_mutex_lock(&core.mutex)
        hand_over(core, batch)
        pthread_mutex_unlock(&core.mutex)
        write(core.wake_fd, &one, 1)
        checkpoint(core, 0)
        pthread_mutex_lock(&core.mutex)
    pthread_mutex_unlock(&core.mutex)
    return NULL


# -- the door to Python ----------------------------------------------------------------------------

cdef int from_python(object item, Operation *op, Value *value) except -1:
    cdef Py_ssize_t size
    cdef const char *data
    if item is None:
        value.kind = GC_NULL
    elif isinstance(item, int):
        value.kind = GC_INTEGER
        value.number = item
    elif isinstance(item, (str, bytes)):
        if isinstance(item, str):
            value.kind = GC_TEXT
            data = PyUnicode_AsUTF8AndSize(item, &size)
        else:
            value.kind = GC_BLOB
            data = <bytes>item
            size = len(<bytes>item)
        if size > 0x7FFFFFF0:
            raise ValueError("a parameter is over 2 GiB")
        value.size = <int>size
        value.data = <char *>reserve(op, size + 1)
        if value.data == NULL:
            raise MemoryError
        memcpy(value.data, data, size)
    elif isinstance(item, float):
        value.kind = GC_FLOAT
        value.real = item
    else:
        raise TypeError(f"a parameter is a {type(item).__name__}; int, str, bytes, float or None")
    return 0


cdef object to_python(Value *value):
    if value.kind == GC_INTEGER:
        return value.number
    if value.kind == GC_TEXT:
        # a CAST can make text of any bytes; an answer must never be lost over them
        return value.data[:value.size].decode("utf-8", "replace")
    if value.kind == GC_BLOB:
        return <bytes>value.data[:value.size]
    if value.kind == GC_FLOAT:
        return value.real
    return None


def sha256(bytes data, bint plain=False):
    """SHA-256 of ``data``, as the chain computes it; ``plain`` leaves out the CPU's own rounds."""
    cdef gc_sha256 s
    cdef uint8_t out[32]
    gc_sha256_setup(plain)
    gc_sha256_begin(&s)
    gc_sha256_add(&s, <char *>data, len(data))
    gc_sha256_end(&s, out)
    gc_sha256_setup(0)
    return <bytes>(<char *>out)[:32]


def attach():
    """Fetch the routine table of apsw's own SQLite; idempotent. Raises RuntimeError when it cannot serve."""
    if gc_table_complete():
        return
    import apsw

    connection = apsw.Connection(":memory:")
    try:
        connection.enable_load_extension(True)
        connection.load_extension(__file__, "goclaw_capture")
    except Exception as error:
        raise RuntimeError(f"apsw's SQLite does not load the native writer: {error}") from error
    finally:
        connection.close()
    if not gc_table_complete():
        raise RuntimeError("apsw's SQLite lacks a routine that the native writer needs")
    if gc_libversion_number() < LIBRARY_VERSION_MIN:
        raise RuntimeError(f"apsw's SQLite is version {gc_libversion_number()}, too old for the native writer")
    if gc_sourceid().decode() != apsw.sqlite3_sourceid():
        raise RuntimeError("the captured routine table belongs to another SQLite than apsw's")


cdef tuple MARKS = ("sid", "event_id", "salt", "link", "now", "tid", "run_id", "task_id", "attempt", "trace")


@cython.final
@cython.auto_pickle(False)
cdef class Writer:
    """See goclaw/_fast/writer.pyi."""

    cdef Core *core
    cdef int threaded
    cdef int pid
    cdef int pending_max
    cdef int64_t next_ticket
    cdef list codes
    cdef dict takes            # of each program: its index, and its parameters in order
    cdef readonly int wake_fd

    def __cinit__(self):
        self.core = <Core *>calloc(1, sizeof(Core))
        if self.core == NULL:
            raise MemoryError
        self.wake_fd = -1

    def __init__(self, str path, list programs, dict statements, str pragmas, *, int batch_max, int pending_max,
                 int busy_ms_max, int64_t wal_bytes_max, int64_t checkpoint_bytes, int checkpoint_wait_ms,
                 bint threaded):
        cdef Core *core = self.core
        if core.path != NULL:
            raise RuntimeError("already open")
        attach()
        self.pid = getpid()
        self.pending_max = pending_max
        self.next_ticket = 1
        self.codes = ["storage_failed", "constraint", "outcome_unknown"]
        self.takes = {}
        core.code_storage = 1
        core.code_constraint = 2
        core.code_unknown = 3
        core.batch_max = batch_max
        core.busy_ms_max = busy_ms_max
        core.wal_pages_max = <int>(wal_bytes_max // PAGE_BYTES)
        core.checkpoint_pages = <int>(checkpoint_bytes // PAGE_BYTES)
        core.checkpoint_wait_ms = checkpoint_wait_ms
        core.path = keep(path)
        core.pragmas = keep(pragmas)
        core.event_insert_sql = keep(statements["event_insert"])
        core.head_move_sql = keep(statements["head_move"])
        core.batch_count_sql = keep(statements["batch_count"])
        core.batch_read_sql = keep(statements["batch_read"])
        core.wake_fd = -1
        self._load(programs)
        with nogil:
            failed = open_handle(core)
        if failed:
            raise RuntimeError(core.error.decode(errors="replace"))
        self._resolve(programs)
        pthread_mutex_init(&core.mutex, NULL)
        pthread_cond_init(&core.condition, NULL)
        self.wake_fd, core.wake_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(core.wake_fd, False)
        self.threaded = threaded
        if threaded:
            if gc_thread_start(&core.thread, thread_main, core):
                raise RuntimeError("the writer's thread does not start")
        core.running = 1

    cdef _load(self, list programs):
        cdef Core *core = self.core
        cdef Program *program
        cdef int i, k, at, step
        first = {}  # fragments are parts of many programs: half of all texts come again
        core.programs = <Program *>zeroed(len(programs), sizeof(Program))
        core.programs_count = <int>len(programs)
        for i, (name, parameters, steps, _returns, late) in enumerate(programs):
            self.takes[name] = i, tuple(parameters)
            program = &core.programs[i]
            program.parameters = <int>len(parameters)
            program.late = late
            program.steps = <Step *>zeroed(len(steps), sizeof(Step))
            program.steps_count = <int>len(steps)
            for k, (mode, code, sql, skip) in enumerate(steps):
                program.steps[k].mode = mode
                program.steps[k].skip = skip
                program.steps[k].sql = keep(sql)
                at, step = first.setdefault(sql, (i, k))
                if (at, step) != (i, k):
                    program.steps[k].same = &core.programs[at].steps[step]
                if code is not None:
                    if code not in self.codes:
                        self.codes.append(code)
                    program.steps[k].code = self.codes.index(code) + 1

    cdef _resolve(self, list programs):
        """Names become register numbers, once."""
        cdef Program *program
        cdef Step *step
        cdef int i, k, n
        for i, (name, parameters, _steps, returns, _late) in enumerate(programs):
            program = &self.core.programs[i]
            slots = {parameter: index for index, parameter in enumerate(parameters)}
            for k in range(program.steps_count):
                step = &program.steps[k]
                step.binds = gc_bind_parameter_count(step.statement)
                step.bind_slots = <int *>zeroed(step.binds, sizeof(int))
                for n in range(step.binds):
                    register = gc_bind_parameter_name(step.statement, n + 1).decode()[1:]
                    if register not in slots:
                        raise ValueError(f"{name}, step {k + 1}: nothing sets :{register}")
                    step.bind_slots[n] = slots[register]
                step.columns = gc_column_count(step.statement)
                if step.mode == EMIT:
                    if step.columns != EMIT_COLUMNS:
                        raise ValueError(f"{name}, step {k + 1}: an event is kind, type and payload")
                    for n in range(MARKS_COUNT):
                        if MARKS[n] not in slots:
                            raise ValueError(f"{name}, step {k + 1}: an event needs :{MARKS[n]}")
                        program.marks[n] = slots[MARKS[n]]
                    continue
                step.column_slots = <int *>zeroed(step.columns, sizeof(int))
                for n in range(step.columns):
                    register = gc_column_name(step.statement, n).decode()
                    step.column_slots[n] = slots.setdefault(register, len(slots))
            program.slots = <int>len(slots)
            program.returns = <int *>zeroed(len(returns), sizeof(int))
            program.returns_count = <int>len(returns)
            for n, register in enumerate(returns):
                if register not in slots:
                    raise ValueError(f"{name}: nothing sets the returned {register}")
                program.returns[n] = slots[register]

    def bind(self, str program not None, dict arguments not None):
        """See the stub."""
        cdef tuple names, values
        cdef PyObject *found
        cdef object value
        cdef Py_ssize_t i, given = 0
        index, names = self.takes[program]
        values = PyTuple_New(len(names))
        for i in range(len(names)):
            found = PyDict_GetItem(arguments, names[i])
            value = None
            if found != NULL:
                given += 1
                value = <object>found
            Py_INCREF(value)
            PyTuple_SET_ITEM(values, i, value)
        if given != len(arguments):
            raise KeyError(next(name for name in arguments if name not in names))
        return index, values

    def submit(self, tuple parts, bint live=False):
        """See the stub."""
        cdef Core *core = self.core
        cdef Operation *op
        cdef Program *program
        cdef Part *part
        cdef int p, n
        self._check()
        if core.pending >= (2 * self.pending_max if live else self.pending_max):
            return 0
        op = begin(core)
        if op == NULL:
            raise MemoryError
        try:
            op.live = live
            op.parts_count = <int>len(parts)
            op.parts = <Part *>reserve(op, len(parts) * sizeof(Part))
            if op.parts == NULL:
                raise MemoryError
            for p in range(op.parts_count):
                index, values = parts[p]
                if not 0 <= index < core.programs_count:
                    raise IndexError("no such program")
                program = &core.programs[index]
                if len(values) != program.parameters:
                    raise TypeError(f"program {index} takes {program.parameters} parameters, not {len(values)}")
                part = &op.parts[p]
                part.program = index
                part.parameters = <Value *>reserve(op, program.parameters * sizeof(Value))
                part.registers = <Value *>reserve(op, program.slots * sizeof(Value))
                if part.parameters == NULL or part.registers == NULL:
                    raise MemoryError
                memset(part.parameters, 0, program.parameters * sizeof(Value))
                if program.late:
                    op.late = 1
                for n in range(program.parameters):
                    from_python(values[n], op, &part.parameters[n])
        except BaseException:
            forget(core, op)
            raise
        op.ticket = self.next_ticket
        self.next_ticket += 1
        # The mutex is held only for pointer moves, never over SQL: no need to give up the GIL.
        pthread_mutex_lock(&core.mutex)
        if core.last == NULL:
            core.first = op
        else:
            core.last.next = op
        core.last = op
        core.pending += 1
        pthread_cond_signal(&core.condition)
        pthread_mutex_unlock(&core.mutex)
        return op.ticket

    def drain(self):
        """See the stub."""
        cdef Core *core = self.core
        cdef Operation *op
        cdef Operation *next
        cdef Event *event
        cdef Program *program
        cdef int p, n, count = 0
        cdef char[64] woken        # what is left over wakes once more
        cdef tuple values
        self._check(True)
        read(self.wake_fd, woken, sizeof(woken))
        pthread_mutex_lock(&core.mutex)
        op = core.done_first
        core.done_first = NULL
        core.done_last = NULL
        pthread_mutex_unlock(&core.mutex)
        done = []
        while op != NULL:
            events = []
            event = op.events
            while event != NULL:
                events.append((
                    to_python(&event.values[0]), to_python(&event.values[1]), to_python(&event.values[2]),
                    to_python(&event.values[3]), to_python(&event.values[4]), to_python(&event.values[5]),
                    to_python(&event.values[6]), to_python(&event.values[7]), to_python(&event.values[8]),
                    to_python(&event.values[9]),
                ))
                event = event.next
            returns = []
            for p in range(0 if op.code else op.parts_count):
                program = &core.programs[op.parts[p].program]
                values = PyTuple_New(program.returns_count)
                for n in range(program.returns_count):
                    value = to_python(&op.parts[p].registers[program.returns[n]])
                    Py_INCREF(value)
                    PyTuple_SET_ITEM(values, n, value)
                returns.append(values)
            code = self.codes[op.code - 1] if op.code else None
            message = op.message.decode(errors="replace") if op.message[0] else ""
            done.append((op.ticket, code, message, returns, events))
            next = op.next
            forget(core, op)
            op = next
            count += 1
        pthread_mutex_lock(&core.mutex)
        core.pending -= count
        pthread_mutex_unlock(&core.mutex)
        return done

    def step(self):
        """See the stub."""
        cdef Core *core = self.core
        cdef bint waits
        self._check()
        if self.threaded:
            raise RuntimeError("step() is for a writer without a thread")
        waits = core.first != NULL
        with nogil:
            run_queued(core)
        return waits

    def stats(self):
        """See the stub."""
        cdef Core *core = self.core
        self._check()
        pthread_mutex_lock(&core.mutex)
        answer = (core.batches_run, core.operations_run, core.pending, core.flush_ns_last, core.flush_ns_sum,
                  core.wal_pages)
        pthread_mutex_unlock(&core.mutex)
        return answer

    def fail_next_commit(self, bint after):
        """See the stub."""
        self._check()
        self.core.fail_commit = 1 if after else 2

    def close(self):
        """See the stub."""
        cdef Core *core = self.core
        if not core.running or getpid() != self.pid:
            return
        core.running = 0
        if self.threaded:
            pthread_mutex_lock(&core.mutex)
            core.closing = 1
            pthread_cond_signal(&core.condition)
            pthread_mutex_unlock(&core.mutex)
            with nogil:
                pthread_join(core.thread, NULL)
        with nogil:
            while core.first != NULL:
                run_queued(core)
            checkpoint(core, 1)
            close_handle(core)

    cdef int _check(self, bint closed=False) except -1:
        if getpid() != self.pid:
            raise RuntimeError("the writer does not survive a fork; open it in this process")
        if not self.core.running and not closed:
            raise RuntimeError("the writer is closed")
        return 0

    def __dealloc__(self):
        cdef Core *core = self.core
        cdef Operation *op
        cdef int i, k
        if core == NULL:
            return
        if getpid() == self.pid:
            if core.running and self.threaded:
                # close() was forgotten: the thread must not outlive its memory
                pthread_mutex_lock(&core.mutex)
                core.closing = 1
                pthread_cond_signal(&core.condition)
                pthread_mutex_unlock(&core.mutex)
                pthread_join(core.thread, NULL)
            close_handle(core)
        while core.first != NULL:
            op = core.first
            core.first = op.next
            forget(core, op)
        while core.done_first != NULL:
            op = core.done_first
            core.done_first = op.next
            forget(core, op)
        while core.spare != NULL:
            op = core.spare
            core.spare = op.next
            free(op)
        for i in range(core.programs_count):
            for k in range(core.programs[i].steps_count):
                free(core.programs[i].steps[k].sql)
                free(core.programs[i].steps[k].bind_slots)
                free(core.programs[i].steps[k].column_slots)
            free(core.programs[i].steps)
            free(core.programs[i].returns)
        free(core.programs)
        free(core.path)
        free(core.event_insert_sql)
        free(core.head_move_sql)
        free(core.batch_count_sql)
        free(core.batch_read_sql)
        free(core.pragmas)
        if self.wake_fd >= 0 and getpid() == self.pid:
            close(core.wake_fd)
            close(self.wake_fd)
            pthread_cond_destroy(&core.condition)
            pthread_mutex_destroy(&core.mutex)
        free(core)


cdef void *zeroed(size_t count, size_t size) except NULL:
    cdef void *memory = calloc(count + 1, size)
    if memory == NULL:
        raise MemoryError
    return memory


cdef struct PackedRow:         # as frame.pyx reads it; the texts follow: type, run, task, trace, payload
    int64_t event_id
    int64_t at_ms
    int64_t attempt
    int64_t kind
    int sizes[5]
    int padding


@cython.final
@cython.auto_pickle(False)
cdef class Reader:
    """See goclaw/_fast/writer.pyi."""

    cdef sqlite3 *db
    cdef sqlite3_stmt *statement
    cdef char *buffer
    cdef Py_ssize_t room

    def __init__(self, str path, str sql, int busy_ms):
        attach()
        if self.db != NULL:
            raise RuntimeError("already open")
        cdef bytes name = path.encode()
        cdef bytes text = sql.encode()
        cdef int rc = gc_open_v2(name, &self.db, GC_READ_FLAGS, NULL)
        if rc == GC_OK:
            gc_busy_timeout(self.db, busy_ms)
            gc_db_config(self.db, GC_ENABLE_QPSG, 1, NULL)
            rc = gc_prepare_v3(self.db, text, -1, GC_PERSISTENT, &self.statement, NULL)
        if rc != GC_OK:
            message = gc_errmsg(self.db).decode(errors="replace") if self.db != NULL else "out of memory"
            self.close()
            raise RuntimeError(message)

    def page(self, int64_t sid, int64_t cursor, int rows_max, int64_t bytes_max, int64_t row_bytes):
        """See the stub."""
        if self.statement == NULL:
            raise RuntimeError("the reader is closed")
        cdef int rc, rows = 0
        cdef int64_t first = 0, last = cursor, counted = 0
        cdef Py_ssize_t size = 0
        with nogil:
            gc_bind_int64(self.statement, 1, sid)
            gc_bind_int64(self.statement, 2, cursor)
            gc_bind_int64(self.statement, 3, rows_max)
            rc = gc_step(self.statement)
            while rc == GC_ROW:
                size = self.pack(size, &last)
                if size < 0:
                    break
                if rows == 0:
                    first = last
                rows += 1
                counted += gc_column_bytes(self.statement, 8) + row_bytes
                if counted >= bytes_max:
                    rc = GC_DONE
                    break
                rc = gc_step(self.statement)
            gc_reset(self.statement)
        if size < 0:
            raise MemoryError
        if rc != GC_DONE:
            raise RuntimeError(gc_errmsg(self.db).decode(errors="replace"))
        return PyBytes_FromStringAndSize(self.buffer, size), first, last

    cdef Py_ssize_t pack(self, Py_ssize_t size, int64_t *last) noexcept nogil:
        """Append the row that the statement stands on; the new size, -1 without memory."""
        cdef PackedRow row
        cdef const void *texts[5]
        cdef Py_ssize_t needed = size + sizeof(PackedRow)
        cdef char *larger
        cdef int i, column
        memset(&row, 0, sizeof(PackedRow))
        row.event_id = last[0] = gc_column_int64(self.statement, 0)
        row.kind = gc_column_int64(self.statement, 1)
        row.at_ms = gc_column_int64(self.statement, 3)
        row.attempt = gc_column_int64(self.statement, 6)
        for i in range(5):
            # type, run_id, task_id, trace, payload
            column = 2 if i == 0 else (i + 3 if i < 3 else i + 4)
            texts[i] = gc_column_blob(self.statement, column)
            row.sizes[i] = gc_column_bytes(self.statement, column)
            needed += row.sizes[i]
        if needed > self.room:
            larger = <char *>realloc(self.buffer, 2 * needed)
            if larger == NULL:
                return -1
            self.buffer = larger
            self.room = 2 * needed
        memcpy(self.buffer + size, &row, sizeof(PackedRow))
        size += sizeof(PackedRow)
        for i in range(5):
            if row.sizes[i]:
                memcpy(self.buffer + size, texts[i], row.sizes[i])
                size += row.sizes[i]
        return size

    def close(self):
        """See the stub."""
        drop(&self.statement)
        if self.db != NULL:
            gc_close_v2(self.db)
            self.db = NULL

    def __dealloc__(self):
        drop(&self.statement)
        if self.db != NULL:
            gc_close_v2(self.db)
        free(self.buffer)


cdef char *keep(str text) except NULL:
    cdef bytes data = text.encode()
    cdef char *copy = <char *>malloc(len(data) + 1)
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <char *>data, len(data) + 1)
    return copy


gc_sha256_setup(0)
