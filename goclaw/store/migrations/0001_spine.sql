-- The spine: sessions, tasks, the ready index, events, effects, approvals, decisions.
-- Monotonic times (…_mono) are milliseconds of CLOCK_MONOTONIC of the boot named in meta.boot;
-- all other times are milliseconds since the epoch.

CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) WITHOUT ROWID;

-- One row, moved by every batch: after an error at COMMIT it tells whether the batch is in.
CREATE TABLE writer (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  batches INTEGER NOT NULL
);
INSERT INTO writer VALUES (1, 0);

-- Hot columns only: head and link move with every event.
CREATE TABLE sessions (
  sid INTEGER PRIMARY KEY,
  session_id TEXT NOT NULL UNIQUE,
  head INTEGER NOT NULL DEFAULT 0,      -- last event id given
  oldest INTEGER NOT NULL DEFAULT 1,    -- first event id kept
  turn INTEGER,                         -- task that holds the serial turn until it is terminal
  open INTEGER NOT NULL DEFAULT 0,      -- tasks not terminal
  weight INTEGER NOT NULL DEFAULT 1,
  updated_at INTEGER NOT NULL,
  salt BLOB NOT NULL,                   -- of payload digests; purge removes it
  link BLOB NOT NULL                    -- last link of the hash chain
);

CREATE TABLE session_info (
  sid INTEGER PRIMARY KEY REFERENCES sessions (sid),
  stream_id TEXT NOT NULL,
  cwd TEXT NOT NULL,
  roots TEXT NOT NULL,                  -- JSON list: cwd and additional directories
  brain TEXT NOT NULL,
  interactive INTEGER NOT NULL,
  title TEXT,
  created_at INTEGER NOT NULL,
  closed_at INTEGER,
  deleted_at INTEGER
);
CREATE INDEX session_listed ON session_info (created_at DESC, sid DESC) WHERE deleted_at IS NULL;

CREATE TABLE tasks (
  tid INTEGER PRIMARY KEY,
  task_id TEXT NOT NULL UNIQUE,
  run_id TEXT NOT NULL,
  sid INTEGER NOT NULL REFERENCES sessions (sid),
  seq INTEGER NOT NULL,                 -- order inside the session
  pool TEXT NOT NULL,                   -- '' = goclaw's own lanes
  kind TEXT NOT NULL,                   -- prompt, tool, pool
  state TEXT NOT NULL,
  parallel INTEGER NOT NULL,
  rank INTEGER NOT NULL,                -- 9 - priority: ascending is more urgent first
  attempt INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  crashes INTEGER NOT NULL DEFAULT 0,   -- reserved at the claim, given back by an orderly end
  max_attempts INTEGER NOT NULL,
  on_unknown TEXT NOT NULL,             -- suspend, tell_brain
  lease_owner TEXT,
  lease_token BLOB,
  lease_until_mono INTEGER,
  due_mono INTEGER,                     -- RETRY_WAIT and SUSPENDED: when it goes on by itself
  due_at INTEGER,                       -- the same in wall time, for another boot
  ended_token BLOB,                     -- token and hash of the call that ended the last attempt:
  ended_hash BLOB,                      -- an exact repeat is answered as it was,
  ended_state TEXT,                     -- with this state
  end_event INTEGER,
  reason TEXT,
  stop_reason TEXT,
  fingerprint TEXT,
  repeats INTEGER NOT NULL DEFAULT 0,   -- equal fingerprints in a row
  policy_version TEXT,
  trace TEXT,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL
);
CREATE INDEX tasks_line ON tasks (sid, parallel, seq) WHERE state = 'QUEUED';
CREATE INDEX tasks_live ON tasks (tid) WHERE state = 'RUNNING'; -- not by time: heartbeats stay cheap
CREATE INDEX tasks_waiting ON tasks (sid) WHERE state IN ('RETRY_WAIT', 'SUSPENDED');
CREATE INDEX tasks_due ON tasks (due_mono) WHERE due_mono IS NOT NULL;
CREATE INDEX tasks_of_session ON tasks (sid, tid);

-- Payloads stand apart from the hot row.
CREATE TABLE task_payloads (
  tid INTEGER PRIMARY KEY REFERENCES tasks (tid),
  payload BLOB NOT NULL,
  key TEXT,                             -- submission key, where the client gave one
  client TEXT,                          -- who may cancel it with session/cancel
  origin TEXT NOT NULL
);
CREATE TABLE task_results (
  tid INTEGER PRIMARY KEY REFERENCES tasks (tid),
  result BLOB,
  error TEXT
);

-- sid 0 is the scope of session/new; there tid holds a sid.
CREATE TABLE submissions (
  sid INTEGER NOT NULL,
  key TEXT NOT NULL,
  hash BLOB NOT NULL,
  tid INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (sid, key)
) WITHOUT ROWID;

-- The ready index: at most one head per session, claimable now. The pick has no filter.
CREATE TABLE heads (
  sid INTEGER PRIMARY KEY,
  tid INTEGER NOT NULL,
  pool TEXT NOT NULL,
  rank INTEGER NOT NULL,
  start INTEGER NOT NULL,               -- virtual start time inside the level
  tie INTEGER NOT NULL,                 -- 0 = its session comes from idle and goes first
  ready_at INTEGER NOT NULL,            -- claim counter of the pool when it became ready
  passed_at INTEGER NOT NULL            -- claims of more urgent levels seen by then
);
CREATE INDEX heads_fair ON heads (pool, rank, start, tie, ready_at);
CREATE INDEX heads_aged ON heads (pool, rank, ready_at);

CREATE TABLE pools (
  pool TEXT PRIMARY KEY,
  claims INTEGER NOT NULL DEFAULT 0,
  last_due INTEGER NOT NULL DEFAULT 0   -- the last claim took a due head: the next may not
) WITHOUT ROWID;
CREATE TABLE levels (
  pool TEXT NOT NULL,
  rank INTEGER NOT NULL,
  v INTEGER NOT NULL DEFAULT 0,         -- virtual time: start of the level's last claim
  mark INTEGER NOT NULL DEFAULT 0,      -- v when the present round began
  mark_at INTEGER NOT NULL DEFAULT 0,   -- claim counter of the pool at that moment
  round INTEGER NOT NULL DEFAULT 0,     -- claims of the last full round: one of each session
  passed INTEGER NOT NULL DEFAULT 0,    -- claims of more urgent levels so far
  PRIMARY KEY (pool, rank)
) WITHOUT ROWID;
CREATE TABLE flows (
  sid INTEGER NOT NULL,
  pool TEXT NOT NULL,
  rank INTEGER NOT NULL,
  finish INTEGER NOT NULL,              -- virtual finish of the session's last claim in the level
  served_at INTEGER NOT NULL,           -- claim counter of the pool at that claim
  PRIMARY KEY (sid, pool, rank)
) WITHOUT ROWID;

CREATE TABLE events (
  sid INTEGER NOT NULL,
  event_id INTEGER NOT NULL,
  kind INTEGER NOT NULL,                -- 0 standard update, 1 goclaw event, 2 the user's words
  type TEXT NOT NULL,
  at INTEGER NOT NULL,
  tid INTEGER,                          -- run, task and trace ids are read through it
  attempt INTEGER NOT NULL,
  payload BLOB NOT NULL,
  digest BLOB NOT NULL,                 -- of salt and payload: outlives the payload
  PRIMARY KEY (sid, event_id)
) WITHOUT ROWID;

CREATE TABLE effects (
  tid INTEGER NOT NULL REFERENCES tasks (tid),
  ordinal INTEGER NOT NULL,
  kind TEXT NOT NULL,                   -- brain, tool, sleep, signal
  name TEXT NOT NULL,
  class TEXT NOT NULL,
  state TEXT NOT NULL,                  -- intent, retryable, result, unknown
  key TEXT NOT NULL,
  hash BLOB NOT NULL,
  request BLOB NOT NULL,
  result BLOB,
  failed INTEGER NOT NULL DEFAULT 0,    -- the result is a tool's error
  deduplicated INTEGER NOT NULL DEFAULT 0,
  call_id TEXT,
  attempt INTEGER NOT NULL,
  token BLOB NOT NULL,                  -- lease under which the intent was made
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  PRIMARY KEY (tid, ordinal)
) WITHOUT ROWID;
CREATE INDEX effects_by_key ON effects (key) WHERE class <> 'pure';

CREATE TABLE approvals (
  aid INTEGER PRIMARY KEY,
  approval_id TEXT NOT NULL UNIQUE,
  sid INTEGER NOT NULL REFERENCES sessions (sid),
  tid INTEGER NOT NULL REFERENCES tasks (tid),
  ordinal INTEGER NOT NULL,
  digest BLOB NOT NULL,                 -- of the exact call that is asked about
  request BLOB NOT NULL,                -- params of session/request_permission
  state TEXT NOT NULL,                  -- open, resolved, expired, cancelled
  option_id TEXT,
  allowed INTEGER,
  answered_by TEXT,
  created_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  answered_at INTEGER
);
CREATE INDEX approvals_open ON approvals (expires_at) WHERE state = 'open';
CREATE INDEX approvals_of_task ON approvals (tid, ordinal);

CREATE TABLE signals (
  tid INTEGER NOT NULL,
  name TEXT NOT NULL,
  payload BLOB NOT NULL,
  at INTEGER NOT NULL,
  PRIMARY KEY (tid, name)
) WITHOUT ROWID;

CREATE TABLE policies (
  version TEXT PRIMARY KEY,
  text TEXT NOT NULL,
  at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE audit (
  seq INTEGER PRIMARY KEY,
  at INTEGER NOT NULL,
  record BLOB NOT NULL,
  link BLOB NOT NULL
);

-- Digests of compiled modules, by cache key (K-5).
CREATE TABLE artefacts (
  key TEXT PRIMARY KEY,
  digest TEXT NOT NULL,
  at INTEGER NOT NULL
) WITHOUT ROWID;
