/* The slots we use of SQLite's sqlite3_api_routines, by number.

   The table is append-only ABI (sqlite.org/c3ref/load_extension.html): a slot never moves. We get it
   from the library that apsw carries, by being loaded once as an extension, so that our own handle
   and apsw's share one SQLite; a second one on the same file would drop its locks in silence.
   Tested against apsw 3.54.1; docs/decisions/0002 tells the story. */
#ifndef GOCLAW_SQLITE_TABLE_H
#define GOCLAW_SQLITE_TABLE_H

#include <stdint.h>
#include <pthread.h>
#include <unistd.h>
#include <time.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

typedef struct sqlite3 sqlite3;
typedef struct sqlite3_stmt sqlite3_stmt;
typedef struct sqlite3_value sqlite3_value;
typedef struct sqlite3_context sqlite3_context;
typedef void (*gc_function)(sqlite3_context *, int, sqlite3_value **);
typedef int (*gc_wal_hook)(void *, sqlite3 *, const char *, int);

static void **gc_table = 0;

#define GC_SLOT(number, result, arguments) ((result(*) arguments)gc_table[number])

#define gc_bind_blob GC_SLOT(2, int, (sqlite3_stmt *, int, const void *, int, void (*)(void *)))
#define gc_bind_double GC_SLOT(3, int, (sqlite3_stmt *, int, double))
#define gc_bind_int64 GC_SLOT(5, int, (sqlite3_stmt *, int, int64_t))
#define gc_bind_null GC_SLOT(6, int, (sqlite3_stmt *, int))
#define gc_bind_parameter_count GC_SLOT(7, int, (sqlite3_stmt *))
#define gc_bind_parameter_name GC_SLOT(9, const char *, (sqlite3_stmt *, int))
#define gc_bind_text GC_SLOT(10, int, (sqlite3_stmt *, int, const char *, int, void (*)(void *)))
#define gc_busy_timeout GC_SLOT(14, int, (sqlite3 *, int))
#define gc_column_blob GC_SLOT(19, const void *, (sqlite3_stmt *, int))
#define gc_column_bytes GC_SLOT(20, int, (sqlite3_stmt *, int))
#define gc_column_count GC_SLOT(22, int, (sqlite3_stmt *))
#define gc_column_double GC_SLOT(27, double, (sqlite3_stmt *, int))
#define gc_column_int64 GC_SLOT(29, int64_t, (sqlite3_stmt *, int))
#define gc_column_name GC_SLOT(30, const char *, (sqlite3_stmt *, int))
#define gc_column_text GC_SLOT(36, const unsigned char *, (sqlite3_stmt *, int))
#define gc_column_type GC_SLOT(38, int, (sqlite3_stmt *, int))
#define gc_errmsg GC_SLOT(53, const char *, (sqlite3 *))
#define gc_exec GC_SLOT(55, int, (sqlite3 *, const char *, int (*)(void *, int, char **, char **), void *, char **))
#define gc_finalize GC_SLOT(57, int, (sqlite3_stmt *))
#define gc_get_autocommit GC_SLOT(60, int, (sqlite3 *))
#define gc_libversion_number GC_SLOT(67, int, (void))
#define gc_reset GC_SLOT(77, int, (sqlite3_stmt *))
#define gc_result_blob GC_SLOT(78, void, (sqlite3_context *, const void *, int, void (*)(void *)))
#define gc_step GC_SLOT(94, int, (sqlite3_stmt *))
#define gc_value_blob GC_SLOT(102, const void *, (sqlite3_value *))
#define gc_value_bytes GC_SLOT(103, int, (sqlite3_value *))
#define gc_value_int64 GC_SLOT(107, int64_t, (sqlite3_value *))
#define gc_value_text GC_SLOT(109, const unsigned char *, (sqlite3_value *))
#define gc_open_v2 GC_SLOT(135, int, (const char *, sqlite3 **, int, const char *))
#define gc_create_function_v2 GC_SLOT(162, int, (sqlite3 *, const char *, int, int, void *, gc_function, gc_function, void (*)(sqlite3_context *), void (*)(void *)))
#define gc_stmt_readonly GC_SLOT(185, int, (sqlite3_stmt *))
#define gc_db_config GC_SLOT(163, int, (sqlite3 *, int, ...))
#define gc_sourceid GC_SLOT(169, const char *, (void))
#define gc_wal_hook_set GC_SLOT(175, void *, (sqlite3 *, gc_wal_hook, void *))
#define gc_close_v2 GC_SLOT(179, int, (sqlite3 *))
#define gc_prepare_v3 GC_SLOT(217, int, (sqlite3 *, const char *, int, unsigned, sqlite3_stmt **, const char **))

static const int gc_slots_used[] = {2, 3, 5, 6, 7, 9, 10, 14, 19, 20, 22, 27, 29, 30, 36, 38, 53, 55, 57, 60, 67,
                                    77, 78, 94, 102, 103, 107, 109, 135, 162, 163, 169, 175, 179, 185, 217};

enum {
    GC_OK = 0,
    GC_IOERR = 10,
    GC_ROW = 100,
    GC_DONE = 101,
    GC_INTEGER = 1,
    GC_FLOAT = 2,
    GC_TEXT = 3,
    GC_BLOB = 4,
    GC_NULL = 5,
    GC_ENABLE_QPSG = 1007,
    GC_PERSISTENT = 1,
    GC_READ_FLAGS = 0x1 /* READONLY */ | 0x8000 /* NOMUTEX */,
    GC_OPEN_FLAGS = 0x2 /* READWRITE, never CREATE */ | 0x8000 /* NOMUTEX: one thread at a time */,
    GC_FUNCTION_FLAGS = 1 /* UTF8 */ | 0x800 /* DETERMINISTIC */ | 0x200000 /* INNOCUOUS */
};

static inline int gc_table_complete(void) {
    if (!gc_table) return 0;
    for (unsigned i = 0; i < sizeof gc_slots_used / sizeof *gc_slots_used; i++)
        if (!gc_table[gc_slots_used[i]]) return 0;
    return 1;
}

/* SQLite calls this when apsw loads the module as an extension; it keeps the table and nothing else. */
__attribute__((visibility("default"))) int goclaw_capture(sqlite3 *db, char **error, void *const *table) {
    (void)db;
    (void)error;
    gc_table = (void **)table;
    return GC_OK;
}

/* The writer's thread takes no signals: Python's handlers belong to the main thread. */
static inline int gc_thread_start(pthread_t *thread, void *(*main)(void *), void *argument) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int result = pthread_create(thread, 0, main, argument);
    pthread_sigmask(SIG_SETMASK, &old, 0);
    return result;
}

static inline int64_t gc_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Waits until signalled or `wait_ms` passed; 1 when the time was up. */
static inline int gc_wait_ms(pthread_cond_t *condition, pthread_mutex_t *mutex, int wait_ms) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    t.tv_sec += wait_ms / 1000 + t.tv_nsec / 1000000000;
    t.tv_nsec %= 1000000000;
    return pthread_cond_timedwait(condition, mutex, &t) == ETIMEDOUT;
}

/* Naps of this thread may be as short as they ask to be; a kernel rounds them to 50 us else. */
static inline void gc_nap_exactly(void) {
#ifdef PR_SET_TIMERSLACK
    prctl(PR_SET_TIMERSLACK, 1000UL, 0, 0, 0);
#endif
}

static inline void gc_nap_ns(int64_t ns) {
    struct timespec t = {0, (long)ns};
    nanosleep(&t, NULL);
}
#endif
