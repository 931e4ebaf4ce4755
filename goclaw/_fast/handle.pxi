"""The writing handle: opened with every statement prepared, closed, checkpointed.

Owns the connection, the SQL function of the hash chain and the log's length. Not in here: what runs
on it (batch.pxi).
"""

cdef extern from "sha256.h" nogil:
    ctypedef struct gc_sha256:
        pass
    int gc_sha256_setup(int plain)
    void gc_sha256_begin(gc_sha256 *s)
    void gc_sha256_add(gc_sha256 *s, const void *data, size_t n)
    void gc_sha256_end(gc_sha256 *s, uint8_t *out)


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
