-- The queue in full: lines, delayed and recurring tasks, deadlines, gates, sub-tasks, drops.

-- What a task does, as one word: tool:NAME, brain:NAME or pool:NAME. Bounds, rates and breakers
-- stand before a kind of work.
CREATE TABLE works (
  wid INTEGER PRIMARY KEY,
  work TEXT NOT NULL UNIQUE,
  pool TEXT NOT NULL,
  gated INTEGER NOT NULL DEFAULT 0,     -- a bound, a rate or an open breaker: heads are let in singly
  most INTEGER,                         -- attempts at once
  burst INTEGER,                        -- tokens at most; each head that is let in takes one
  tokens INTEGER,
  refill_ms INTEGER,                    -- for one token
  refill_mono INTEGER,                  -- when the next comes; 0 = the timer has yet to say
  broken TEXT,                          -- fingerprint that opened the breaker; NULL = closed
  probe_mono INTEGER,                   -- from then on one probe may run
  probe_ms INTEGER                      -- wait until the next probe; doubled by each that failed
);
CREATE INDEX works_gated ON works (wid) WHERE gated = 1;

-- Retryable failures of a kind of work, newest of each task: several tasks open the breaker.
CREATE TABLE faults (
  work TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  tid INTEGER NOT NULL,
  at_mono INTEGER NOT NULL,
  PRIMARY KEY (work, fingerprint, tid)
) WITHOUT ROWID;

ALTER TABLE tasks ADD COLUMN wid INTEGER;
ALTER TABLE tasks ADD COLUMN line INTEGER NOT NULL DEFAULT 0;  -- 0 = the session's serial line
ALTER TABLE tasks ADD COLUMN held INTEGER NOT NULL DEFAULT 0;  -- QUEUED, but not before due_at
ALTER TABLE tasks ADD COLUMN timeout_ms INTEGER;               -- of one attempt
ALTER TABLE tasks ADD COLUMN timeout_mono INTEGER;             -- of the attempt that runs
ALTER TABLE tasks ADD COLUMN deadline_at INTEGER;
ALTER TABLE tasks ADD COLUMN parent_tid INTEGER;               -- SUSPENDED until this one has ended
ALTER TABLE task_payloads ADD COLUMN unique_key TEXT;
ALTER TABLE tasks ADD COLUMN dropped_at INTEGER;               -- a dead letter nobody wants back

INSERT INTO works (work, pool)
SELECT DISTINCT CASE t.kind WHEN 'prompt' THEN 'brain:' || i.brain
                            WHEN 'tool' THEN 'tool:' || json_extract(p.payload, '$.tool')
                            ELSE 'pool:' || t.pool END, t.pool
  FROM tasks AS t JOIN task_payloads AS p ON p.tid = t.tid JOIN session_info AS i ON i.sid = t.sid;
UPDATE tasks
   SET wid = (SELECT w.wid FROM works AS w
               WHERE w.work = CASE tasks.kind
                       WHEN 'prompt' THEN 'brain:' || (SELECT i.brain FROM session_info AS i
                                                        WHERE i.sid = tasks.sid)
                       WHEN 'tool' THEN 'tool:' || (SELECT json_extract(p.payload, '$.tool')
                                                      FROM task_payloads AS p WHERE p.tid = tasks.tid)
                       ELSE 'pool:' || tasks.pool END);
UPDATE tasks SET line = wid WHERE parallel = 1;

DROP INDEX tasks_line;
DROP INDEX tasks_live;
ALTER TABLE tasks DROP COLUMN parallel;
CREATE INDEX tasks_line ON tasks (sid, line, seq) WHERE state = 'QUEUED' AND held = 0;
CREATE INDEX tasks_held ON tasks (due_at) WHERE held = 1;
CREATE INDEX tasks_live ON tasks (wid) WHERE state = 'RUNNING'; -- not by time: heartbeats stay cheap
CREATE INDEX tasks_timeout ON tasks (timeout_mono) WHERE timeout_mono IS NOT NULL;
CREATE INDEX tasks_deadline ON tasks (deadline_at) WHERE deadline_at IS NOT NULL;
CREATE INDEX tasks_children ON tasks (parent_tid) WHERE parent_tid IS NOT NULL;
CREATE INDEX tasks_dead ON tasks (tid) WHERE state = 'DEAD_LETTER' AND dropped_at IS NULL;

-- The ready index: at most one head for each line of a session, claimable now. A serial session has
-- one line; parallel tasks have one for each kind of work, so that none waits for another's gate.
ALTER TABLE heads RENAME TO heads_before;
DROP INDEX heads_fair;
DROP INDEX heads_aged;
CREATE TABLE heads (
  sid INTEGER NOT NULL,
  line INTEGER NOT NULL,
  tid INTEGER NOT NULL,
  pool TEXT NOT NULL,
  rank INTEGER NOT NULL,
  start INTEGER NOT NULL,               -- virtual start time inside the level
  tie INTEGER NOT NULL,                 -- 0 = its session comes from idle and goes first
  ready_at INTEGER NOT NULL,            -- claim counter of the pool when it became ready
  passed_at INTEGER NOT NULL,           -- claims of more urgent levels seen by then
  interactive INTEGER NOT NULL,         -- a prompt: reserved lanes take no other
  gate INTEGER,                         -- wid, where a gate let it in
  PRIMARY KEY (sid, line)
) WITHOUT ROWID;
INSERT INTO heads
SELECT b.sid, t.line, b.tid, b.pool, b.rank, b.start, b.tie, b.ready_at, b.passed_at,
       t.kind = 'prompt', NULL
  FROM heads_before AS b JOIN tasks AS t ON t.tid = b.tid;
DROP TABLE heads_before;
INSERT INTO heads
SELECT t.sid, t.line, t.tid, t.pool, t.rank, max(l.v, ifnull(f.finish, 0)), 0, p.claims, l.passed, 0, NULL
  FROM tasks AS t
  JOIN pools AS p ON p.pool = t.pool
  JOIN levels AS l ON l.pool = t.pool AND l.rank = t.rank
  LEFT JOIN flows AS f ON f.sid = t.sid AND f.pool = t.pool AND f.rank = t.rank
 WHERE t.state = 'QUEUED' AND t.line > 0
   AND NOT EXISTS (SELECT 1 FROM heads AS h WHERE h.sid = t.sid AND h.line = t.line)
   AND t.seq = (SELECT min(q.seq) FROM tasks AS q
                 WHERE q.sid = t.sid AND q.line = t.line AND q.state = 'QUEUED');
CREATE INDEX heads_fair ON heads (pool, rank, start, tie, ready_at);
CREATE INDEX heads_aged ON heads (pool, rank, ready_at);
CREATE INDEX heads_interactive ON heads (pool, rank, start, tie, ready_at) WHERE interactive = 1;
CREATE INDEX heads_gated ON heads (gate) WHERE gate IS NOT NULL;

-- Lines whose first task would be a head, were its gate open. ripe: claim counter plus the aging of
-- its rank, so that a less urgent one is passed only so often.
CREATE TABLE stalled (
  sid INTEGER NOT NULL,
  line INTEGER NOT NULL,
  wid INTEGER NOT NULL,
  tid INTEGER NOT NULL,
  ripe INTEGER NOT NULL,
  PRIMARY KEY (sid, line)
) WITHOUT ROWID;
CREATE INDEX stalled_of_work ON stalled (wid, ripe);
CREATE VIEW gates AS
SELECT w.*, EXISTS (SELECT 1 FROM stalled AS g WHERE g.wid = w.wid) AS waiting
  FROM works AS w WHERE w.gated = 1;

-- At most one unfinished task of a scope (pool:NAME or session:SID) and key.
CREATE TABLE uniques (
  scope TEXT NOT NULL,
  key TEXT NOT NULL,
  tid INTEGER NOT NULL,
  PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE INDEX uniques_of_task ON uniques (tid);

-- A recurring task is the chain of its occurrences: the row follows the one that waits for its time.
CREATE TABLE schedules (
  tid INTEGER PRIMARY KEY,
  cron TEXT NOT NULL,
  zone TEXT NOT NULL,
  misfire TEXT NOT NULL                 -- skip, once, all
);

-- What a start reclaimed and has not reported yet (Q-15).
CREATE TABLE recovered (
  tid INTEGER PRIMARY KEY,
  entry TEXT NOT NULL                   -- JSON, as in the event recovery.report
);
