"""Pages of events for replay, packed where they are read: no Python object per row.

Owns a reading handle and the rows' layout. Not in here: frames (frame.pyx), which SQL (queries.sql).
"""

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
