# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, autotestdict=False
"""The one writer: a thread without the GIL that runs programs of SQL in shared transactions.

Owns the thread, group commit, the order of commits, and the door to Python. Not in here: what a
program means (store/queries.sql), who waits for it (store/database.py).

A program is data: steps of SQL that share registers. The thread takes up to `batch_max` operations,
runs them in one transaction (batch.pxi), commits once, and wakes the loop through a pipe. It never
touches Python.
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
from libc.string cimport memcpy, memset, strlen

from goclaw._fast.sqlite_table cimport *

import os

include "operation.pxi"
include "handle.pxi"
include "batch.pxi"


cdef void *thread_main(void *argument) noexcept nogil:
    cdef Core *core = <Core *>argument
    cdef Operation *answered
    cdef Batch batch
    cdef char one = 1
    gc_nap_exactly()
    pthread_mutex_lock(&core.mutex)
    while True:
        while core.first == NULL and not core.closing:
            if gc_wait_ms(&core.condition, &core.mutex, IDLE_MS if core.wal_pages != core.checkpointed else 3600000):
                pthread_mutex_unlock(&core.mutex)
                checkpoint(core, 1)
                pthread_mutex_lock(&core.mutex)
        memset(&batch, 0, sizeof(Batch))
        take(core, &batch)
        if batch.count == 0:
            break
        pthread_mutex_unlock(&core.mutex)
        answered = run_batch(core, &batch)
        pthread_mutex_lock(&core.mutex)
        hand_over(core, answered, batch.count)
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
        self.threaded = core.lingers = threaded
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
        core.queued += 1
        pthread_cond_signal(&core.condition)
        pthread_mutex_unlock(&core.mutex)
        return op.ticket

    def drain(self, int most=0x7FFFFFFF):
        """See the stub."""
        cdef Core *core = self.core
        cdef Operation *op
        cdef Operation *next
        cdef Operation *last
        cdef Event *event
        cdef Program *program
        cdef int p, n, count = 0
        cdef char[64] woken        # what is left over wakes once more
        cdef tuple values
        self._check(True)
        read(self.wake_fd, woken, sizeof(woken))
        pthread_mutex_lock(&core.mutex)
        op = last = core.done_first
        while last != NULL and most > 1:
            most -= 1
            last = last.next
        core.done_first = last.next if last != NULL else NULL
        if core.done_first == NULL:
            core.done_last = NULL
        else:
            last.next = NULL
            write(core.wake_fd, woken, 1)
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


cdef char *keep(str text) except NULL:
    cdef bytes data = text.encode()
    cdef char *copy = <char *>malloc(len(data) + 1)
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <char *>data, len(data) + 1)
    return copy


include "reader.pxi"

gc_sha256_setup(0)
