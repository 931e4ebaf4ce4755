"""Running a batch: operations in one transaction, their events, and what an error at COMMIT left.

What is submitted while a batch runs joins it, until nobody waits or it is full; and a batch waits a
little, an eighth of a flush at a time, for those whom the last one answered while they keep coming.
Else the lanes fall in two halves that never meet, and each pays for a flush of its own.

An operation that fails undoes nothing but itself: one that failed before it wrote leaves nothing to
undo; after the first that failed later, the batch is rolled back and run again with a SAVEPOINT each
(a SAVEPOINT copies every page it touches: 1.6x of a cycle, 2026-11).
"""

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
            if step.mode == MOVE:
                before = op.last_event
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


cdef Operation *joining(Core *core, Batch *batch, Operation *done) noexcept nogil:
    """The first that came after the last early one that is done; NULL where none did."""
    pthread_mutex_lock(&core.mutex)
    take(core, batch)
    pthread_mutex_unlock(&core.mutex)
    return done.next if done != NULL else batch.first[0]


cdef int run_all(Core *core, Batch *batch, int careful) noexcept nogil:
    """Every operation of the batch, and what comes meanwhile; answers as run_one."""
    cdef Operation *op = batch.first[0]
    cdef Operation *done = NULL
    cdef int64_t nap = min(core.flush_ns_last // LINGER_SHARE, LINGER_NS_MAX)
    cdef int64_t patience = core.flush_ns_last // 2 if core.lingers and nap >= LINGER_NS_MIN else 0
    cdef int rc
    while True:
        while op != NULL:
            rc = run_one(core, op, careful)
            if rc:
                return rc
            done = op
            op = op.next
        op = joining(core, batch, done)
        if op == NULL and patience > 0 and batch.count < core.expected:
            gc_nap_ns(nap)
            patience -= nap
            op = joining(core, batch, done)
        if op == NULL:
            break
    op = batch.first[1]
    while op != NULL:
        rc = run_one(core, op, careful)
        if rc:
            return rc
        op = op.next
    return 0


cdef Operation *joined(Batch *batch) noexcept nogil:
    """All operations of the batch in the order in which they run."""
    if batch.first[0] == NULL:
        return batch.first[1]
    batch.last[0].next = batch.first[1]
    return batch.first[0]


cdef Operation *run_batch(Core *core, Batch *batch) noexcept nogil:
    """One transaction; afterwards every operation of the batch has its answer. They are answered."""
    cdef int rc
    cdef int64_t expected, began
    if core.broken:
        if open_handle(core):
            fail_all(joined(batch), core.code_storage, core.error)
            return joined(batch)
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
        fail_all(joined(batch), core.code_storage, core.error)
        return joined(batch)
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
        return joined(batch)
    # Nobody knows what reached the disk: only the reopened file can tell.
    close_handle(core)
    if open_handle(core):
        core.broken = 1
        fail_all(joined(batch), core.code_unknown, core.error)
    elif core.batches != expected:
        fail_all(joined(batch), core.code_storage, core.error)
    return joined(batch)


cdef void take(Core *core, Batch *batch) noexcept nogil:
    """Move what is queued into the batch, up to batch_max operations; the mutex is held."""
    cdef Operation *op
    if core.first == NULL or batch.count == core.batch_max:
        return
    core.batches_run += batch.count == 0
    core.operations_run -= batch.count
    while batch.count < core.batch_max and core.first != NULL:
        op = core.first
        core.first = op.next
        op.next = NULL
        if batch.first[op.late] == NULL:
            batch.first[op.late] = op
        else:
            batch.last[op.late].next = op
        batch.last[op.late] = op
        batch.count += 1
        core.queued -= 1
    core.operations_run += batch.count
    if core.first == NULL:
        core.last = NULL


cdef void run_queued(Core *core) noexcept nogil:
    """One batch on the calling thread; for writers without a thread."""
    cdef Batch batch
    memset(&batch, 0, sizeof(Batch))
    take(core, &batch)
    if batch.count:
        hand_over(core, run_batch(core, &batch), batch.count)
        checkpoint(core, 0)


cdef void hand_over(Core *core, Operation *batch, int count) noexcept nogil:
    """Put a batch on the done list, in commit order; the mutex is held."""
    core.expected = core.queued + count  # who is answered now comes back soon, as a rule
    if core.done_first == NULL:
        core.done_first = batch
    else:
        core.done_last.next = batch
    while batch.next != NULL:
        batch = batch.next
    core.done_last = batch
