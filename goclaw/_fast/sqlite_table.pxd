"""What native code calls of SQLite and of the system, as sqlite_table.h declares it."""

from libc.stdint cimport int64_t

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
    void gc_nap_exactly()
    void gc_nap_ns(int64_t ns)
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
