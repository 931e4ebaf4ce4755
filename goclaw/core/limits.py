"""Every bound in one file: its unit in the name, its reason beside it, its relations asserted.

Owns the defaults of SPEC 12. Not in here: which of them a user may change (``core/config.py``).
"""

from __future__ import annotations

from typing import Final

__all__: list[str] = []  # read as a module: limits.NAME

KIB: Final = 1024
MIB: Final = 1024 * KIB
DAY_MS: Final = 24 * 3600 * 1000

# -- queue -------------------------------------------------------------------------------------
LANES: Final = 4  # bounded by memory of brains and tools, not by cores: attempts mostly wait
LANES_MAX: Final = 1024  # an attempt costs about 50 KiB: more lanes than this is a mistake
LEASE_MS_MIN: Final = 100  # below it a slow flush looks like a dead worker
LEASE_MS_MAX: Final = DAY_MS  # beyond it nobody notices a dead worker
LEASE_MS: Final = 30_000  # long enough for a slow disk, short enough to notice a dead worker
HEARTBEAT_MS: Final = 10_000  # three heartbeats fit in a lease
MAX_ATTEMPTS: Final = 5  # retryable failures
MAX_ATTEMPTS_MAX: Final = 1_000  # a budget beyond this bounds nothing
CRASH_BUDGET: Final = 3  # claims that never ended
POISON: Final = 3  # equal fingerprints in a row
BACKOFF_MS_MIN: Final = 1_000  # base of the exponential backoff
BACKOFF_MS_MAX: Final = 300_000  # its cap
RETRY_AFTER_MS_MAX: Final = DAY_MS  # the far side's own word; beyond it a person should look
BREAKER_TASKS: Final = 3  # tasks with one fingerprint that open a breaker
BREAKER_WINDOW_MS: Final = 600_000  # within this time
BREAKER_PROBE_MS: Final = 10_000  # until the first probe; doubled after each that failed
BREAKER_PROBE_MS_MAX: Final = 600_000  # a far side that is back is noticed within ten minutes
GATE_WAIT_MS: Final = 1_000  # a call inside a run that found its tool's bound used up looks again
GATES_MAX: Final = 1_000  # kinds of work with a bound in config.toml
POOLS_MAX: Final = 1_000  # pools of which it is known when a worker last asked
GATE_LINES_MAX: Final = 256  # lines let in at one look, so that a wide gate blocks nobody
MISFIRE_GRACE_MS: Final = 60_000  # an occurrence this late was missed
TIMEOUT_MS_MAX: Final = 30 * DAY_MS  # of an attempt, within event retention
CALENDAR_MS_MAX: Final = 100 * 366 * DAY_MS  # how far ahead a task may be put off
PROMPT_PARTS_MAX: Final = 1_000  # events of a user's words: they commit in one transaction
SESSION_TASKS_MAX: Final = 1_000  # non-terminal tasks of one session
TOTAL_TASKS_MAX: Final = 1_000_000  # non-terminal tasks in all
COUNTED_MAX: Final = (
    1_000  # tasks before another, when somebody asks: beyond it the sum says little
)
TASKS_MAX: Final = 100_000_000  # the most either bound may be raised to (benches queue 10 million)
STOP_RETRY_MS: Final = 200  # between two tries of an attempt's last word while the daemon stops
FULL_RETRY_MS: Final = 1_000  # a full queue asks to be tried again after this
PRIORITY_MAX: Final = 9
PRIORITY: Final = 5
AGING_FACTOR: Final = 16  # claims per priority level until a waiting head is due (Q-8c)
FAIRNESS_CLAIMS: Final = 256  # the last ones, whose skews `status` tells; work grows by the square
AGING_FACTOR_MAX: Final = 1_000_000  # beyond it there is no aging
CLAIM_MAX: Final = 64  # tasks one worker may claim at once
CLAIM_WAIT_MS_MAX: Final = 30_000  # of a claim that waits for work: within every proxy's patience
CLAIMS_WAITING_MAX: Final = 64  # per connection
CLAIM_BYTES_MAX: Final = 4 * MIB  # payloads of one claim; what is over goes back at once
CLAIM_EFFECTS_BYTES_MAX: Final = 1 * MIB  # of journals in its answer; the rest is asked for
LEASES_MAX: Final = 1_000  # in one heartbeat
WORKER_TASKS_MAX: Final = 10_000  # of external workers, whose facts are kept in memory
VIRTUAL_UNIT: Final = 1 << 20  # fixed point of virtual time: cost of one claim at weight 1
WEIGHT_MAX: Final = 1_000

# -- sizes -------------------------------------------------------------------------------------
FRAME_BYTES_MAX: Final = 8 * MIB  # inbound frame and prompt
PAYLOAD_BYTES_MAX: Final = 1 * MIB  # task payload of a submission
RESULT_BYTES_MAX: Final = 4 * MIB
EVENT_BYTES_MAX: Final = 1 * MIB
KEY_CHARS_MAX: Final = 128  # idempotency key (PROTOCOL 2.5)
JSON_DEPTH_MAX: Final = 256
JSON_NUMBER_CHARS_MAX: Final = 400  # beyond that a number is an attack on the parser
CONFIG_BYTES_MAX: Final = 1 * MIB  # config.toml; a larger file is something else
SMALL_BYTES_MAX: Final = 64 * KIB  # auth.token and the like: a few lines, whoever wrote them
PATH_CHARS_MAX: Final = 4_096  # PATH_MAX of Linux
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of Linux without its final zero
ID_CHARS_MAX: Final = 256  # id of a JSON-RPC request: kept while in flight, echoed in its answer
LABEL_CHARS_MAX: Final = 2_000  # subject, action and resource of a decision
SAID_CHARS_MAX: Final = 200  # of an error or a name inside a sentence
NAMES_SHOWN_MAX: Final = 10  # in one sentence; how many more there are is said
MESSAGE_CHARS_MAX: Final = 4_000  # of an error in a task's events; six bytes of JSON each at most

# -- store -------------------------------------------------------------------------------------
BATCH_OPERATIONS_MAX: Final = 256  # of one transaction: 1 to 256 gave 16x, more gave nothing
PENDING_OPERATIONS_MAX: Final = 4_096  # new work is refused beyond; live attempts have that again
APPLY_MS_MAX: Final = 5  # slice of bulk work, so that nobody waits behind it
CHECKPOINT_BYTES: Final = 8 * MIB  # log between two checkpoints: 2 to 64 MiB tried, shortest stalls
CHECKPOINT_WAIT_MS: Final = 50  # for readers of a log over its bound; a page is read in less
WAL_BYTES_MAX: Final = 64 * MIB  # beyond it a checkpoint waits for readers, so the log begins anew
DELIVERED_MAX: Final = (
    32  # operations the loop resolves in one go: their lanes submit the next meanwhile
)
READ_ROWS_MAX: Final = 256  # rows of one read transaction
READ_BYTES_MAX: Final = 64 * KIB  # bytes of one read transaction
READER_THREADS: Final = 2  # one may be in a slow page while the other answers
READ_AHEAD_PAGES: Final = 8  # for a client that keeps up: one hop to a reader thread costs a page
BUSY_MS_MAX: Final = 5_000  # wait for a foreign lock (sqlite3 shell, backup tool)
SERVICE_PAUSE_MS: Final = 1_000  # a timer or lane that failed begins again: its log stays short

# -- events and rings --------------------------------------------------------------------------
RING_BYTES: Final = 256 * KIB  # per watched session
RING_BYTES_TOTAL: Final = 64 * MIB
RING_BYTES_MIN: Final = 128 * KIB  # two writes of the pump fit
MEMORY_BYTES_MAX: Final = 16 * 1024 * MIB  # the most a memory bound may be raised to
RING_LINGER_MS: Final = 60_000  # a ring outlives its last watcher by this: reconnects are warm
LAG_EVENTS_MAX: Final = 10_000  # committed while a socket takes nothing
LAG_BYTES_MAX: Final = 4 * MIB
STALL_MS_MAX: Final = 30_000  # no progress while something waits
STALL_CHECKS: Final = 10  # looks at a socket within that time
PUMP_WRITES_MAX: Final = 16  # of one turn of the loop, so that a long replay blocks nobody
ANSWER_BYTES_MAX: Final = 1 * MIB  # direct answers queued on one connection
WRITE_BYTES_MAX: Final = 64 * KIB  # one write of the pump, and the transport's high-water mark
CLOSE_MS_MAX: Final = 5_000  # a close handshake on a stuck socket
FRAME_OVERHEAD_BYTES: Final = 300  # envelope of an event on the wire, to size a page by
DELTA_MS_MIN: Final = 30  # deltas of a message are coalesced at least this long (B-3)
DELTA_FLUSHES: Final = 4  # or this many times what a flush took: a slow disk gets larger deltas
DELTA_BYTES_MAX: Final = 4 * KIB  # or this many bytes
EVENTS_PAGE_MAX: Final = 1_000  # _goclaw/session/events
WATCH_MS_MIN: Final = 100  # between two pictures for one watcher
WATCH_MS: Final = 1_000  # unless it says otherwise
WATCH_MS_MAX: Final = 3_600_000  # beyond it nobody watches
WATCH_TASKS_MAX: Final = 10_000  # looked at for the sessions of a picture; its totals are exact
WATCH_SESSIONS_MAX: Final = 100  # in one picture, those with a running task first
LATEST_EVENTS_MAX: Final = 1_000  # looked at for a conflated reader: what it sees of an older past

# -- time --------------------------------------------------------------------------------------
IDEMPOTENCY_WINDOW_MS: Final = 7 * DAY_MS
EVENT_RETENTION_MS: Final = 30 * DAY_MS
AUDIT_RETENTION_MS: Final = 365 * DAY_MS
RETENTION_S_MAX: Final = 100 * 365 * 24 * 3600  # a century: in practice, for ever
APPROVAL_MS: Final = DAY_MS
GRANT_MS: Final = DAY_MS  # how long a yes beforehand holds, unless it says
GRANT_MS_MAX: Final = 30 * DAY_MS  # beyond it a rule should say so
GRANT_USES_MAX: Final = 10_000  # calls of one grant: as many as a task may have
DRAIN_MS_MAX: Final = 30_000
HANDSHAKE_MS_MAX: Final = 10_000  # upgrade and initialize of a new connection
PING_MS: Final = 20_000
PINGS_MISSED_MAX: Final = 2  # then the peer counts as gone
IDLE_EXIT_MS: Final = 600_000  # a daemon that `goclaw acp` started ends after this idle
SLEEP_MS_MAX: Final = 30 * DAY_MS  # /sleep, within event retention

# -- logs --------------------------------------------------------------------------------------
LOG_RECORDS_MAX: Final = 8_192  # waiting for the log's thread; more are dropped and counted
LOG_LINE_BYTES_MAX: Final = 16 * KIB  # a longer message is cut
LOG_FILE_BYTES_MAX: Final = 16 * MIB  # then the file is rotated
LOG_FILES_MAX: Final = 4  # rotated files that are kept
LOG_LOOK_MS: Final = 200  # between two looks of `goclaw logs --follow`
LOG_CLOSE_MS_MAX: Final = 2_000  # a stop waits this long for the last records

# -- metrics -----------------------------------------------------------------------------------
LAG_LOOK_MS: Final = 500  # between two looks at how late the loop is

TIMELINE_RECORDS_MAX: Final = 20_000  # of the audit, looked through for a run's decisions

# -- terminal UI -------------------------------------------------------------------------------
TUI_LOOK_MS: Final = 1_000  # between two looks at the daemon: a handful of small reads
TUI_DRAW_MS: Final = 50  # between two drawings of a conversation: a burst of events is one
TUI_ROWS_MAX: Final = 100  # of a table: more are what `goclaw task list` is for
TUI_BLOCKS_MAX: Final = 500  # of a conversation: the older ones are in `goclaw events`
TUI_BLOCK_CHARS_MAX: Final = 20_000  # of one message: its newest part is shown
TUI_OUTPUT_LINES: Final = 12  # of a tool's output
TUI_CELL_CHARS: Final = 32  # of a cell: the whole stands below the table
TUI_LANES_SHOWN: Final = 16  # cells of the bar of lanes, on 80 columns

# -- doctor ------------------------------------------------------------------------------------
DOCTOR_READ_BYTES: Final = 256 * MIB  # of a database that doctor reads whole: a second or two
DISK_ROOM_BYTES: Final = 1024 * MIB  # less is worth a warning: a night's work and a backup
CLOCK_BACK_MS_MAX: Final = 60_000  # a newer event than now, by more than clocks are set by

# -- backups -----------------------------------------------------------------------------------
COPY_BYTES: Final = 1 * MIB  # of one read or write of a file that is copied or hashed
BACKUP_FILES_MAX: Final = 10_000  # of the settings and skills beside the database
BACKUP_FILE_BYTES_MAX: Final = 64 * MIB  # of one of them
BACKUP_ROOM_BYTES: Final = 64 * MIB  # left free on the disk by a backup: the daemon goes on writing
REHEARSED_RUNS_MAX: Final = 1_000  # parked runs that a rehearsal makes once more: some seconds

# -- children ----------------------------------------------------------------------------------
CHILD_START_MS_MAX: Final = 10_000  # until a child's program begins; a fork and an interpreter
CHILD_END_MS_MAX: Final = 5_000  # for the kernel to end what SIGKILL was sent to

FAULT_DELAY_MS_MAX: Final = 600_000  # a delay of a fault point; longer is a hang
DRILL_DAEMONS_MAX: Final = 4  # at once, one a processor: a start is mostly imports
DRILL_LIFE_MS_MAX: Final = 120_000  # a run of a drill with one restart; longer is a hang

# -- connections -------------------------------------------------------------------------------
CONNECTIONS_MAX: Final = 2_000
HANDSHAKES_MAX: Final = 1_000  # accepted and not upgraded yet: a burst of editors, no flood
SUBSCRIPTIONS_MAX: Final = 256  # per connection
REQUESTS_MAX: Final = 256  # in flight per connection, prompts included
DENIALS_JOIN_MS: Final = 1_000  # equal denials within it are one audit record with a count
AUDIT_COUNT_MS: Final = 60_000  # what is allowed on the wire is counted, and recorded this often
AUDIT_COUNTS_MAX: Final = 1_000  # different requests of one such record; the rest is one figure
AUDIT_COPY_MS: Final = 5_000  # between two looks for records that audit.jsonl lacks
AUDIT_PRUNE_MS: Final = 3_600_000  # between two looks for records beyond their retention
AUDIT_LINE_BYTES_MAX: Final = 512 * KIB  # of audit.jsonl: labels, 64 roots, escapes
AUDIT_FAULTS_MAX: Final = 100  # that are listed of one chain
VERIFY_FAULTS_MAX: Final = 100  # that `goclaw verify` lists
DENIALS_MAX: Final = 1_000  # different denials within that time; the rest is not recorded
AUTH_DELAY_MS_MIN: Final = 50  # before an upgrade, after a wrong token; doubled at each more
AUTH_DELAY_MS_MAX: Final = 2_000
AUTH_ADDRESSES_MAX: Final = 1_000  # addresses with wrong tokens that are remembered
SESSIONS_PAGE_MAX: Final = 100  # session/list
HISTORY_BYTES_MAX: Final = 1 * MIB  # of a projected history, held until a message is whole
BATCH_MESSAGES_MAX: Final = 1_000  # of one JSON-RPC batch: two bytes of it can ask for 100 back

DIAL_MS_MAX: Final = 2_000  # connecting to a local socket: longer means a daemon that hangs
START_MS_MAX: Final = 60_000  # a daemon that drains (30 s) and another that starts
RECONNECT_MS_MAX: Final = 10_000  # a client that starts no daemon waits this long for its return
TAKE_OVER_MS: Final = 3_000  # a service manager has restarted its daemon by then, if there is one
LEAVE_MS: Final = 2_000  # for the other clients of an embedded daemon, before its owner is told
SIGNAL_LOOK_MS: Final = 500  # a signal that comes as a wait begins is seen this late
START_AGAIN_MS: Final = 200  # between two tries to start a daemon
POLL_MS: Final = 20  # between two looks for a daemon that starts
LOSSES_MAX: Final = 20  # connections in a row on which the daemon said nothing before it went
EOF_LINGER_MS: Final = 700  # the bridge's last answers after end of input: it leaves within 1 s
LOAD_BYTES_MAX: Final = 64 * MIB  # history that the bridge holds until it is whole
BRIDGE_BYTES_MAX: Final = 1 * MIB  # of one direction of the bridge; then it reads no more

# -- effects, tools, skills --------------------------------------------------------------------
FORK_EVENTS_MAX: Final = 50_000  # copied in one transaction: half a second without other writes
FORK_BYTES_MAX: Final = 32 * MIB  # the same
SIGNALS_MAX: Final = 1_000  # names, and keys, of the signals of one run: more wait for nothing
EFFECTS_MAX: Final = 10_000  # per task: a loop bound
FENCE_BYTES_MAX: Final = 256 * MIB  # effects.log: a month of 40,000 a day; then the older half goes
FENCE_TRIM_BYTES: Final = 16 * MIB  # a smaller one is cut once a day at most
FENCE_PAGE_BYTES: Final = 256 * KIB  # of one read; far more lines than attempts that race
PROBE_MS_MAX: Final = 30_000  # for a tool to say whether a call of it happened
STEPS_MAX: Final = 200  # brain answers per run
BRAINS_MAX: Final = 100  # [brains.NAME] sections of config.toml
BRAIN_TOKENS_MAX: Final = 1_000_000_000  # the most a budget or a context may be set to
BRAIN_CONTEXT_TOKENS: Final = 32_768  # of a model that nobody said more about
BRAIN_CONTEXT_TOKENS_MIN: Final = 1_024  # below it no tool and no question fits
BRAIN_PRICE_MAX: Final = 1_000_000  # a price or a cost budget; more is a slip of the keyboard
BRAIN_ANSWER_TOKENS: Final = 4_096  # kept free for an answer where its bound was not set
BRAIN_ANSWER_BYTES_MAX: Final = 4 * MIB  # of one answer, text and arguments
BRAIN_CALLS_MAX: Final = 64  # tool calls of one answer
BRAIN_HEAD_BYTES_MAX: Final = 64 * KIB  # head of a server's answer, and the text of its error
BRAIN_SSE_BYTES_MAX: Final = 1 * MIB  # one server-sent event
BRAIN_SENT_BYTES_MAX: Final = 64 * MIB  # a million tokens and the tools, escaped
BRAIN_STALL_MS_MAX: Final = 300_000  # of silence: a local model reads a long prompt first
BRAIN_CUTS_MAX: Final = 4  # halvings of a context that the server finds too long
BRAIN_PAST_BYTES_MAX: Final = 4 * MIB  # of events that a context is made from
BRAIN_PAST_EVENTS_MAX: Final = 50_000  # read backwards for the context of one run
AGENTS_MAX: Final = 32  # child agents of one brain; each is a program of some 100 MiB
AGENT_TURNS_MAX: Final = 3  # of a run: the prompt, and twice "go on" after the agent was lost
AGENT_START_MS_MAX: Final = 60_000  # until it answers initialize, and session/new or load
AGENT_CANCEL_MS_MAX: Final = 5_000  # to end a turn that was cancelled; then it is killed
AGENT_LOOK_MS: Final = 1_000  # is the task of a waiting turn open, a silent process alive?
AGENT_GARBAGE_MAX: Final = 100  # lines that are no message: a log that strayed to stdout
AGENT_TURN_BYTES_MAX: Final = 256 * MIB  # of one turn; more is a flood
SAME_FAILURES_TOLD: Final = 3  # equal failing calls of a run, then the model is told
SAME_FAILURES_MAX: Final = 5  # then the run ends: it would go on like that for ever
TOOL_SEEN_BYTES_MAX: Final = 32 * KIB  # of an output that a model is shown
TOOL_RECALLED_BYTES_MAX: Final = 1 * KIB  # of one that had to give way to newer things
CASSETTE_BYTES_MAX: Final = 64 * MIB  # a tape is read whole for each answer
SCRIPT_BYTES_MAX: Final = 8 * MIB  # a file of --brain script:FILE
SCRIPT_CHUNKS_MAX: Final = 100_000  # pieces that one say is streamed in
SCRIPT_DELAY_MS_MAX: Final = 3_600_000  # before each piece; a longer wait is sleepMs
DELEGATION_DEPTH_MAX: Final = 3
TOOL_OUTPUT_BYTES_MAX: Final = 1 * MIB
TOOL_SHOWN_BYTES_MAX: Final = 128 * KIB  # of an output or input in an event: twice, and escaped
OPEN_TRIES_MAX: Final = 16  # openat2 asks to try again while somebody renames on the way
WASM_MODULE_BYTES_MAX: Final = 8 * MIB
WASM_FUNCTIONS_MAX: Final = 20_000
WASM_COMPILE_MS_MAX: Final = 2_000  # processor time: a busy machine refuses no skill
WASM_COMPILE_WALL_MS_MAX: Final = 20_000  # then the child hangs or starves, and is killed
WASM_COMPILE_BYTES_MAX: Final = 512 * MIB
WASM_ARTEFACT_BYTES_MAX: Final = 64 * MIB  # compiled code is about eight times the module
WASM_FUEL: Final = 50_000_000_000  # bounds instructions; wall time is bounded by the epoch
WASM_WALL_MS_MAX: Final = 30_000
WASM_MEMORY_BYTES_MAX: Final = 64 * MIB
WASM_STACK_BYTES_MAX: Final = 512 * KIB
WASM_TABLE_ELEMENTS_MAX: Final = 10_000
WASM_LOG_BYTES_MAX: Final = 64 * KIB
WASM_HOST_CALLS_MAX: Final = 1_000_000  # 4 GiB of stdin in reads of 4 KiB
WASM_TICK_MS: Final = 10  # a cancel or the end of the wall time is noticed this late
WASM_CACHE_BYTES_MAX: Final = 256 * MIB
WASM_MODULES_LOADED_MAX: Final = 16  # per engine; one more costs a read of the cache
WASM_ENGINES_IDLE_MAX: Final = 8  # kept warm: two bursts of the default lanes
SKILL_MANIFEST_BYTES_MAX: Final = 64 * KIB
SKILL_THREADS_MAX: Final = 64  # calls at once; they wait in native code, one more waits its turn
SKILLS_MAX: Final = 1_000  # entries of one skills folder
SKILL_FAULTS_MAX: Final = 5  # consecutive, then quarantine (K-7)

# -- network -----------------------------------------------------------------------------------
RESOLVE_MS_MAX: Final = 10_000  # of one name: two servers that do not answer take that long
ADDRESSES_MAX: Final = 16  # of one name; each is checked and may be dialled
NET_DIAL_MS_MAX: Final = 10_000  # until an address has answered
HTTP_MS_MAX: Final = 60_000  # one call of the tool, redirects included
HTTP_QUIET_MS_MAX: Final = 30_000  # between two pieces of an answer
HTTP_BODY_BYTES_MAX: Final = (
    128 * KIB
)  # of an answer that a brain is shown; JSON may need six times
HTTP_SENT_BYTES_MAX: Final = 1 * MIB  # of a request's body
HTTP_HEADERS_MAX: Final = 64  # of a request
HTTP_HEADER_CHARS_MAX: Final = 8 * KIB  # of one header: what servers take
HTTP_REDIRECTS_MAX: Final = 5  # each is decided about anew

# -- programs ----------------------------------------------------------------------------------
EXEC_MS_MAX: Final = 120_000  # then the whole group is killed, and nobody knows how far it came
EXEC_CPU_S_MAX: Final = 120  # of one process
EXEC_MEMORY_BYTES_MAX: Final = 4096 * MIB  # of address space: compilers and runtimes reserve much
EXEC_FILE_BYTES_MAX: Final = 1024 * MIB  # of one file that it writes
EXEC_FILES_MAX: Final = 256  # open at once
EXEC_OUTPUT_BYTES_MAX: Final = 64 * KIB  # of stdout, and of stderr; JSON may need six times
EXEC_ARGUMENTS_MAX: Final = 1_000  # the kernel takes more; a list like that belongs on stdin
EXEC_ARGUMENT_CHARS_MAX: Final = 64 * KIB  # the kernel's bound of one is 128 KiB

# -- secrets -----------------------------------------------------------------------------------
SECRET_CHARS_MIN: Final = 8  # a shorter value occurs by chance, and what is kept would be holes
SECRET_CHARS_MAX: Final = 16 * KIB  # a private key with its chain
SECRETS_MAX: Final = 1_000  # each is looked for in whatever is kept
SECRET_BINDINGS_MAX: Final = 64  # hosts, and tools, of one
REDACT_DEPTH_MAX: Final = 4  # JSON in JSON in JSON; each level costs a pass
REDACT_HELD_BYTES_MAX: Final = 64 * KIB  # of a stream; terminal codes without end would hold it up

# -- policy ------------------------------------------------------------------------------------
POLICY_BYTES_MAX: Final = 8 * MIB  # policy.toml: ten thousand rules take about 2 MiB
POLICY_RULES_MAX: Final = 20_000
POLICY_ENTRIES_MAX: Final = 200_000  # actions x subjects x resources of all rules, 100 bytes each
POLICY_WINDOWS_MAX: Final = 16  # different times that rules name: each is a bit of 64
POLICY_RATES_MAX: Final = 14  # rules with a rate: the rest of the 64 bits
RATE_CALLS_MAX: Final = 10_000  # of one rate: their times are kept in memory
RATE_S_MAX: Final = 24 * 3600  # beyond a day it is a budget
POLICY_REPLAY_MAX: Final = 100_000  # recorded decisions that `policy test` makes again: seconds
POLICY_NEAR_MAX: Final = 10  # rules that an explanation names because they almost applied
GLOB_STARS_MAX: Final = 8  # of one pattern: each costs a pass over the text
ROOTS_MAX: Final = 64  # of one session: each costs a comparison in every decision about a path
FIGURE_MAX: Final = 2**53 - 1  # risk and size: the largest integer every JSON reader keeps

assert BRAIN_ANSWER_BYTES_MAX <= RESULT_BYTES_MAX
assert TOOL_RECALLED_BYTES_MAX < TOOL_SEEN_BYTES_MAX <= TOOL_OUTPUT_BYTES_MAX
assert AGENT_CANCEL_MS_MAX < DRAIN_MS_MAX < AGENT_START_MS_MAX
assert SAME_FAILURES_TOLD < SAME_FAILURES_MAX < STEPS_MAX
assert 3 * HEARTBEAT_MS <= LEASE_MS
assert BREAKER_PROBE_MS <= BREAKER_PROBE_MS_MAX
assert BACKOFF_MS_MAX <= RETRY_AFTER_MS_MAX
assert TIMEOUT_MS_MAX <= EVENT_RETENTION_MS
assert WASM_COMPILE_MS_MAX < WASM_COMPILE_WALL_MS_MAX
assert WASM_MODULE_BYTES_MAX < WASM_ARTEFACT_BYTES_MAX < WASM_CACHE_BYTES_MAX
assert WASM_TICK_MS < WASM_WALL_MS_MAX
assert MAX_ATTEMPTS * BACKOFF_MS_MAX < EVENT_RETENTION_MS
assert IDEMPOTENCY_WINDOW_MS <= EVENT_RETENTION_MS <= AUDIT_RETENTION_MS
assert SESSION_TASKS_MAX <= TOTAL_TASKS_MAX <= TASKS_MAX
assert LEASE_MS_MIN <= LEASE_MS <= LEASE_MS_MAX
assert LOG_CLOSE_MS_MAX < DRAIN_MS_MAX
assert LOG_LINE_BYTES_MAX < LOG_FILE_BYTES_MAX
assert RING_BYTES <= RING_BYTES_TOTAL
assert WRITE_BYTES_MAX * 2 <= RING_BYTES_MIN <= RING_BYTES
assert RING_BYTES_TOTAL <= MEMORY_BYTES_MAX
assert READ_BYTES_MAX <= WRITE_BYTES_MAX
assert BATCH_OPERATIONS_MAX <= PENDING_OPERATIONS_MAX
assert CHECKPOINT_BYTES <= WAL_BYTES_MAX
assert CHECKPOINT_WAIT_MS < BUSY_MS_MAX
assert 10 * STOP_RETRY_MS <= CLOSE_MS_MAX
assert 2 * TOOL_SHOWN_BYTES_MAX < EVENT_BYTES_MAX
assert WATCH_MS_MIN <= WATCH_MS <= WATCH_MS_MAX
assert EVENT_BYTES_MAX <= RESULT_BYTES_MAX <= FRAME_BYTES_MAX
assert LAG_BYTES_MAX < RING_BYTES_TOTAL
assert AUTH_DELAY_MS_MAX < HANDSHAKE_MS_MAX
assert DRAIN_MS_MAX < START_MS_MAX
assert EVENT_BYTES_MAX <= BRIDGE_BYTES_MAX < LOAD_BYTES_MAX
assert CLAIM_MAX <= BATCH_OPERATIONS_MAX
assert PAYLOAD_BYTES_MAX <= CLAIM_BYTES_MAX
assert CLAIM_BYTES_MAX + CLAIM_EFFECTS_BYTES_MAX + CLAIM_MAX * KIB < FRAME_BYTES_MAX
assert SECRET_CHARS_MAX < REDACT_HELD_BYTES_MAX < EVENT_BYTES_MAX
assert POLICY_RULES_MAX <= POLICY_ENTRIES_MAX
assert 6 * HTTP_BODY_BYTES_MAX < TOOL_OUTPUT_BYTES_MAX
assert HTTP_QUIET_MS_MAX <= HTTP_MS_MAX
assert 12 * EXEC_OUTPUT_BYTES_MAX < TOOL_OUTPUT_BYTES_MAX
assert 4 * FENCE_PAGE_BYTES <= FENCE_TRIM_BYTES <= FENCE_BYTES_MAX
