-- Every statement that changes the database, and every one that reads it while running.
--
-- A program is what the writer runs for one operation; its steps share registers, named like the
-- parameters and the columns of earlier rows. How a step's line reads:
--   step: run            run it; the columns of its last row become registers
--   step: expect CODE    at least one row, else the operation fails with CODE and nothing changed
--   step: refuse CODE    a row means: the operation fails with CODE and nothing changed
--   step: stop           a row means: done, nothing more to do (also for the parts that follow)
--   step: need           no row means: skip to the program's next section, or to its end
--   section              where a need above it goes on when it found nothing
--   step: emit           each row (kind, type, payload), in turn, becomes the session's next event.
--                        The writer gives it event_id + 1, its digest and the chain's next link,
--                        inserts it and, when the program ends, moves the session's head. Registers
--                        it needs: sid, event_id (the head so far), salt, link, now, tid, run_id,
--                        task_id, attempt, trace. After COMMIT the events go to the hub.
--   step: move           run it: it moves the session's head with what else it changes there, so that
--                        the writer need not, unless more is emitted after it
-- "late" programs run after all others of their batch. A fragment is text, expanded when this file
-- is read: <<name argument | argument>>. A query runs on the readers and changes nothing.
-- RETURNING, triggers, IN over a list of more than two and INSERT ... SELECT are left out of what every
-- task passes through: each costs an ephemeral table or a journal of the statement, together 2x of a
-- cycle (2026-11). OR FAIL spares the journal too, where no index moves: an operation that fails is
-- undone as a whole in any case.

-- statement: event_insert
INSERT INTO events (sid, event_id, kind, type, at, tid, attempt, payload, digest)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- statement: head_move
UPDATE sessions SET head = ?, link = ?, updated_at = ? WHERE sid = ?;

-- Moved by every batch: after an error at COMMIT it tells whether the batch is in.
-- statement: batch_count
UPDATE writer SET batches = batches + 1;

-- statement: batch_read
SELECT batches FROM writer;

-- The ledger of migrations.
-- statement: tables_read
SELECT name FROM sqlite_schema;

-- statement: ledger_make
CREATE TABLE IF NOT EXISTS migrations (number INTEGER PRIMARY KEY, checksum TEXT NOT NULL);

-- statement: ledger_read
SELECT number, checksum FROM migrations ORDER BY number;

-- statement: ledger_add
INSERT INTO migrations (number, checksum) VALUES (?, ?);

-- Copies (store/copies.py).
-- statement: copy_into
VACUUM INTO ?;

-- statement: integrity
PRAGMA integrity_check(1);

-- statement: journal_wal
PRAGMA journal_mode=WAL;

-- statement: streams_renew
UPDATE session_info SET stream_id = 'stream_' || lower(hex(randomblob(13)));

-- What every event of a task needs; the condition says which task.
-- fragment: task_columns
t.tid, t.sid, t.line, t.wid, t.run_id, t.task_id, t.kind AS task_kind, t.attempt, t.trace,
       t.state AS was, s.head AS event_id, s.salt, s.link
-- fragment: task condition
SELECT <<task_columns>>
  FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid WHERE <<condition>>;

-- fragment: live_task
<<task t.tid = :tid AND t.lease_token = :token AND t.state = 'RUNNING'>>

-- fragment: event kind type payload
-- step: emit
SELECT <<kind>> AS kind, <<type>> AS type, <<payload>> AS payload;

-- fragment: event_when condition kind type payload
-- step: emit
SELECT <<kind>> AS kind, <<type>> AS type, <<payload>> AS payload WHERE <<condition>>;

-- What an event needs that is of no task: the daemon's own.
-- fragment: of_none condition
SELECT s.head AS event_id, s.salt, s.link, NULL AS tid, NULL AS run_id, NULL AS task_id,
       0 AS attempt, NULL AS trace
  FROM sessions AS s WHERE <<condition>>;

-- Is there room behind the gate of work w? Heads that were let in count as running; a broken one has
-- room for its probe only, which the timer lets in (gate_open).
-- fragment: room sound
<<sound>> AND (w.burst IS NULL OR w.tokens > 0)
              AND (SELECT count(*) FROM heads AS g WHERE g.gate = w.wid)
                + (SELECT count(*) FROM tasks AS g WHERE g.wid = w.wid AND g.state = 'RUNNING')
                < ifnull(w.most, 4611686018427387904)

-- Claims that one level of priority is worth (queue.aging_factor), for the order at gates.
-- fragment: aging
ifnull((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'aging_factor'), 16)

-- The task that is next in a line of its session becomes that line's head, unless there is one
-- already or the turn is held; with its gate closed it stands outside. Line 0 is the serial one.
-- Start-time fair queueing: start = max(V[level] - one claim, finish of the session's last claim). A
-- session whose line was not empty while its own task kept it back loses nothing by that one claim.
-- At equal start the session goes first that was served longest ago (tie). One that comes from idle
-- goes before all (tie 0) and is charged from V; who was away for less than a round does not (the
-- heads that are there now, up to 64, are a round).
-- At a gate without room it takes the place of the least urgent that was let in and is not claimed
-- yet: lanes may be busy for long, and more urgent work of that kind does not wait for it to be picked.
-- stays: its session was not idle since its last claim. ripe: its place at a gate, NULL for a new one.
-- fragment: promote stays sid line sound ripe
-- section
<<come <<stays>> | <<sid>> | <<line>> | <<sound>> | <<ripe>>>>

-- fragment: head_of stays sid line
<<sid>>, <<line>>, :p_tid, :p_pool, :p_rank,
        max(:p_v, :p_finish + (:p_tie > 0) * 1048576) - 1048576, :p_tie, <<stays>>, :p_ready_at,
        :p_passed_at, :p_interactive, iif(:p_gated, :p_wid, NULL), :p_ripe
-- fragment: come stays sid line sound ripe
-- step: need
SELECT t.tid AS p_tid, t.wid AS p_wid, t.pool AS p_pool, t.rank AS p_rank,
       t.kind = 'prompt' AS p_interactive, l.v AS p_v, ifnull(f.finish, 0) AS p_finish,
       ifnull(iif(<<stays>>
                  OR (f.finish >= l.v AND min(p.claims - f.served_at, 63)
                        < (SELECT count(*) FROM (SELECT 1 FROM heads AS h
                                                  WHERE h.pool = t.pool LIMIT 64)))
                  OR EXISTS (SELECT 1 FROM heads AS h
                              WHERE h.sid = <<sid>> AND +h.pool = t.pool AND +h.rank = t.rank),
                  f.served_at + 1, 0), 0) AS p_tie,
       p.claims AS p_ready_at, l.passed AS p_passed_at, w.gated AS p_gated,
       iif(w.gated = 0, NULL, ifnull(<<ripe>>, p.claims + <<aging>> * t.rank)) AS p_ripe,
       iif(w.gated = 0, 1, <<room <<sound>>>>) AS p_open, 0 AS p_instead
  FROM sessions AS s
  JOIN tasks AS t ON t.tid = iif(<<line>> > 0 OR s.turn IS NULL,
             (SELECT q.tid FROM tasks AS q
               WHERE q.sid = s.sid AND q.line = <<line>> AND q.state = 'QUEUED' AND q.held = 0
               ORDER BY q.seq LIMIT 1),
             (SELECT q.tid FROM tasks AS q WHERE q.tid = s.turn AND q.state = 'QUEUED'))
  JOIN works AS w ON w.wid = t.wid
  JOIN pools AS p ON p.pool = t.pool
  JOIN levels AS l ON l.pool = t.pool AND l.rank = t.rank
  LEFT JOIN flows AS f ON f.sid = s.sid AND f.pool = t.pool AND f.rank = t.rank
 WHERE s.sid = <<sid>>
   AND NOT EXISTS (SELECT 1 FROM heads AS h WHERE h.sid = <<sid>> AND h.line = <<line>>)
   AND NOT EXISTS (SELECT 1 FROM stalled AS h WHERE h.sid = <<sid>> AND h.line = <<line>>);
<<stand <<stays>> | <<sid>> | <<line>>>>

-- As come, for the line whose head has just been claimed, where it is a parallel one: a serial line's
-- turn is held. It has no head, it is at no gate, its session was not idle.
-- fragment: next
-- step: need
SELECT t.tid AS p_tid, t.wid AS p_wid, t.pool AS p_pool, t.rank AS p_rank,
       t.kind = 'prompt' AS p_interactive, l.v AS p_v, ifnull(f.finish, 0) AS p_finish,
       ifnull(f.served_at + 1, 0) AS p_tie, p.claims AS p_ready_at, l.passed AS p_passed_at,
       w.gated AS p_gated, iif(w.gated = 0, NULL, p.claims + <<aging>> * t.rank) AS p_ripe,
       iif(w.gated = 0, 1, <<room w.broken IS NULL>>) AS p_open, 0 AS p_instead
  FROM tasks AS t
  JOIN works AS w ON w.wid = t.wid
  JOIN pools AS p ON p.pool = t.pool
  JOIN levels AS l ON l.pool = t.pool AND l.rank = t.rank
  LEFT JOIN flows AS f ON f.sid = :sid AND f.pool = t.pool AND f.rank = t.rank
 WHERE t.tid = (SELECT q.tid FROM tasks AS q
                 WHERE q.sid = :sid AND q.line = :line AND q.state = 'QUEUED' AND q.held = 0
                 ORDER BY q.seq LIMIT 1);
<<stand 1 | :sid | :line>>

-- What come and next found becomes the head, or stands outside.
-- fragment: stand stays sid line
-- step: need
SELECT 1 WHERE :p_open;
-- step: run
INSERT INTO heads (sid, line, tid, pool, rank, start, tie, stays, ready_at, passed_at, interactive,
                   gate, ripe)
VALUES (<<head_of <<stays>> | <<sid>> | <<line>>>>);
-- section
-- step: need
SELECT 1 WHERE :p_gated;
-- step: run
UPDATE works SET tokens = tokens - 1, refill_mono = ifnull(refill_mono, 0)
 WHERE wid = :p_wid AND burst IS NOT NULL AND :p_open;
-- step: run
SELECT g.sid AS o_sid, g.line AS o_line, g.tid AS o_tid, g.ripe AS o_ripe, 1 AS p_instead
  FROM heads AS g JOIN works AS w ON w.wid = :p_wid
 WHERE NOT :p_open AND g.gate = :p_wid AND w.broken IS NULL AND g.ripe > :p_ripe
 ORDER BY g.ripe DESC LIMIT 1;
-- step: run
DELETE FROM heads WHERE :p_instead AND sid = :o_sid AND line = :o_line;
-- step: run
INSERT INTO heads (sid, line, tid, pool, rank, start, tie, stays, ready_at, passed_at, interactive,
                   gate, ripe)
SELECT <<head_of <<stays>> | <<sid>> | <<line>>>> WHERE :p_instead;
-- step: run
INSERT INTO stalled (sid, line, wid, tid, ripe)
SELECT iif(:p_instead, :o_sid, <<sid>>), iif(:p_instead, :o_line, <<line>>), :p_wid,
       iif(:p_instead, :o_tid, :p_tid), iif(:p_instead, :o_ripe, :p_ripe) WHERE NOT :p_open;
-- Who passes here next without a task of its own finds none of this one's.
-- step: run
SELECT 0 AS p_gated;

-- A gate comes down: the heads of its work stand outside until they are let in.
-- fragment: shut wid
-- step: run
INSERT INTO stalled (sid, line, wid, tid, ripe)
SELECT h.sid, h.line, t.wid, h.tid, ifnull(h.ripe, h.ready_at + <<aging>> * h.rank)
  FROM heads AS h JOIN tasks AS t ON t.tid = h.tid WHERE t.wid = <<wid>>;
-- step: run
DELETE FROM heads
 WHERE (sid, line) IN (SELECT g.sid, g.line FROM stalled AS g WHERE g.wid = <<wid>>);

-- A call of a broken work went well: the breaker closes, all may come again.
-- fragment: mend wid
-- step: run
DELETE FROM faults WHERE work = (SELECT work FROM works WHERE wid = <<wid>>);
-- step: run
UPDATE works SET broken = NULL, probe_mono = NULL, probe_ms = NULL,
       gated = most IS NOT NULL OR burst IS NOT NULL
              OR EXISTS (SELECT 1 FROM stalled AS g WHERE g.wid = works.wid)
 WHERE wid = <<wid>>;

-- Something of this work stopped running: behind a gate the next may come in.
-- fragment: leave
-- section
-- step: need
SELECT g.sid AS g_sid, g.line AS g_line, g.ripe AS g_ripe
  FROM works AS w JOIN stalled AS g ON g.wid = w.wid
 WHERE w.wid = :wid AND w.gated = 1 AND <<room w.broken IS NULL>>
 ORDER BY g.ripe LIMIT 1;
-- step: run
DELETE FROM stalled WHERE sid = :g_sid AND line = :g_line;
<<come 0 | :g_sid | :g_line | w.broken IS NULL | :g_ripe>>

-- Intents of an attempt that is over. Pure and keyed calls may be sent again; of all others nobody
-- knows whether they happened (E-3); a worker's can be asked by nobody either.
-- fragment: orphan_intents
-- step: emit
SELECT 1 AS kind, 'message.interrupted' AS type,
       json_object('messageId', call_id, 'ordinal', ordinal) AS payload
  FROM effects WHERE tid = :tid AND state = 'intent' AND kind = 'brain' AND call_id IS NOT NULL
 ORDER BY ordinal;
-- step: emit
SELECT 1 AS kind, 'effect.unknown' AS type,
       json_object('ordinal', ordinal, 'name', name, 'class', class, 'idempotencyKey', key) AS payload
  FROM effects WHERE tid = :tid AND state = 'intent' AND class NOT IN ('pure', 'keyed')
 ORDER BY ordinal;
-- step: run
UPDATE effects
   SET state = iif(class IN ('pure', 'keyed'), 'retryable', 'unknown'), updated_at = :now
 WHERE tid = :tid AND state = 'intent';
-- step: run
SELECT count(*) FILTER (WHERE state = 'unknown') AS unknown_count,
       count(*) FILTER (WHERE state = 'unknown'
                          AND (class = 'irreversible'
                               OR (SELECT kind FROM tasks WHERE tid = :tid) = 'pool')
                          AND ifnull(on_unknown, (SELECT t.on_unknown FROM tasks AS t
                                                   WHERE t.tid = :tid)) = 'suspend')
         AS suspending_count,
       count(*) FILTER (WHERE state = 'result') AS kept_count,
       count(*) FILTER (WHERE state = 'retryable') AS again_count
  FROM effects WHERE tid = :tid;

-- The end of a task's life: the session's turn is free, the next task may come. Of a task that ran
-- in a parallel line the next has come with the claim: freed says whether there is one to come.
-- fragment: terminal freed
-- step: move
UPDATE sessions
   SET head = :event_id, link = :link, updated_at = :now, open = open - 1,
       turn = iif(turn = :tid, NULL, turn)
 WHERE sid = :sid;
-- step: run
DELETE FROM uniques WHERE tid = :tid;
-- section
-- step: need
SELECT 1 WHERE <<freed>>;
<<come 1 | :sid | :line | w.broken IS NULL | NULL>>
<<leave>>

-- Nobody is asked any more: the task is over without an answer.
-- fragment: withdraw_approvals by
-- step: emit
SELECT 1 AS kind, 'approval.resolved' AS type,
       json_object('approvalId', approval_id, 'outcome', 'cancelled', 'by', <<by>>) AS payload
  FROM approvals WHERE tid = :tid AND state = 'open' ORDER BY aid;
-- step: run
UPDATE approvals SET state = 'cancelled', answered_at = :now, answered_by = <<by>>
 WHERE tid = :tid AND state = 'open';

-- program: session_new sid_key hash session_id stream_id salt cwd roots brain interactive weight parent_sid now
-- A session, or the one that was made before with the same key.
-- returns: sid session_id duplicate
-- step: run
SELECT NULL AS dup_sid, NULL AS dup_hash, 0 AS duplicate;
-- step: run
SELECT tid AS dup_sid, hash AS dup_hash FROM submissions
 WHERE :sid_key IS NOT NULL AND sid = 0 AND key = :sid_key;
-- step: refuse idempotency_conflict
SELECT 1 WHERE :dup_hash IS NOT NULL AND :dup_hash <> :hash;
-- step: stop
SELECT sid, session_id, 1 AS duplicate FROM sessions WHERE :dup_sid IS NOT NULL AND sid = :dup_sid;
-- step: run
INSERT INTO sessions (session_id, updated_at, salt, link, weight)
VALUES (:session_id, :now, :salt, zeroblob(32), ifnull(:weight, 1)) RETURNING sid;
-- step: run
INSERT INTO session_info (sid, stream_id, cwd, roots, brain, interactive, parent_sid, created_at)
VALUES (:sid, :stream_id, :cwd, :roots, :brain, :interactive, :parent_sid, :now);
-- step: run
INSERT INTO submissions (sid, key, hash, tid, created_at)
SELECT 0, :sid_key, :hash, :sid, :now WHERE :sid_key IS NOT NULL;

-- program: session_change sid cwd roots title closed_at deleted_at
-- What is not NULL replaces what was; closed_at 0 opens the session again.
-- returns: sid
-- step: expect session_unknown
UPDATE session_info
   SET cwd = ifnull(:cwd, cwd), roots = ifnull(:roots, roots), title = ifnull(:title, title),
       closed_at = nullif(ifnull(:closed_at, closed_at), 0),
       deleted_at = ifnull(:deleted_at, deleted_at)
 WHERE sid = :sid RETURNING sid;

-- program: session_event sid task_id kind type payload now
-- An event that is bound to no lease: the user's words, session info. task_id may be NULL; one
-- that is no task of the session counts as NULL.
-- returns: event_id
-- step: expect session_unknown
SELECT s.head AS event_id, s.salt, s.link, t.tid, t.run_id, t.task_id, t.trace,
       ifnull(t.attempt, 0) AS attempt
  FROM sessions AS s LEFT JOIN tasks AS t ON t.task_id = :task_id AND t.sid = s.sid
 WHERE s.sid = :sid;
<<event :kind | :type | :payload>>

-- program: enqueue sid key made hash task_id run_id pool work kind parallel rank max_attempts on_unknown policy_version trace payload client origin not_before timeout_ms deadline_at unique_key parent_tid session_limit now
-- Accept a task: the row, its event, its place in line. The same key again returns the same task; so
-- does the key of a unique task that has not ended, which is remembered with it (E-6). With not_before it takes its place when it is due.
-- Keys outlive results: expired says that the known task has ended and its result is gone (E-6).
-- A made key is the connection's, not the client's word: it finds the submission and is told nowhere.
-- returns: tid task_id run_id event_id state duplicate expired
-- step: run
SELECT NULL AS dup_tid, NULL AS dup_hash, 0 AS duplicate, 0 AS expired, 0 AS attempt, 'QUEUED' AS state;
-- step: run
SELECT tid AS dup_tid, hash AS dup_hash FROM submissions
 WHERE :key IS NOT NULL AND sid = :sid AND key = :key;
-- step: refuse idempotency_conflict
SELECT run_id FROM tasks WHERE :dup_hash IS NOT NULL AND :dup_hash <> :hash AND tid = :dup_tid;
-- step: stop
SELECT tid, task_id, run_id, state, end_event AS event_id, 1 AS duplicate,
       state IN ('SUCCEEDED', 'FAILED', 'DEAD_LETTER')
       AND NOT EXISTS (SELECT 1 FROM task_results WHERE task_results.tid = :dup_tid) AS expired
  FROM tasks
 WHERE :dup_tid IS NOT NULL AND tid = :dup_tid;
-- step: need
SELECT t.tid, t.task_id, t.run_id, t.state, t.end_event AS event_id, 1 AS duplicate
  FROM uniques AS u JOIN tasks AS t ON t.tid = u.tid
 WHERE :unique_key IS NOT NULL AND u.key = :unique_key
   AND u.scope = iif(:pool = '', 'session:' || :sid, 'pool:' || :pool);
-- step: run
INSERT INTO submissions (sid, key, hash, tid, created_at)
SELECT :sid, :key, :hash, :tid, :now WHERE :key IS NOT NULL;
-- step: stop
SELECT 1;
-- section
-- step: expect session_unknown
SELECT s.head AS event_id, s.salt, s.link, s.open, s.tail,
       (SELECT ifnull(max(tid), 0) + 1 FROM tasks) AS tid,
       (SELECT wid FROM works WHERE work = :work) AS wid,
       (SELECT 1 FROM levels WHERE pool = :pool AND rank = :rank) AS known_level
  FROM sessions AS s WHERE s.sid = :sid;
-- step: refuse queue_full
SELECT 1 WHERE :open >= :session_limit;
-- step: need
SELECT 1 WHERE :wid IS NULL OR :known_level IS NULL;
-- step: run
INSERT INTO works (work, pool) VALUES (:work, :pool) ON CONFLICT DO NOTHING;
-- step: run
INSERT INTO pools (pool) VALUES (:pool) ON CONFLICT DO NOTHING;
-- step: run
INSERT INTO levels (pool, rank) VALUES (:pool, :rank) ON CONFLICT DO NOTHING;
-- step: run
SELECT wid FROM works WHERE work = :work;
-- section
-- step: run
INSERT INTO tasks (tid, task_id, run_id, sid, seq, line, wid, pool, kind, state, rank, max_attempts,
                   on_unknown, policy_version, trace, held, due_at, timeout_ms, deadline_at,
                   parent_tid, since_event, created_at, updated_at, room)
VALUES (:tid, :task_id, :run_id, :sid, max(:tid, :tail + 1), iif(:parallel, :wid, 0), :wid, :pool,
        :kind, 'QUEUED', :rank, :max_attempts, :on_unknown, :policy_version, :trace, :not_before IS NOT NULL,
        :not_before, :timeout_ms, :deadline_at, :parent_tid, :event_id + 1, :now, :now, zeroblob(84));
-- step: run
INSERT INTO task_payloads (tid, payload, key, client, origin, unique_key)
VALUES (:tid, :payload, iif(:made, NULL, :key), :client, :origin, :unique_key);
-- step: run
INSERT INTO submissions (sid, key, hash, tid, created_at)
SELECT :sid, :key, :hash, :tid, :now WHERE :key IS NOT NULL;
-- step: run
INSERT INTO uniques (scope, key, tid)
SELECT iif(:pool = '', 'session:' || :sid, 'pool:' || :pool), :unique_key, :tid
 WHERE :unique_key IS NOT NULL;
-- step: emit
SELECT 1 AS kind, 'run.accepted' AS type,
       json_object('origin', :origin, 'idempotencyKey', iif(:made, NULL, :key)) AS payload
 WHERE :kind = 'prompt'
 UNION ALL
SELECT 1, 'task.queued',
       iif(ifnull(:not_before, :deadline_at) IS NULL,
           '{"from":null,"to":"QUEUED","reason":"accepted"}',
           json_object('from', NULL, 'to', 'QUEUED', 'reason', 'accepted', 'dueAt', :not_before,
                       'deadlineAt', :deadline_at));
-- step: move
UPDATE sessions
   SET head = :event_id, link = :link, updated_at = :now, open = open + 1,
       tail = max(:tid, :tail + 1)
 WHERE sid = :sid;
<<promote 0 | :sid | iif(:parallel, :wid, 0) | w.broken IS NULL | NULL>>

-- What a claim tells of its fairness.
-- fragment: served
p.claims, l.passed, p.claims - h.ready_at AS waited, l.passed - h.passed_at AS overtaken,
       h.stays AS stayed

-- fragment: claim_head
-- step: expect illegal_transition
SELECT t.task_id, t.run_id, t.line, t.wid, t.kind, t.attempt + 1 AS attempt, t.max_attempts,
       t.on_unknown, t.trace, t.crashes, t.failures, t.timeout_ms, y.payload, y.key, y.client,
       y.origin, s.session_id, s.head AS event_id, s.salt, s.link, s.turn, s.weight,
       :start + (:tie = 0) * 1048576 + 1048576 / s.weight AS finish
  FROM tasks AS t JOIN task_payloads AS y ON y.tid = t.tid JOIN sessions AS s ON s.sid = t.sid
 WHERE t.tid = :tid AND t.state = 'QUEUED';
-- step: run
DELETE FROM heads WHERE sid = :sid AND line = :line;
-- step: run
UPDATE tasks
   SET state = 'RUNNING', attempt = :attempt, crashes = :crashes + 1, lease_owner = :owner,
       lease_token = :token, lease_until_mono = :lease_until_mono,
       timeout_mono = :now_mono + :timeout_ms, policy_version = :policy_version, updated_at = :now,
       room = zeroblob(28)
 WHERE tid = :tid;
-- step: emit
SELECT 1 AS kind, 'task.claimed' AS type,
       '{"from":"QUEUED","to":"CLAIMED","reason":"claim"}' AS payload
 UNION ALL
SELECT 1, 'task.running',
       iif(:timeout_ms IS NULL, '{"from":"CLAIMED","to":"RUNNING","reason":"claim"}',
           json_object('from', 'CLAIMED', 'to', 'RUNNING', 'reason', 'claim',
                       'timeoutMs', :timeout_ms));
-- step: move
UPDATE sessions
   SET head = :event_id, link = :link, updated_at = :now,
       turn = iif(:line = 0 AND :turn IS NULL, :tid, turn)
 WHERE sid = :sid;
-- step: run
INSERT OR REPLACE INTO flows (sid, pool, rank, finish, served_at)
VALUES (:sid, :pool, :rank, :finish, :claims);
-- step: run
UPDATE levels SET v = max(v, :start) WHERE pool = :pool AND rank = :rank;
-- step: run
UPDATE OR FAIL levels SET passed = passed + 1 WHERE pool = :pool AND rank > :rank;
-- step: run
UPDATE pools SET claims = claims + 1, last_due = :due WHERE pool = :pool;
-- section
-- step: need
SELECT 1 FROM heads WHERE sid = :sid AND +pool = :pool AND +rank = :rank;
-- step: run
UPDATE heads
   SET start = max(start, :finish), tie = :claims + 1, stays = 1, ready_at = :claims + 1,
       passed_at = :passed
 WHERE sid = :sid AND pool = :pool AND rank = :rank;
-- section
-- step: need
SELECT 1 WHERE :line > 0;
<<next>>

-- program: claim pool owner token lease_until_mono now_mono policy_version aging_factor now
-- The fair pick (Q-8): the most urgent level that is not empty, in virtual-time order, unless a
-- head below it is due; of due heads the oldest, at most every second claim.
-- returns: tid sid session_id task_id run_id kind attempt max_attempts on_unknown trace event_id payload key client origin failures claims rank weight waited overtaken stayed
-- step: need
SELECT h.sid, h.tid, h.rank, h.start, h.tie, 0 AS due, p.last_due, <<served>>
  FROM heads AS h JOIN pools AS p ON p.pool = h.pool
  JOIN levels AS l ON l.pool = h.pool AND l.rank = h.rank
 WHERE h.pool = :pool
 ORDER BY h.rank, h.start, h.tie, h.ready_at, h.tid LIMIT 1;
-- step: run
SELECT h.sid, h.tid, h.rank, h.start, h.tie, 1 AS due, <<served>>
  FROM levels AS l JOIN pools AS p ON p.pool = l.pool
  JOIN heads AS h ON (h.sid, h.line) = (SELECT a.sid, a.line FROM heads AS a
                                         WHERE a.pool = l.pool AND a.rank = l.rank
                                         ORDER BY a.ready_at, a.tid LIMIT 1)
 WHERE :last_due = 0 AND l.pool = :pool AND l.rank > :rank
   AND l.passed - h.passed_at >= :aging_factor * (l.rank - :rank)
 ORDER BY h.ready_at DESC;
<<claim_head>>

-- program: claim_interactive pool owner token lease_until_mono now_mono policy_version now
-- As claim, for a lane that is reserved: prompts only, most urgent first (Q-16).
-- returns: tid sid session_id task_id run_id kind attempt max_attempts on_unknown trace event_id payload key client origin failures claims rank weight waited overtaken stayed
-- step: need
SELECT h.sid, h.tid, h.rank, h.start, h.tie, 0 AS due, <<served>>
  FROM heads AS h JOIN pools AS p ON p.pool = h.pool
  JOIN levels AS l ON l.pool = h.pool AND l.rank = h.rank
 WHERE h.pool = :pool AND h.interactive = 1
 ORDER BY h.rank, h.start, h.tie, h.ready_at LIMIT 1;
<<claim_head>>

-- program: claim_sessions sids pool owner token lease_until_mono now_mono policy_version now
-- As claim, but only of the sessions in a JSON list: the embedded daemon of `goclaw run`.
-- returns: tid sid session_id task_id run_id kind attempt max_attempts on_unknown trace event_id payload key client origin failures claims rank weight waited overtaken stayed
-- step: need
SELECT h.sid, h.tid, h.rank, h.start, h.tie, 0 AS due, <<served>>
  FROM json_each(:sids) AS j CROSS JOIN heads AS h ON h.sid = j.value
  JOIN pools AS p ON p.pool = h.pool
  JOIN levels AS l ON l.pool = h.pool AND l.rank = h.rank
 WHERE h.pool = :pool
 ORDER BY h.rank, h.start, h.tie, h.ready_at, h.tid LIMIT 1;
<<claim_head>>

-- program: claim_any pool
-- Goes before the claims of one worker and the record of their decision: an empty pool ends it all.
-- returns: pool
-- step: stop
SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM heads WHERE pool = :pool);

-- program: heartbeat tid token lease_until_mono
-- returns: tid
-- step: expect lease_lost
SELECT 1 FROM tasks WHERE tid = :tid AND lease_token = :token AND state = 'RUNNING';
-- step: run
UPDATE tasks SET lease_until_mono = max(lease_until_mono, :lease_until_mono)
 WHERE tid = :tid AND lease_token = :token AND state = 'RUNNING';

-- program: append tid token kind type payload now
-- One event of a live attempt.
-- returns: event_id
-- step: expect lease_lost
<<live_task>>
<<event :kind | :type | :payload>>

-- program: complete tid token hash stop_reason result now
-- RUNNING to SUCCEEDED. The same token and result again: the same answer.
-- returns: state event_id
-- step: run
SELECT <<task_columns>>, 'SUCCEEDED' AS state
  FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid
 WHERE t.tid = :tid AND t.lease_token = :token AND t.state = 'RUNNING';
-- step: stop
SELECT ended_state AS state, end_event AS event_id FROM tasks
 WHERE :state IS NULL AND tid = :tid AND ended_token = :token AND ended_hash = :hash
   AND lease_token IS NOT :token;
-- step: expect lease_lost
SELECT 1 WHERE :state IS NOT NULL;
-- step: run
INSERT INTO task_results (tid, result) VALUES (:tid, :result)
    ON CONFLICT (tid) DO UPDATE SET result = excluded.result, error = NULL;
-- step: emit
SELECT 1 AS kind, 'task.succeeded' AS type,
       '{"from":"RUNNING","to":"SUCCEEDED","reason":"finished"}' AS payload
 UNION ALL
SELECT 1, 'run.ended', json_object('state', 'SUCCEEDED', 'stopReason', :stop_reason)
 WHERE :task_kind = 'prompt';
-- step: run
UPDATE tasks
   SET state = 'SUCCEEDED', lease_owner = NULL, lease_token = NULL, lease_until_mono = NULL,
       timeout_mono = NULL, deadline_at = NULL, crashes = crashes - 1, ended_token = :token,
       ended_hash = :hash, ended_state = 'SUCCEEDED', stop_reason = :stop_reason, end_event = :event_id, reason = 'finished', updated_at = :now, room = NULL
 WHERE tid = :tid AND lease_token = :token AND state = 'RUNNING';
-- step: need
SELECT 1 FROM works WHERE wid = :wid AND broken IS NOT NULL;
<<mend :wid>>
-- section
<<terminal :line = 0>>

-- program: fail tid token hash code message retryable fingerprint poison due_mono due_at fault_work breaker_tasks breaker_since_mono now_mono probe_ms now
-- RUNNING to FAILED when it is not retryable, to DEAD_LETTER when the budget is used up or the failure
-- is poison, to SUSPENDED when it left an effect that nobody knows of, else to RETRY_WAIT. The same fingerprint of one work (fault_work) in breaker_tasks tasks opens its breaker (Q-7).
-- returns: state event_id failures
-- step: stop
SELECT ended_state AS state, end_event AS event_id, failures FROM tasks
 WHERE tid = :tid AND ended_token = :token AND ended_hash = :hash AND lease_token IS NOT :token;
-- step: expect lease_lost
<<live_task>>
<<orphan_intents>>
-- step: run
SELECT failures + :retryable AS failures,
       iif(fingerprint IS :fingerprint, repeats + 1, 1) AS repeats,
       CASE WHEN :retryable = 0 THEN 'FAILED'
            WHEN failures + 1 >= max_attempts THEN 'DEAD_LETTER'
            WHEN fingerprint = :fingerprint AND repeats + 1 >= :poison THEN 'DEAD_LETTER'
            WHEN :suspending_count > 0 THEN 'SUSPENDED'
            ELSE 'RETRY_WAIT' END AS state,
       CASE WHEN :retryable = 0 THEN :code
            WHEN failures + 1 >= max_attempts THEN 'attempts_exhausted'
            WHEN fingerprint = :fingerprint AND repeats + 1 >= :poison THEN 'poison'
            WHEN :suspending_count > 0 THEN 'effect_unknown'
            ELSE :code END AS reason
  FROM tasks WHERE tid = :tid;
-- step: run
INSERT OR REPLACE INTO task_results (tid, error)
VALUES (:tid, json_object('code', :code, 'message', :message));
<<event 1 | 'task.' || lower(:state) | json_object('from', 'RUNNING', 'to', :state, 'reason', :reason, 'code', :code, 'message', :message, 'failures', :failures, 'dueAt', iif(:state = 'RETRY_WAIT', :due_at, NULL))>>
<<event_when :task_kind = 'prompt' AND :state IN ('FAILED', 'DEAD_LETTER') | 1 | 'run.ended' | json_object('state', :state, 'reason', :reason, 'code', :code, 'message', :message)>>
-- step: run
UPDATE tasks
   SET state = :state, failures = :failures, crashes = crashes - 1, repeats = :repeats,
       fingerprint = :fingerprint, lease_owner = NULL, lease_token = NULL, lease_until_mono = NULL,
       timeout_mono = NULL, deadline_at = iif(:state IN ('FAILED', 'DEAD_LETTER'), NULL, deadline_at),
       due_mono = iif(:state = 'RETRY_WAIT', :due_mono, NULL),
       due_at = iif(:state = 'RETRY_WAIT', :due_at, NULL), end_event = :event_id,
       ended_token = :token, ended_hash = :hash, ended_state = :state, reason = :reason,
       updated_at = :now
 WHERE tid = :tid AND lease_token = :token AND state = 'RUNNING';
-- step: need
SELECT 1 WHERE :retryable AND :fingerprint IS NOT NULL AND :now_mono IS NOT NULL;
-- step: run
INSERT OR REPLACE INTO faults (work, fingerprint, tid, at_mono)
SELECT ifnull(:fault_work, work), :fingerprint, :tid, :now_mono FROM works WHERE wid = :wid;
-- step: run
DELETE FROM faults
 WHERE work = ifnull(:fault_work, (SELECT work FROM works WHERE wid = :wid))
   AND at_mono < :breaker_since_mono;
-- step: need
SELECT f.work AS b_work FROM faults AS f
 WHERE f.work = ifnull(:fault_work, (SELECT work FROM works WHERE wid = :wid))
   AND f.fingerprint = :fingerprint
 GROUP BY f.work HAVING count(*) >= :breaker_tasks;
-- step: run
INSERT INTO works (work, pool) VALUES (:b_work, '') ON CONFLICT DO NOTHING;
-- step: need
SELECT wid AS b_wid FROM works WHERE work = :b_work AND broken IS NULL;
-- step: run
UPDATE works SET gated = 1, broken = :fingerprint, probe_ms = :probe_ms,
       probe_mono = :now_mono + :probe_ms
 WHERE wid = :b_wid;
<<shut :b_wid>>
<<event 1 | 'breaker.opened' | json_object('work', :b_work, 'fingerprint', :fingerprint)>>
-- section
-- step: need
SELECT 1 WHERE :state IN ('FAILED', 'DEAD_LETTER');
<<terminal :line = 0>>

-- The task goes on: it still holds its session's turn, so it is the head again at once.
-- fragment: requeue condition reason
-- step: need
SELECT 1 FROM tasks WHERE tid = :tid AND (<<condition>>);
<<event 1 | 'task.requeued' | json_object('from', :was, 'to', 'QUEUED', 'reason', <<reason>>)>>
-- step: run
UPDATE tasks
   SET state = 'QUEUED', due_mono = NULL, due_at = NULL, reason = <<reason>>, updated_at = :now
 WHERE tid = :tid AND state IN ('RETRY_WAIT', 'SUSPENDED');
-- step: run
SELECT 'QUEUED' AS state;
<<promote 0 | :sid | :line | w.broken IS NULL | NULL>>

-- program: suspend tid token hash reason detail due_mono due_at now
-- RUNNING to SUSPENDED: the lane is free, the session's turn is held, no budget is spent. What it
-- waits for may have come while the attempt made up its mind: then it goes on at once. detail: more
-- fields of the event, as JSON, or NULL.
-- returns: ended_state end_event
-- step: stop
SELECT ended_state, end_event FROM tasks
 WHERE tid = :tid AND ended_token = :token AND ended_hash = :hash AND lease_token IS NOT :token;
-- step: expect lease_lost
<<live_task>>
<<orphan_intents>>
<<event 1 | 'task.suspended' | json_patch(json_object('from', 'RUNNING', 'to', 'SUSPENDED', 'reason', :reason, 'dueAt', :due_at), ifnull(:detail, '{}'))>>
-- step: run
SELECT 'SUSPENDED' AS was, 'SUSPENDED' AS ended_state, :event_id AS end_event;
-- step: run
UPDATE tasks
   SET state = 'SUSPENDED', lease_owner = NULL, lease_token = NULL, lease_until_mono = NULL,
       crashes = crashes - 1, ended_token = :token, ended_hash = :hash, ended_state = 'SUSPENDED',
       reason = :reason, due_mono = :due_mono, due_at = :due_at, timeout_mono = NULL,
       end_event = :event_id, updated_at = :now
 WHERE tid = :tid AND lease_token = :token AND state = 'RUNNING';
<<requeue CASE WHEN reason = 'approval' THEN NOT EXISTS (SELECT 1 FROM approvals AS a WHERE a.tid = :tid AND a.state = 'open') WHEN reason = 'effect_unknown' THEN :unknown_count = 0 WHEN reason = 'emergency_stop' THEN 0 WHEN reason = 'subtask' THEN NOT EXISTS (SELECT 1 FROM tasks AS c WHERE c.parent_tid = :tid AND c.state IN ('QUEUED', 'RUNNING', 'RETRY_WAIT', 'SUSPENDED')) ELSE EXISTS (SELECT 1 FROM signals AS g WHERE g.tid = :tid AND 'signal:' || g.name = reason) END | 'answered'>>
<<leave>>

-- program: wake tid now_mono waits_for reason now
-- RETRY_WAIT or SUSPENDED to QUEUED: due (now_mono given), or answered (now_mono NULL); with
-- waits_for only what is SUSPENDED for that.
-- returns: state event_id
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: run
SELECT :was AS state;
<<requeue state IN ('RETRY_WAIT', 'SUSPENDED') AND (:now_mono IS NULL OR due_mono <= :now_mono) AND (:waits_for IS NULL OR (state = 'SUSPENDED' AND reason = :waits_for)) | :reason>>

-- program: reclaim tid token hash expired_mono spent crash_budget reason report now
-- late
-- The attempt is over without its owner's word: the lease ran out (expired_mono), the daemon died or
-- stops (expired_mono NULL). tid NULL: whatever task that lease is of. spent 1 keeps the crash that
-- the claim reserved; 0 gives it back. report 1: the recovery report is to name it.
-- With a hash it is its owner's word: it hands the task back, and a repeat is answered as it was.
-- returns: state event_id unknown_count kept_count again_count
-- step: stop
SELECT ended_state AS state, end_event AS event_id FROM tasks
 WHERE tid = :tid AND ended_token = :token AND ended_hash = :hash AND lease_token IS NOT :token;
-- step: expect lease_lost
<<task t.tid = ifnull(:tid, (SELECT l.tid FROM tasks AS l WHERE l.state = 'RUNNING' AND l.lease_token = :token)) AND t.lease_token = :token AND t.state = 'RUNNING' AND (:expired_mono IS NULL OR t.lease_until_mono < :expired_mono)>>
<<orphan_intents>>
-- step: run
SELECT lease_owner AS owner,
       CASE WHEN :spent = 1 AND crashes >= :crash_budget THEN 'DEAD_LETTER'
            WHEN :suspending_count > 0 THEN 'SUSPENDED'
            ELSE 'QUEUED' END AS state,
       CASE WHEN :spent = 1 AND crashes >= :crash_budget THEN 'crashes_exhausted'
            WHEN :suspending_count > 0 THEN 'effect_unknown'
            ELSE :reason END AS end_reason
  FROM tasks WHERE tid = :tid;
<<event 1 | iif(:state = 'QUEUED', 'task.requeued', 'task.' || lower(:state)) | json_object('from', 'RUNNING', 'to', :state, 'reason', :end_reason)>>
-- step: run
INSERT OR REPLACE INTO task_results (tid, error)
SELECT :tid, json_object('code', :end_reason, 'message', 'Its attempts ended without a word.')
 WHERE :state = 'DEAD_LETTER';
<<event_when :task_kind = 'prompt' AND :state = 'DEAD_LETTER' | 1 | 'run.ended' | json_object('state', :state, 'reason', :end_reason, 'message', 'Its attempts ended without a word.')>>
-- step: run
UPDATE tasks
   SET state = :state, crashes = crashes - (:spent = 0), lease_owner = NULL, lease_token = NULL,
       lease_until_mono = NULL, timeout_mono = NULL,
       deadline_at = iif(:state = 'DEAD_LETTER', NULL, deadline_at),
       ended_token = iif(:hash IS NULL, NULL, :token), ended_hash = :hash,
       ended_state = iif(:hash IS NULL, NULL, :state), end_event = :event_id, reason = :end_reason,
       fingerprint = iif(:state = 'DEAD_LETTER', :end_reason, fingerprint), updated_at = :now
 WHERE tid = :tid;
-- step: run
UPDATE sessions SET open = open - 1, turn = iif(turn = :tid, NULL, turn)
 WHERE :state = 'DEAD_LETTER' AND sid = :sid;
-- step: run
DELETE FROM uniques WHERE :state = 'DEAD_LETTER' AND tid = :tid;
-- step: need
SELECT 1 WHERE :report;
-- step: run
INSERT OR REPLACE INTO recovered (tid, entry)
VALUES (:tid, json_object('taskId', :task_id, 'runId', :run_id, 'attempt', :attempt,
                          'state', :state, 'kept', :kept_count, 'repeated', :again_count,
                          'unknown', :unknown_count, 'eventId', :event_id, 'owner', :owner,
                          'sessionId', (SELECT session_id FROM sessions WHERE sid = :sid)));
<<promote 0 | :sid | :line | w.broken IS NULL | NULL>>
<<leave>>

-- program: recovery_report sid most fence now
-- One event that names what the start reclaimed, also an earlier start that ended before it could
-- say so (Q-15). At most `most` tasks by name. fence: what is to be said of effects.log, as JSON.
-- returns: event_id count
-- step: need
SELECT count(*) AS count FROM recovered HAVING count(*) > 0 OR :fence IS NOT NULL;
-- step: expect session_unknown
<<of_none s.sid = :sid>>
<<event 1 | 'recovery.report' | json_patch(json_object('count', :count, 'states', json((SELECT json_group_object(state, tasks) FROM (SELECT json_extract(entry, '$.state') AS state, count(*) AS tasks FROM recovered GROUP BY 1))), 'tasks', json((SELECT json_group_array(json(entry)) FROM (SELECT entry FROM recovered ORDER BY tid LIMIT :most)))), json_object('fence', json(:fence)))>>
-- step: run
DELETE FROM recovered;

-- What stands for the task outside of it is void: its place in line, open questions, its schedule.
-- fragment: withdraw by
-- step: run
DELETE FROM heads WHERE sid = :sid AND line = :line AND tid = :tid;
-- step: run
DELETE FROM stalled WHERE sid = :sid AND line = :line AND tid = :tid;
-- step: run
DELETE FROM schedules WHERE tid = :tid;
<<orphan_intents>>
<<withdraw_approvals <<by>>>>

-- program: cancel tid reason now
-- Any state that is not terminal to CANCELED, exactly once. `was` tells the receipt.
-- returns: was event_id lease_token sid
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: stop
SELECT end_event AS event_id, NULL AS lease_token FROM tasks
 WHERE :was IN ('SUCCEEDED', 'FAILED', 'CANCELED', 'DEAD_LETTER') AND tid = :tid;
-- step: run
SELECT lease_token FROM tasks WHERE tid = :tid;
<<withdraw :reason>>
-- step: run
UPDATE task_results SET error = NULL WHERE tid = :tid;
<<event 1 | 'task.canceled' | json_object('from', :was, 'to', 'CANCELED', 'reason', :reason)>>
<<event_when :task_kind = 'prompt' | 1 | 'run.ended' | json_object('state', 'CANCELED', 'stopReason', 'cancelled', 'reason', :reason)>>
-- step: run
UPDATE tasks
   SET state = 'CANCELED', stop_reason = 'cancelled', crashes = crashes - (state = 'RUNNING'),
       lease_owner = NULL, lease_token = NULL, lease_until_mono = NULL, timeout_mono = NULL,
       deadline_at = NULL, held = 0, due_mono = NULL, due_at = NULL, ended_token = :lease_token,
       ended_hash = NULL, ended_state = NULL, end_event = :event_id, reason = :reason,
       updated_at = :now
 WHERE tid = :tid;
<<terminal true>>

-- program: late_effect tid token ordinal state result failed now
-- After a cancel, what the cancelled attempt still came to know of an effect that nobody knew of is
-- joined to it (Q-11). Its lease is over all the same, and nothing goes on by it.
-- returns: event_id
-- step: need
<<task t.tid = :tid AND t.state = 'CANCELED'>>
-- step: need
SELECT name, class, key FROM effects
 WHERE tid = :tid AND ordinal = :ordinal AND token = :token AND attempt = :attempt
   AND (state = 'unknown' OR (state = 'retryable' AND :state = 'result'));
-- step: run
UPDATE effects SET state = :state, result = :result, failed = :failed, updated_at = :now
 WHERE tid = :tid AND ordinal = :ordinal;
<<event 1 | 'effect.result' | json_object('ordinal', :ordinal, 'name', :name, 'class', :class, 'state', :state, 'failed', json(iif(:failed, 'true', 'false')), 'idempotencyKey', :key, 'late', json('true'))>>

-- program: late_end tid token stop_reason result size now
-- After a cancel, what the cancelled attempt would have answered, once; the task stays CANCELED.
-- result: NULL when it is too large for an event.
-- returns: event_id
-- step: need
<<task t.tid = :tid AND t.state = 'CANCELED' AND t.ended_token = :token>>
<<event 1 | 'attempt.late' | json_object('outcome', 'SUCCEEDED', 'stopReason', :stop_reason, 'bytes', :size, 'result', json(CAST(:result AS TEXT)))>>
-- step: run
UPDATE tasks SET ended_token = NULL WHERE tid = :tid;

-- program: expire tid now
-- The deadline passed before the task had ended: FAILED, whatever it waited for (Q-13).
-- returns: state event_id
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: run
SELECT :was AS state;
-- step: stop
SELECT 1 FROM tasks WHERE tid = :tid AND ifnull(deadline_at, :now + 1) > :now;
<<withdraw 'deadline_exceeded'>>
-- step: run
SELECT 'FAILED' AS state, 'It did not end before its deadline.' AS message;
-- step: run
INSERT OR REPLACE INTO task_results (tid, error)
VALUES (:tid, json_object('code', 'deadline_exceeded', 'message', :message));
<<event 1 | 'task.failed' | json_object('from', :was, 'to', 'FAILED', 'reason', 'deadline_exceeded', 'code', 'deadline_exceeded', 'message', :message)>>
<<event_when :task_kind = 'prompt' | 1 | 'run.ended' | json_object('state', 'FAILED', 'reason', 'deadline_exceeded', 'code', 'deadline_exceeded', 'message', :message)>>
-- step: run
UPDATE tasks
   SET state = 'FAILED', crashes = crashes - (state = 'RUNNING'), lease_owner = NULL,
       lease_token = NULL, lease_until_mono = NULL, timeout_mono = NULL, deadline_at = NULL, held = 0,
       due_mono = NULL, due_at = NULL, ended_token = NULL, ended_hash = NULL, ended_state = NULL,
       end_event = :event_id, reason = 'deadline_exceeded', updated_at = :now
 WHERE tid = :tid;
<<terminal true>>

-- program: redrive tid session_limit now
-- FAILED or DEAD_LETTER to QUEUED, at the tail of its line, with whole budgets; `attempt` goes on.
-- returns: state event_id
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: expect illegal_transition
SELECT y.unique_key, iif(t.pool = '', 'session:' || t.sid, 'pool:' || t.pool) AS scope,
       s.tail + 1 AS tail, s.open
  FROM tasks AS t JOIN task_payloads AS y ON y.tid = t.tid JOIN sessions AS s ON s.sid = t.sid
  JOIN session_info AS i ON i.sid = t.sid
 WHERE t.tid = :tid AND t.state IN ('FAILED', 'DEAD_LETTER') AND t.dropped_at IS NULL
   AND i.deleted_at IS NULL;
-- step: refuse queue_full
SELECT 1 WHERE :open >= :session_limit;
-- step: refuse illegal_transition
SELECT 1 FROM uniques WHERE :unique_key IS NOT NULL AND scope = :scope AND key = :unique_key;
-- step: run
INSERT INTO uniques (scope, key, tid)
SELECT :scope, :unique_key, :tid WHERE :unique_key IS NOT NULL;
-- step: run
DELETE FROM task_results WHERE tid = :tid;
-- step: run
UPDATE sessions SET open = open + 1, tail = :tail WHERE sid = :sid;
<<event 1 | 'task.requeued' | json_object('from', :was, 'to', 'QUEUED', 'reason', 'redrive')>>
-- step: run
UPDATE tasks
   SET state = 'QUEUED', seq = :tail, failures = 0, crashes = 0, repeats = 0, fingerprint = NULL,
       due_mono = NULL, due_at = NULL, ended_token = NULL, ended_hash = NULL, ended_state = NULL,
       stop_reason = NULL, end_event = NULL, since_event = :event_id, reason = 'redrive',
       updated_at = :now
 WHERE tid = :tid;
-- step: run
SELECT 'QUEUED' AS state;
<<promote 0 | :sid | :line | w.broken IS NULL | NULL>>

-- program: drop tid now
-- Nobody wants this dead letter back: it keeps its history and is listed no more.
-- returns: event_id
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: expect illegal_transition
SELECT 1 FROM tasks WHERE tid = :tid AND state = 'DEAD_LETTER' AND dropped_at IS NULL;
-- step: run
UPDATE tasks SET dropped_at = :now WHERE tid = :tid;
<<event 1 | 'dead_letter.dropped' | '{}'>>

-- program: release tid now
-- A delayed task is due: it takes its place at the tail of its line.
-- returns: event_id
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: stop
SELECT 1 FROM tasks WHERE tid = :tid AND (held = 0 OR due_at > :now);
-- step: run
UPDATE sessions SET tail = tail + 1 WHERE sid = :sid;
-- step: run
UPDATE tasks
   SET held = 0, due_at = NULL, updated_at = :now,
       seq = (SELECT s.tail FROM sessions AS s WHERE s.sid = :sid)
 WHERE tid = :tid;
<<event 1 | 'schedule.due' | json_object('at', :now)>>
<<promote 0 | :sid | :line | w.broken IS NULL | NULL>>

-- program: schedule task_id cron zone misfire
-- The task that was just accepted recurs; a duplicate's does already.
-- returns: tid
-- step: need
SELECT tid FROM tasks WHERE task_id = :task_id;
-- step: run
INSERT INTO schedules (tid, cron, zone, misfire) VALUES (:tid, :cron, :zone, :misfire);

-- program: postpone tid due_at now
-- A missed occurrence is left out (misfire skip).
-- returns: event_id
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: stop
SELECT 1 FROM tasks WHERE tid = :tid AND (held = 0 OR due_at >= :due_at);
-- step: run
UPDATE tasks SET due_at = :due_at, updated_at = :now WHERE tid = :tid;
<<event 1 | 'schedule.missed' | json_object('dueAt', :due_at)>>

-- program: recur last_tid task_id run_id trace due_at session_limit now
-- The next occurrence of a recurring task, as the last one; the schedule follows it. In a full queue
-- it does not pile up: not while an earlier one has not ended. One that is due and one that waits may
-- be there all the same, or schedules that fill the queue would never be due again.
-- returns: tid
-- step: need
SELECT tid AS c_tid, last_tid AS c_before FROM schedules WHERE tid = :last_tid;
-- step: refuse queue_full
SELECT 1 FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid JOIN tasks AS b ON b.tid = :c_before
 WHERE t.tid = :last_tid AND s.open >= :session_limit
   AND b.state IN ('QUEUED', 'RUNNING', 'RETRY_WAIT', 'SUSPENDED');
-- step: run
SELECT (SELECT max(tid) + 1 FROM tasks) AS tid, s.sid, s.head AS event_id, s.salt, s.link,
       0 AS attempt
  FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid WHERE t.tid = :last_tid;
-- step: run
INSERT INTO tasks (tid, task_id, run_id, sid, seq, line, wid, pool, kind, state, rank, max_attempts,
                   on_unknown, policy_version, trace, held, due_at, timeout_ms, created_at,
                   updated_at, room)
SELECT :tid, :task_id, :run_id, sid, :tid, line, wid, pool, kind, 'QUEUED', rank, max_attempts,
       on_unknown, policy_version, :trace, 1, :due_at, timeout_ms, :now, :now, zeroblob(84)
  FROM tasks WHERE tid = :last_tid;
-- step: run
INSERT INTO task_payloads (tid, payload, key, client, origin)
SELECT :tid, payload, NULL, client, origin FROM task_payloads WHERE tid = :last_tid;
-- step: run
UPDATE schedules SET tid = :tid, last_tid = :last_tid WHERE tid = :last_tid;
-- step: run
UPDATE sessions SET open = open + 1 WHERE sid = :sid;
<<event 1 | 'task.queued' | json_object('from', NULL, 'to', 'QUEUED', 'reason', 'recurring', 'dueAt', :due_at)>>

-- program: gate_set work pool most burst refill_ms
-- The bounds of one kind of work, as configured; NULL = none. What waited may come (gate_open).
-- returns: wid
-- step: run
INSERT INTO works (work, pool) VALUES (:work, :pool) ON CONFLICT DO NOTHING;
-- step: run
SELECT wid FROM works WHERE work = :work;
<<shut iif(ifnull(:most, :burst) IS NULL, NULL, :wid)>>
-- step: run
UPDATE works
   SET most = :most, burst = :burst, refill_ms = :refill_ms,
       tokens = iif(:burst IS NULL, NULL, min(ifnull(tokens, :burst), :burst)),
       refill_mono = iif(:burst IS NULL, NULL, refill_mono),
       gated = :most IS NOT NULL OR :burst IS NOT NULL OR broken IS NOT NULL
              OR EXISTS (SELECT 1 FROM stalled AS g WHERE g.wid = works.wid)
 WHERE wid = :wid;

-- fragment: refill
-- step: run
UPDATE works
   SET tokens = min(burst, tokens + iif(refill_mono > 0 AND refill_mono <= :now_mono,
                                        1 + (:now_mono - refill_mono) / refill_ms, 0)),
       refill_mono = CASE WHEN refill_mono = 0 THEN :now_mono + refill_ms
                          WHEN refill_mono <= :now_mono
                          THEN refill_mono + refill_ms * (1 + (:now_mono - refill_mono) / refill_ms)
                          ELSE refill_mono END
 WHERE wid = :wid AND refill_mono IS NOT NULL;
-- step: run
UPDATE works SET refill_mono = NULL WHERE wid = :wid AND tokens >= burst;

-- program: gate_open wid now_mono probe_ms_max
-- Time has passed at a gate: tokens come back, a probe may run, one line is let in if there is room.
-- One probe at a time: not while one waits for a lane, nor while anything of this work runs, unless
-- it has run for as long as any probe waits.
-- let_in tells whether it is worth another call.
-- returns: let_in
-- step: run
SELECT 0 AS let_in, 0 AS g_probe;
<<refill>>
-- step: run
SELECT 1 AS g_probe FROM works AS w
 WHERE w.wid = :wid AND w.broken IS NOT NULL AND w.probe_mono <= :now_mono
   AND NOT EXISTS (SELECT 1 FROM heads AS h WHERE h.gate = w.wid)
   AND (w.probe_mono <= :now_mono - :probe_ms_max
        OR NOT EXISTS (SELECT 1 FROM tasks AS r WHERE r.wid = w.wid AND r.state = 'RUNNING'));
-- step: need
SELECT g.sid AS g_sid, g.line AS g_line, g.ripe AS g_ripe, 1 AS let_in
  FROM works AS w JOIN stalled AS g ON g.wid = w.wid
 WHERE w.wid = :wid AND <<room (w.broken IS NULL OR :g_probe)>>
 ORDER BY g.ripe LIMIT 1;
-- step: run
UPDATE works SET probe_mono = :now_mono + probe_ms, probe_ms = min(2 * probe_ms, :probe_ms_max)
 WHERE wid = :wid AND broken IS NOT NULL;
-- step: run
DELETE FROM stalled WHERE sid = :g_sid AND line = :g_line;
<<promote 0 | :g_sid | :g_line | w.broken IS NULL OR w.wid = :wid | :g_ripe>>
-- section
-- step: run
UPDATE works SET gated = 0
 WHERE wid = :wid AND gated = 1 AND most IS NULL AND burst IS NULL AND broken IS NULL
   AND NOT EXISTS (SELECT 1 FROM stalled AS g WHERE g.wid = :wid);

-- program: gate_pass work now_mono probe_ms_max
-- A call inside a run comes to its tool's gate: it takes a token, or the probe's place, or is told
-- when to come again.
-- returns: until_mono
-- step: need
SELECT wid, NULL AS until_mono FROM works WHERE work = :work AND gated = 1;
<<refill>>
-- step: need
SELECT CASE WHEN broken IS NOT NULL AND probe_mono > :now_mono THEN probe_mono
            WHEN burst IS NOT NULL AND tokens <= 0 THEN refill_mono END AS until_mono,
       burst, broken
  FROM works WHERE wid = :wid;
-- step: need
SELECT 1 WHERE :until_mono IS NULL;
-- step: run
UPDATE works
   SET tokens = tokens - 1,
       refill_mono = iif(burst IS NULL, NULL, ifnull(refill_mono, :now_mono + refill_ms)),
       probe_mono = iif(broken IS NULL, NULL, :now_mono + probe_ms),
       probe_ms = min(2 * probe_ms, :probe_ms_max)
 WHERE wid = :wid;

-- program: gate_mend work
-- A call inside a run went well whose tool's breaker is open: it closes.
-- returns: wid
-- step: need
SELECT wid FROM works WHERE work = :work AND broken IS NOT NULL;
<<mend :wid>>

-- program: effect_intent tid token ordinal kind name class key hash request call_id now
-- Journal the intent of a call that is not pure, before it is sent (E-1). A row with state result or
-- unknown is the journal's answer instead: nothing may be sent. A number is to be noted in effects.log
-- before it is, also when the same intent is told twice. What was noted there in a life that a restore
-- took away is unknown (E-8).
-- returns: e_state e_result e_failed e_deduplicated e_key event_id number epoch
-- step: run
SELECT NULL AS e_state, NULL AS e_hash, NULL AS e_result, 0 AS e_failed, 0 AS e_deduplicated,
       NULL AS d_state, NULL AS d_hash, NULL AS x_hash, :key AS e_key, NULL AS number, NULL AS epoch;
-- step: expect lease_lost
<<live_task>>
-- step: run
SELECT state AS e_state, hash AS e_hash, result AS e_result, failed AS e_failed,
       deduplicated AS e_deduplicated, key AS e_key
  FROM effects WHERE tid = :tid AND ordinal = :ordinal;
-- step: refuse nondeterminism
SELECT :e_hash AS recorded WHERE :e_hash IS NOT NULL AND :e_hash <> :hash;
-- step: need
SELECT 1 WHERE :e_state IS NULL OR :e_state = 'retryable' OR (:e_state = 'unknown' AND :class = 'keyed');
-- Of others with its key, the last row counts: what is known, else what may have happened.
-- step: run
SELECT state AS d_state, hash AS d_hash, result AS e_result, failed AS e_failed FROM effects
 WHERE key = :key AND class <> 'pure' AND :class <> 'pure' AND NOT (tid = :tid AND ordinal = :ordinal)
 ORDER BY CASE state WHEN 'result' THEN 2 WHEN 'retryable' THEN 0 ELSE 1 END, tid;
-- step: refuse idempotency_conflict
SELECT 1 WHERE :d_hash IS NOT NULL AND :d_hash <> :hash;
-- step: refuse effect_unknown
SELECT 1 WHERE :d_state IN ('intent', 'unknown') AND :class <> 'keyed';
-- step: run
SELECT hash AS x_hash FROM fenced WHERE key = :key AND :class <> 'pure';
-- step: refuse idempotency_conflict
SELECT 1 WHERE :x_hash IS NOT NULL AND :x_hash <> :hash;
-- step: run
SELECT CASE WHEN :d_state = 'result' THEN 'result'
            WHEN :x_hash IS NOT NULL AND :class <> 'keyed' THEN 'unknown'
            ELSE 'intent' END AS e_state,
       :d_state IS 'result' AS e_deduplicated;
-- step: run
DELETE FROM fenced WHERE :x_hash IS NOT NULL AND :e_state <> 'result' AND key = :key;
-- step: run
INSERT INTO effects (tid, ordinal, kind, name, class, state, key, hash, request, result, failed,
                     deduplicated, call_id, attempt, token, created_at, updated_at)
VALUES (:tid, :ordinal, :kind, :name, :class, :e_state, :key, :hash, :request,
        iif(:e_state = 'result', :e_result, NULL), iif(:e_state = 'result', :e_failed, 0),
        :e_deduplicated, :call_id, :attempt, :token, :now, :now)
    ON CONFLICT (tid, ordinal) DO UPDATE
   SET state = excluded.state, result = excluded.result, failed = excluded.failed,
       deduplicated = excluded.deduplicated, call_id = excluded.call_id,
       attempt = excluded.attempt, token = excluded.token, updated_at = excluded.updated_at;
<<event_when :e_state = 'intent' | 1 | 'effect.intent' | json_object('ordinal', :ordinal, 'kind', :kind, 'name', :name, 'class', :class, 'idempotencyKey', :key, 'requestHash', lower(hex(:hash)))>>
<<event_when :e_state = 'unknown' | 1 | 'effect.unknown' | json_object('ordinal', :ordinal, 'name', :name, 'class', :class, 'idempotencyKey', :key, 'reason', 'restored')>>
<<event_when :e_state = 'result' | 1 | 'effect.result' | json_object('ordinal', :ordinal, 'name', :name, 'state', 'result', 'failed', json(iif(:e_failed, 'true', 'false')), 'deduplicated', json('true'))>>
<<event_when :e_state = 'result' AND :call_id IS NOT NULL | 0 | 'update' | json_object('sessionUpdate', 'tool_call_update', 'toolCallId', :call_id, 'status', iif(:e_failed, 'failed', 'completed'))>>
-- section
-- step: run
SELECT number + 1 AS number, epoch FROM fence
 WHERE id = 1 AND :e_state = 'intent' AND :class <> 'pure';
-- step: run
UPDATE fence SET number = :number WHERE id = 1 AND :number IS NOT NULL;

-- program: effect_on_unknown tid token ordinal on_unknown
-- The rule that allowed the call says what follows an unknown outcome (E-3); behind the intent.
-- step: run
UPDATE effects SET on_unknown = :on_unknown
 WHERE tid = :tid AND ordinal = :ordinal AND token = :token AND state = 'intent';

-- program: effect_result tid token ordinal state result failed now
-- Close an intent of this lease: result (final), retryable (nothing was sent or the far side said
-- so), unknown (dispatch ended without a definite answer).
-- returns: event_id
-- step: expect lease_lost
<<live_task>>
-- step: expect illegal_transition
SELECT name, class, key FROM effects
 WHERE tid = :tid AND ordinal = :ordinal AND token = :token AND state IN ('intent', 'unknown');
-- step: run
UPDATE effects SET state = :state, result = :result, failed = :failed, updated_at = :now
 WHERE tid = :tid AND ordinal = :ordinal;
<<event 1 | iif(:state = 'unknown', 'effect.unknown', 'effect.result') | json_object('ordinal', :ordinal, 'name', :name, 'class', :class, 'state', :state, 'failed', json(iif(:failed, 'true', 'false')), 'idempotencyKey', :key)>>

-- program: effect_place tid token ordinal
-- Goes before a worker's effect: its ordinals have no holes, whatever order they are sent in.
-- returns: ordinal
-- step: expect lease_lost
SELECT 1 FROM tasks WHERE tid = :tid AND lease_token = :token AND state = 'RUNNING';
-- step: refuse invalid_params
SELECT 1 WHERE :ordinal > (SELECT count(*) FROM effects WHERE tid = :tid);

-- program: effect_orphan tid token now
-- Goes before a worker's last word: intents that it gave no result for.
-- returns: tid
-- step: need
<<task t.tid = :tid AND t.lease_token = :token AND t.state = 'RUNNING' AND EXISTS (SELECT 1 FROM effects AS e WHERE e.tid = :tid AND e.state = 'intent')>>
<<orphan_intents>>

-- program: effect_adopt tid token ordinal
-- An unknown effect of an earlier attempt comes under this lease, so that its probe or its telling
-- can be recorded.
-- returns: ordinal
-- step: expect lease_lost
SELECT 1 FROM tasks WHERE tid = :tid AND lease_token = :token AND state = 'RUNNING';
-- step: expect illegal_transition
UPDATE effects SET token = :token WHERE tid = :tid AND ordinal = :ordinal AND state = 'unknown'
RETURNING ordinal;

-- program: effect_record tid token ordinal kind name key hash request result failed call_id now
-- A pure effect: its result is its record (E-1). A final result stays what it was.
-- returns: event_id
-- step: expect lease_lost
<<live_task>>
-- step: refuse nondeterminism
SELECT hash AS recorded FROM effects WHERE tid = :tid AND ordinal = :ordinal AND hash <> :hash;
-- step: need
SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM effects
                            WHERE tid = :tid AND ordinal = :ordinal AND state = 'result');
-- step: run
INSERT INTO effects (tid, ordinal, kind, name, class, state, key, hash, request, result, failed,
                     call_id, attempt, token, created_at, updated_at)
VALUES (:tid, :ordinal, :kind, :name, 'pure', 'result', :key, :hash, :request, :result, :failed,
        :call_id, :attempt, :token, :now, :now)
    ON CONFLICT (tid, ordinal) DO UPDATE
   SET state = 'result', result = excluded.result, failed = excluded.failed,
       attempt = excluded.attempt, token = excluded.token, updated_at = excluded.updated_at;
<<event 1 | 'effect.result' | json_object('ordinal', :ordinal, 'kind', :kind, 'name', :name, 'class', 'pure', 'state', 'result', 'failed', json(iif(:failed, 'true', 'false')))>>

-- program: effect_settle tid ordinal outcome result failed by now
-- An operator's word, or a probe's, on an unknown effect: done (with its result), not_done, or redo,
-- which sends it again whatever happened. The task goes on when nothing of it is unknown any more.
-- returns: event_id unsettled
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: expect illegal_transition
SELECT name, call_id FROM effects
 WHERE tid = :tid AND ordinal = :ordinal AND state = 'unknown'
   AND NOT (:outcome = 'redo' AND :was IN ('SUCCEEDED', 'CANCELED'));
-- step: run
UPDATE effects
   SET state = iif(:outcome = 'done', 'result', 'retryable'), result = :result, failed = :failed,
       updated_at = :now
 WHERE tid = :tid AND ordinal = :ordinal;
<<event 1 | 'effect.settled' | json_object('ordinal', :ordinal, 'name', :name, 'outcome', :outcome, 'by', :by)>>
<<event_when :outcome = 'done' AND :call_id IS NOT NULL | 0 | 'update' | json_object('sessionUpdate', 'tool_call_update', 'toolCallId', :call_id, 'status', iif(:failed, 'failed', 'completed'))>>
-- step: run
SELECT count(*) AS unsettled FROM effects WHERE tid = :tid AND state = 'unknown';
<<requeue state = 'SUSPENDED' AND reason = 'effect_unknown' AND :unsettled = 0 | 'settled'>>

-- program: effect_fail tid ordinal message by now
-- An operator gives the task up over an effect that stays unknown.
-- returns: event_id
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: expect illegal_transition
SELECT name, call_id FROM effects
 WHERE tid = :tid AND ordinal = :ordinal AND state = 'unknown'
   AND :was IN ('QUEUED', 'RETRY_WAIT', 'SUSPENDED');
-- step: run
DELETE FROM heads WHERE sid = :sid AND line = :line AND tid = :tid;
-- step: run
DELETE FROM stalled WHERE sid = :sid AND line = :line AND tid = :tid;
<<event 1 | 'effect.settled' | json_object('ordinal', :ordinal, 'name', :name, 'outcome', 'fail', 'by', :by)>>
<<event_when :call_id IS NOT NULL | 0 | 'update' | json_object('sessionUpdate', 'tool_call_update', 'toolCallId', :call_id, 'status', 'failed')>>
<<withdraw_approvals :by>>
-- step: run
INSERT OR REPLACE INTO task_results (tid, error)
VALUES (:tid, json_object('code', 'settled_as_fail', 'message', :message));
<<event 1 | 'task.failed' | json_object('from', :was, 'to', 'FAILED', 'reason', 'settled_as_fail', 'by', :by)>>
<<event_when :task_kind = 'prompt' | 1 | 'run.ended' | json_object('state', 'FAILED', 'reason', 'settled_as_fail', 'code', 'settled_as_fail', 'message', :message)>>
-- step: run
UPDATE tasks
   SET state = 'FAILED', due_mono = NULL, due_at = NULL, deadline_at = NULL, ended_token = NULL,
       ended_hash = NULL, ended_state = NULL, end_event = :event_id, reason = 'settled_as_fail',
       updated_at = :now
 WHERE tid = :tid;
<<terminal true>>

-- program: approval_open tid token approval_id ordinal digest request expires_at now
-- Durable before anybody is asked; the suspend follows in the same operation.
-- returns: event_id
-- step: expect lease_lost
<<live_task>>
-- step: run
INSERT INTO approvals (approval_id, sid, tid, ordinal, digest, request, state, created_at, expires_at)
VALUES (:approval_id, :sid, :tid, :ordinal, :digest, :request, 'open', :now, :expires_at);
<<event 1 | 'approval.opened' | json_object('approvalId', :approval_id, 'ordinal', :ordinal, 'expiresAt', :expires_at, 'request', json(CAST(:request AS TEXT)))>>

-- program: approval_resolve approval_id option_id allowed state by now
-- The first answer counts; the task goes on when nothing else is asked of it.
-- returns: event_id sid tid outcome a_state
-- step: expect unknown_id
SELECT state AS a_state, option_id AS outcome, tid FROM approvals WHERE approval_id = :approval_id;
-- step: refuse already_resolved
SELECT 1 WHERE :a_state <> 'open';
-- step: run
<<task t.tid = :tid>>
-- step: run
UPDATE approvals
   SET state = :state, option_id = :option_id, allowed = :allowed, answered_by = :by,
       answered_at = :now
 WHERE approval_id = :approval_id;
-- step: run
SELECT :option_id AS outcome;
<<event 1 | 'approval.resolved' | json_object('approvalId', :approval_id, 'outcome', iif(:state = 'expired', 'expired', :option_id), 'allowed', json(iif(:allowed, 'true', 'false')), 'by', :by)>>
<<requeue state = 'SUSPENDED' AND reason = 'approval' AND NOT EXISTS (SELECT 1 FROM approvals WHERE tid = :tid AND state = 'open') | 'answered'>>

-- program: grant_put grant_id sid tool resources digests uses until_at by now
-- returns: grant_id
-- step: run
INSERT INTO grants (grant_id, sid, tool, resources, digests, uses_left, until_at, by, created_at)
VALUES (:grant_id, :sid, :tool, :resources, :digests, :uses, :until_at, :by, :now);

-- program: grant_revoke grant_id now
-- returns: gid
-- step: expect unknown_id
SELECT gid FROM grants
 WHERE grant_id = :grant_id AND revoked_at IS NULL AND uses_left > 0 AND until_at > :now;
-- step: run
UPDATE grants SET revoked_at = :now WHERE gid = :gid;

-- program: grant_use grant_id tid token approval_id ordinal digest request now
-- A grant answers the question about this very call before anybody is asked; one use less is left.
-- returns: event_id
-- step: expect unknown_id
SELECT gid FROM grants
 WHERE grant_id = :grant_id AND revoked_at IS NULL AND uses_left > 0 AND until_at > :now;
-- step: expect lease_lost
<<live_task>>
-- step: run
UPDATE grants SET uses_left = uses_left - 1 WHERE gid = :gid;
-- step: run
INSERT INTO approvals (approval_id, sid, tid, ordinal, digest, request, state, option_id, allowed,
                       answered_by, created_at, expires_at, answered_at)
VALUES (:approval_id, :sid, :tid, :ordinal, :digest, :request, 'resolved', 'allow', 1, :grant_id,
        :now, :now, :now);
<<event 1 | 'approval.resolved' | json_object('approvalId', :approval_id, 'ordinal', :ordinal, 'outcome', 'allow', 'allowed', json('true'), 'by', :grant_id)>>

-- program: approval_park approval_id expires_at
-- Nobody is there: the question waits on (A-7).
-- returns: approval_id
-- step: run
UPDATE approvals SET expires_at = :expires_at
 WHERE approval_id = :approval_id AND state = 'open' RETURNING approval_id;

-- program: signal tid name payload key hash most now
-- The first signal of a name wins (E-9); a run that waits for it goes on. Later ones, and the same key
-- again, are answered with the event of the first.
-- returns: answer duplicate
-- step: run
SELECT NULL AS k_hash, NULL AS answer, 0 AS duplicate;
-- step: expect unknown_id
<<task t.tid = :tid>>
-- step: run
SELECT hash AS k_hash, event_id AS answer, 1 AS duplicate FROM signal_keys
 WHERE :key IS NOT NULL AND tid = :tid AND key = :key;
-- step: refuse idempotency_conflict
SELECT 1 WHERE :k_hash <> :hash;
-- step: stop
SELECT 1 WHERE :k_hash IS NOT NULL;
-- step: run
SELECT ifnull(event_id, 0) AS answer, 1 AS duplicate FROM signals WHERE tid = :tid AND name = :name;
-- step: refuse illegal_transition
SELECT 1 WHERE :duplicate = 0 AND :was IN ('SUCCEEDED', 'FAILED', 'CANCELED', 'DEAD_LETTER');
-- step: refuse too_large
SELECT 1
 WHERE (:duplicate = 0 AND (SELECT count(*) FROM signals WHERE tid = :tid) >= :most)
    OR (:key IS NOT NULL AND (SELECT count(*) FROM signal_keys WHERE tid = :tid) >= :most);
-- step: run
INSERT INTO signal_keys (tid, key, hash, event_id)
SELECT :tid, :key, :hash, ifnull(:answer, :event_id + 1) WHERE :key IS NOT NULL;
-- step: need
SELECT :event_id + 1 AS answer WHERE :duplicate = 0;
-- step: run
INSERT INTO signals (tid, name, payload, at, event_id)
VALUES (:tid, :name, :payload, :now, :answer);
<<event 1 | 'signal.received' | json_object('name', :name)>>
<<requeue state = 'SUSPENDED' AND reason = 'signal:' || :name | 'signal'>>

-- program: audit_prune upto
-- The oldest records go; what they leave is told in the chain by whoever calls this (A-8).
-- returns: upto
-- step: run
DELETE FROM audit WHERE seq <= :upto;

-- program: audit record now
-- One record of the audit chain; commits with what it allows (A-8).
-- returns: seq
-- step: run
SELECT seq + 1 AS seq, chain_link(link, seq + 1, :now, 'audit', NULL, NULL, :record) AS link
  FROM audit_head WHERE id = 1;
-- step: run
INSERT INTO audit (seq, at, record, link) VALUES (:seq, :now, :record, :link);
-- step: run
UPDATE audit_head SET seq = :seq, link = :link WHERE id = 1;

-- What the log says of an effect, by its ordinal; ``sid``, ``tid`` and ``at`` bound what is looked at.
-- fragment: ended_effects
SELECT json_extract(CAST(e.payload AS TEXT), '$.ordinal') FROM events AS e
 WHERE e.sid = :of_sid AND e.event_id <= :at AND e.tid = :of_tid
   AND (e.type = 'effect.result' AND json_extract(CAST(e.payload AS TEXT), '$.state') = 'result'
        OR e.type = 'effect.settled' AND json_extract(CAST(e.payload AS TEXT), '$.outcome') = 'done')

-- program: fork sid_key hash of_tid at was attempts session_id stream_id task_id run_id trace client now
-- A session with the past of another one up to event ``at``, and in it the run of ``of_tid`` as it
-- stood there, QUEUED: the effects that had ended by then keep their results, the others are to come
-- (E-7). Of that run all events are copied, of earlier ones what was said; the salt goes with them,
-- since their digests do. was: the task's state at that event, attempts: its claims so far. The same
-- key again returns the same fork.
-- returns: sid session_id task_id run_id event_id stubbed duplicate
-- step: run
SELECT NULL AS dup_sid, NULL AS dup_hash, 0 AS duplicate;
-- step: run
SELECT tid AS dup_sid, hash AS dup_hash FROM submissions
 WHERE :sid_key IS NOT NULL AND sid = 0 AND key = :sid_key;
-- step: refuse idempotency_conflict
SELECT 1 WHERE :dup_hash IS NOT NULL AND :dup_hash <> :hash;
-- step: stop
SELECT s.sid, s.session_id, t.task_id, t.run_id, s.head AS event_id, 1 AS duplicate,
       (SELECT count(*) FROM effects AS e WHERE e.tid = t.tid AND e.key LIKE 'fork:%') AS stubbed
  FROM sessions AS s JOIN tasks AS t ON t.sid = s.sid
 WHERE :dup_sid IS NOT NULL AND s.sid = :dup_sid ORDER BY t.tid LIMIT 1;
-- step: expect unknown_id
SELECT t.sid AS of_sid, t.task_id AS of_task, t.run_id AS of_run, s.session_id AS of_session,
       s.salt, t.line, t.wid, (SELECT max(tid) + 1 FROM tasks) AS tid, :attempts AS attempt
  FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid WHERE t.tid = :of_tid;
-- step: run
INSERT INTO sessions (session_id, updated_at, salt, link, open, weight, tail)
SELECT :session_id, :now, salt, zeroblob(32), 1, weight, :tid FROM sessions WHERE sid = :of_sid
RETURNING sid;
-- step: run
INSERT INTO session_info (sid, stream_id, cwd, roots, brain, interactive, title, created_at,
                          parent_sid, parent_event)
SELECT :sid, :stream_id, cwd, roots, brain, interactive, title, :now, :of_sid, :at
  FROM session_info WHERE sid = :of_sid;
-- step: run
INSERT INTO submissions (sid, key, hash, tid, created_at)
SELECT 0, :sid_key, :hash, :sid, :now WHERE :sid_key IS NOT NULL;
-- step: run
INSERT INTO tasks (tid, task_id, run_id, sid, seq, line, wid, pool, kind, state, rank, attempt,
                   max_attempts, on_unknown, reason, policy_version, trace, timeout_ms, created_at,
                   updated_at, room)
SELECT :tid, :task_id, :run_id, :sid, :tid, line, wid, pool, kind, 'QUEUED', rank, :attempt,
       max_attempts, on_unknown, 'forked', policy_version, :trace, timeout_ms, :now, :now,
       zeroblob(84)
  FROM tasks WHERE tid = :of_tid;
-- step: run
INSERT INTO task_payloads (tid, payload, client, origin)
SELECT :tid, payload, :client, 'fork' FROM task_payloads WHERE tid = :of_tid;
-- step: run
UPDATE sessions SET turn = :tid WHERE sid = :sid AND :line = 0 AND :attempt > 0;
-- step: run
INSERT INTO effects (tid, ordinal, kind, name, class, state, key, hash, request, result, failed,
                     deduplicated, call_id, attempt, token, created_at, updated_at)
SELECT :tid, ordinal, kind, name, class, state, 'fork:' || key, hash, request, result, failed,
       deduplicated, call_id, attempt, token, created_at, updated_at
  FROM effects WHERE tid = :of_tid AND state = 'result' AND ordinal IN (<<ended_effects>>);
-- step: run
INSERT INTO events (sid, event_id, kind, type, at, tid, attempt, payload, digest)
SELECT :sid, row_number() OVER (ORDER BY event_id), kind, type, at, iif(tid = :of_tid, :tid, NULL),
       attempt, payload, digest
  FROM events WHERE sid = :of_sid AND event_id <= :at AND (kind <> 1 OR tid = :of_tid);
-- The chain anew: each row of the walk follows from the one before, and the last stays.
-- step: run
WITH RECURSIVE walk (event_id, link) AS (
  SELECT 0, zeroblob(32)
   UNION ALL
  SELECT e.event_id,
         chain_link(walk.link, e.event_id, e.at, e.type, iif(e.tid IS NULL, NULL, :run_id),
                    iif(e.tid IS NULL, NULL, :task_id), e.digest)
    FROM walk JOIN events AS e ON e.sid = :sid AND e.event_id = walk.event_id + 1)
SELECT event_id, link FROM walk;
-- step: emit
SELECT 1 AS kind, 'message.interrupted' AS type,
       json_object('messageId', :of_task || '.' || json_extract(CAST(i.payload AS TEXT), '$.ordinal')
                                || '.' || i.attempt,
                   'ordinal', json_extract(CAST(i.payload AS TEXT), '$.ordinal')) AS payload
  FROM events AS i
 WHERE i.sid = :of_sid AND i.event_id <= :at AND i.tid = :of_tid AND i.type = 'effect.intent'
   AND i.attempt = :attempt AND json_extract(CAST(i.payload AS TEXT), '$.kind') = 'brain'
   AND json_extract(CAST(i.payload AS TEXT), '$.ordinal') NOT IN (<<ended_effects>>)
   AND NOT EXISTS (
         SELECT 1 FROM events AS x
          WHERE x.sid = :of_sid AND x.event_id > i.event_id AND x.event_id <= :at
            AND x.tid = :of_tid AND x.type = 'message.interrupted'
            AND json_extract(CAST(x.payload AS TEXT), '$.ordinal')
                = json_extract(CAST(i.payload AS TEXT), '$.ordinal'));
-- step: emit
SELECT 1 AS kind, 'approval.resolved' AS type,
       json_object('approvalId', json_extract(CAST(o.payload AS TEXT), '$.approvalId'),
                   'outcome', 'cancelled', 'by', 'fork') AS payload
  FROM events AS o
 WHERE o.sid = :of_sid AND o.event_id <= :at AND o.tid = :of_tid AND o.type = 'approval.opened'
   AND json_extract(CAST(o.payload AS TEXT), '$.approvalId') NOT IN (
         SELECT json_extract(CAST(r.payload AS TEXT), '$.approvalId') FROM events AS r
          WHERE r.sid = :of_sid AND r.event_id <= :at AND r.tid = :of_tid
            AND r.type = 'approval.resolved');
-- step: run
SELECT count(*) AS stubbed FROM effects WHERE tid = :tid;
-- step: emit
SELECT 1 AS kind, 'run.forked' AS type,
       json_object('parentSessionId', :of_session, 'parentRunId', :of_run, 'parentEventId', :at,
                   'state', :was, 'stubbed', :stubbed) AS payload;
<<event_when :was <> 'QUEUED' | 1 | 'task.requeued' | json_object('from', :was, 'to', 'QUEUED', 'reason', 'forked')>>
<<promote 0 | :sid | :line | w.broken IS NULL | NULL>>

-- program: policy_activate sid version text by now
-- The policy that is in force from now on: stored before it is active, and told where the daemon's
-- own events are (A-3). The one that is in force already is told once.
-- returns: event_id
-- step: run
INSERT INTO policies (version, text, at) VALUES (:version, :text, :now) ON CONFLICT DO NOTHING;
-- step: run
SELECT NULL AS was;
-- step: run
SELECT version AS was FROM policy_activations ORDER BY seq DESC LIMIT 1;
-- step: need
SELECT 1 WHERE :was IS NOT :version;
-- step: run
INSERT INTO policy_activations (version, at, by) VALUES (:version, :now, :by);
-- step: need
<<of_none s.sid = :sid>>
<<event 1 | 'policy.activated' | json_object('version', :version, 'was', :was, 'by', :by)>>

-- program: policy_refused sid by message now
-- A policy that was to be loaded is none; the one in force stays.
-- returns: event_id
-- step: need
<<of_none s.sid = :sid>>
<<event 1 | 'policy.refused' | json_object('by', :by, 'message', :message)>>

-- program: artefact_put key digest now
-- returns: key
-- step: run
INSERT INTO artefacts (key, digest, at) VALUES (:key, :digest, :now)
    ON CONFLICT (key) DO UPDATE SET digest = excluded.digest, at = excluded.at RETURNING key;

-- program: stop_set sid told now
-- The emergency stop; told: who stopped what, as JSON (A-15).
-- returns: event_id
-- step: run
INSERT INTO meta (key, value) VALUES ('stop', :told)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value;
-- step: need
<<of_none s.sid = :sid>>
<<event 1 | 'daemon.stopped' | :told>>

-- program: stop_clear sid by now
-- returns: event_id
-- step: need
SELECT 1 FROM meta WHERE key = 'stop';
-- step: run
DELETE FROM meta WHERE key = 'stop';
-- step: need
<<of_none s.sid = :sid>>
<<event 1 | 'daemon.resumed' | json_object('by', :by)>>

-- program: meta_drop key
-- step: run
DELETE FROM meta WHERE key = :key;

-- program: meta_put key value
-- returns: key
-- step: run
INSERT INTO meta (key, value) VALUES (:key, :value)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value RETURNING key;

-- program: aging_set factor
-- Another aging_factor: what waits at gates stands in the order that it gives.
-- returns: factor
-- step: need
SELECT <<aging>> AS old WHERE <<aging>> <> :factor;
-- step: run
UPDATE stalled
   SET ripe = ripe + (:factor - :old) * (SELECT rank FROM tasks WHERE tid = stalled.tid);
-- step: run
UPDATE heads SET ripe = ripe + (:factor - :old) * rank WHERE gate IS NOT NULL;
-- step: run
INSERT INTO meta (key, value) VALUES ('aging_factor', :factor)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- program: fence_add key hash
-- An effect that effects.log knows and this file does not.
-- returns: key
-- step: run
INSERT INTO fenced (key, hash) VALUES (:key, :hash) ON CONFLICT DO NOTHING;

-- program: fence_begin epoch number
-- All of them are in: numbers go on behind the last one that was noted.
-- returns: epoch
-- step: run
UPDATE fence SET epoch = :epoch, number = :number WHERE id = 1;

-- program: rebase_boot boot now now_mono
-- Another boot: monotonic deadlines on disk mean nothing any more; what waited for a duration is
-- given its rest by the wall clock, but never more than it had, leases are over (Q-6).
-- returns: boot
-- step: run
UPDATE tasks SET due_mono = :now_mono + max(0, min(due_at - :now, due_at - updated_at))
 WHERE due_mono IS NOT NULL;
-- step: run
UPDATE tasks SET lease_until_mono = 0, timeout_mono = NULL WHERE state = 'RUNNING';
-- step: run
DELETE FROM faults;
-- step: run
UPDATE works SET refill_mono = iif(refill_mono IS NULL, NULL, 0),
       probe_mono = iif(probe_mono IS NULL, NULL, :now_mono)
 WHERE gated = 1;
-- step: run
INSERT INTO meta (key, value) VALUES ('boot', :boot)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- query: session_by_id session_id
SELECT s.sid, s.session_id, s.head, s.oldest, s.turn, s.open, s.updated_at, i.stream_id, i.cwd,
       i.roots, i.brain, i.interactive, i.title, i.created_at, i.closed_at, i.deleted_at,
       p.session_id AS parent_id
  FROM sessions AS s JOIN session_info AS i ON i.sid = s.sid
  LEFT JOIN sessions AS p ON p.sid = i.parent_sid WHERE s.session_id = :session_id;

-- query: session_by_sid sid
SELECT s.sid, s.session_id, s.head, s.oldest, s.turn, s.open, s.updated_at, i.stream_id, i.cwd,
       i.roots, i.brain, i.interactive, i.title, i.created_at, i.closed_at, i.deleted_at,
       p.session_id AS parent_id
  FROM sessions AS s JOIN session_info AS i ON i.sid = s.sid
  LEFT JOIN sessions AS p ON p.sid = i.parent_sid WHERE s.sid = :sid;

-- query: sessions_listed cwd before_at before_sid limit
SELECT s.sid, s.session_id, s.head, s.oldest, s.turn, s.open, s.updated_at, i.stream_id, i.cwd,
       i.roots, i.brain, i.interactive, i.title, i.created_at, i.closed_at, i.deleted_at,
       p.session_id AS parent_id
  FROM session_info AS i JOIN sessions AS s ON s.sid = i.sid
  LEFT JOIN sessions AS p ON p.sid = i.parent_sid
 WHERE i.deleted_at IS NULL AND (i.created_at, i.sid) < (:before_at, :before_sid)
   AND (:cwd IS NULL OR i.cwd = :cwd)
 ORDER BY i.created_at DESC, i.sid DESC LIMIT :limit;

-- query: sessions_count
SELECT count(*) FROM session_info WHERE deleted_at IS NULL;

-- query: session_bounds sid
SELECT head, oldest FROM sessions WHERE sid = :sid;

-- query: latest_event_at
SELECT MAX(updated_at) FROM sessions;

-- query: events_after sid cursor limit
SELECT e.event_id, e.kind, e.type, e.at, t.run_id, t.task_id, e.attempt, t.trace, e.payload
  FROM events AS e LEFT JOIN tasks AS t ON t.tid = e.tid
 WHERE e.sid = :sid AND e.event_id > :cursor ORDER BY e.event_id LIMIT :limit;

-- Newest first: what a model is reminded of.
-- query: events_before sid cursor limit
SELECT e.event_id, e.kind, e.type, e.at, t.run_id, e.payload
  FROM events AS e LEFT JOIN tasks AS t ON t.tid = e.tid
 WHERE e.sid = :sid AND e.event_id < :cursor ORDER BY e.event_id DESC LIMIT :limit;

-- query: chain_after sid cursor limit
SELECT e.event_id, e.at, e.type, t.run_id, t.task_id, e.payload, e.digest, e.attempt
  FROM events AS e LEFT JOIN tasks AS t ON t.tid = e.tid
 WHERE e.sid = :sid AND e.event_id > :cursor ORDER BY e.event_id LIMIT :limit;

-- query: sessions_after cursor limit
SELECT sid, session_id FROM sessions WHERE sid > :cursor ORDER BY sid LIMIT :limit;

-- query: task_states sid
SELECT task_id, state, attempt FROM tasks WHERE sid = :sid ORDER BY tid;

-- query: effect_states sid
SELECT t.task_id, e.ordinal, e.state FROM tasks AS t JOIN effects AS e ON e.tid = t.tid
 WHERE t.sid = :sid ORDER BY t.tid, e.ordinal;

-- query: chain_of_session sid
SELECT salt, link, head, oldest FROM sessions WHERE sid = :sid;

-- fragment: task_row condition
SELECT t.tid, t.task_id, s.session_id, t.run_id, t.kind, t.pool, t.state, t.reason, t.attempt,
       t.failures, t.crashes, t.max_attempts, 9 - t.rank AS priority, t.lease_owner,
       t.lease_until_mono, t.due_mono, t.due_at, t.created_at, t.updated_at, t.stop_reason, t.deadline_at,
       t.timeout_ms, t.fingerprint, t.dropped_at, t.parent_tid, t.held, t.line, t.wid, w.work, t.end_event, t.policy_version, t.trace, t.sid, r.result, r.error
  FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid
  LEFT JOIN works AS w ON w.wid = t.wid
  LEFT JOIN task_results AS r ON r.tid = t.tid
 WHERE <<condition>>

-- query: task_by_id task_id
<<task_row t.task_id = :task_id>>;

-- query: task_by_tid tid
<<task_row t.tid = :tid>>;

-- Three ways in: all tasks newest first, those of one session, those of one pool.
-- query: tasks_listed sid pool before state limit
<<task_row :sid IS NULL AND :pool IS NULL AND t.tid < :before AND (:state IS NULL OR t.state = :state)>>
UNION ALL
<<task_row t.sid = :sid AND (:pool IS NULL OR t.pool = :pool) AND t.tid < :before AND (:state IS NULL OR t.state = :state)>>
UNION ALL
<<task_row :sid IS NULL AND t.pool = :pool AND t.pool <> '' AND t.tid < :before AND (:state IS NULL OR t.state = :state)>>
 ORDER BY 1 DESC LIMIT :limit;

-- Tasks are counted by indexes alone: what has ended may be millions.
-- fragment: queued_count
((SELECT count(*) FROM tasks INDEXED BY tasks_line WHERE state = 'QUEUED' AND held = 0)
 + (SELECT count(*) FROM tasks INDEXED BY tasks_held WHERE held = 1))

-- fragment: running_count
(SELECT count(*) FROM tasks INDEXED BY tasks_live WHERE state = 'RUNNING')

-- fragment: waiting_count which
(SELECT count(*) FROM tasks INDEXED BY tasks_waiting
  WHERE state IN ('RETRY_WAIT', 'SUSPENDED') AND <<which>>)

-- fragment: unhappy_count which
(SELECT count(*) FROM tasks INDEXED BY tasks_unhappy
  WHERE state < 'Q' AND <<which>>)

-- What has no index of its own is the rest.
-- query: task_counts
SELECT 'QUEUED', <<queued_count>>
UNION ALL SELECT 'RUNNING', <<running_count>>
UNION ALL SELECT 'RETRY_WAIT', <<waiting_count state = 'RETRY_WAIT'>>
UNION ALL SELECT 'SUSPENDED', <<waiting_count state = 'SUSPENDED'>>
UNION ALL SELECT 'FAILED', <<unhappy_count state = 'FAILED'>>
UNION ALL SELECT 'CANCELED', <<unhappy_count state = 'CANCELED'>>
UNION ALL SELECT 'DEAD_LETTER', <<unhappy_count state = 'DEAD_LETTER'>>
UNION ALL SELECT 'SUCCEEDED', (SELECT count(*) FROM tasks) - <<queued_count>> - <<running_count>>
                              - <<waiting_count true>> - <<unhappy_count true>>;

-- In the order of the line. Each state by its own partial index: what has ended is a long tale.
-- query: task_state tid
SELECT state FROM tasks WHERE tid = :tid;

-- query: open_tasks_of_session sid
SELECT t.tid, t.task_id, t.run_id, t.kind, t.state, p.client, s.turn IS t.tid AS turn,
       t.since_event
  FROM (SELECT tid FROM tasks INDEXED BY tasks_line
         WHERE sid = :sid AND state = 'QUEUED' AND held = 0
        UNION ALL
        SELECT tid FROM tasks INDEXED BY tasks_live WHERE sid = :sid AND state = 'RUNNING'
        UNION ALL
        SELECT tid FROM tasks INDEXED BY tasks_waiting
         WHERE sid = :sid AND state IN ('RETRY_WAIT', 'SUSPENDED')) AS o
  JOIN tasks AS t ON t.tid = o.tid JOIN task_payloads AS p ON p.tid = t.tid
  JOIN sessions AS s ON s.sid = t.sid
 ORDER BY t.seq;

-- Who has how much to do, newest sessions first; at most so many tasks of each kind are looked at.
-- fragment: open_tasks state index condition order
SELECT sid, <<state>> AS state FROM (SELECT sid, state FROM tasks INDEXED BY <<index>>
 WHERE <<condition>> ORDER BY <<order>> LIMIT :most)

-- query: open_by_session most
SELECT s.session_id, o.state, count(*) AS tasks
  FROM (<<open_tasks 'QUEUED' | tasks_line | state = 'QUEUED' AND held = 0 | sid DESC>>
        UNION ALL <<open_tasks 'QUEUED' | tasks_held | held = 1 | due_at>>
        UNION ALL <<open_tasks 'RUNNING' | tasks_live | state = 'RUNNING' | wid DESC>>
        UNION ALL
        <<open_tasks state | tasks_waiting | state IN ('RETRY_WAIT', 'SUSPENDED') | sid DESC>>) AS o
  JOIN sessions AS s ON s.sid = o.sid
 GROUP BY o.sid, o.state ORDER BY o.sid DESC;

-- query: worker_task task_id
SELECT t.tid, s.session_id, t.kind, p.key, substr(p.payload, 1, 64)
  FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid JOIN task_payloads AS p ON p.tid = t.tid
 WHERE t.task_id = :task_id;

-- query: live_lease task_id
SELECT attempt, lease_token FROM tasks
 WHERE task_id = :task_id AND state = 'RUNNING' AND kind = 'pool';

-- query: live_tasks
SELECT tid, lease_token, lease_owner, lease_until_mono, pool FROM tasks WHERE state = 'RUNNING';

-- query: expired_leases now_mono limit
SELECT tid, lease_token FROM tasks WHERE state = 'RUNNING' AND lease_until_mono < :now_mono
 ORDER BY lease_until_mono LIMIT :limit;

-- query: due_tasks now_mono limit
SELECT tid FROM tasks WHERE due_mono IS NOT NULL AND due_mono <= :now_mono
 ORDER BY due_mono LIMIT :limit;

-- query: next_due now
SELECT min(due_mono) FROM tasks WHERE due_mono > :now;

-- query: timeouts_due now_mono limit
SELECT tid, lease_token, failures FROM tasks
 WHERE timeout_mono IS NOT NULL AND timeout_mono <= :now_mono ORDER BY timeout_mono LIMIT :limit;

-- query: next_timeout now
SELECT min(timeout_mono) FROM tasks WHERE timeout_mono > :now;

-- query: deadlines_due now limit
SELECT tid FROM tasks WHERE deadline_at IS NOT NULL AND deadline_at <= :now
 ORDER BY deadline_at LIMIT :limit;

-- query: next_deadline now
SELECT min(deadline_at) FROM tasks WHERE deadline_at > :now;

-- query: held_due now limit
SELECT t.tid, t.due_at, c.cron, c.zone, c.misfire
  FROM tasks AS t LEFT JOIN schedules AS c ON c.tid = t.tid
 WHERE t.held = 1 AND t.due_at <= :now ORDER BY t.due_at LIMIT :limit;

-- query: next_held now
SELECT min(due_at) FROM tasks WHERE held = 1 AND due_at > :now;

-- query: gates
SELECT wid, work, most, burst, tokens, refill_mono, broken, probe_mono, waiting FROM gates;

-- What stands in a redrive's way; taken: the task that has its unique key now.
-- fragment: given_up condition
SELECT t.tid, t.task_id, t.sid, t.pool, t.state, t.dropped_at, s.open, i.deleted_at, y.unique_key,
       o.task_id AS taken
  FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid JOIN session_info AS i ON i.sid = t.sid
  JOIN task_payloads AS y ON y.tid = t.tid
  LEFT JOIN uniques AS u ON u.key = y.unique_key
       AND u.scope = iif(t.pool = '', 'session:' || t.sid, 'pool:' || t.pool)
  LEFT JOIN tasks AS o ON o.tid = u.tid
 WHERE <<condition>>

-- query: given_up_by_id task_id
<<given_up t.task_id = :task_id>>;

-- Oldest first: they come back in the order in which they were submitted.
-- query: given_up_by_fingerprint fingerprint after limit
<<given_up t.state = 'DEAD_LETTER' AND t.dropped_at IS NULL AND t.fingerprint = :fingerprint AND t.tid > :after>>
 ORDER BY t.tid LIMIT :limit;

-- All that decides when a task goes on. head, stalled: whose place those of its line are (Q-14).
-- fragment: why condition
SELECT t.tid, t.task_id, t.run_id, t.sid, t.kind, t.pool, t.state, t.reason, t.attempt, t.failures, t.crashes,
       t.max_attempts, t.lease_owner, t.lease_until_mono, t.timeout_mono, t.due_mono, t.due_at,
       t.deadline_at, t.held, t.line, t.seq, t.rank, t.fingerprint, t.dropped_at, t.end_event, t.wid,
       w.work, s.turn, r.error, c.cron, c.zone, h.tid AS head, h.start, h.tie, h.ready_at,
       h.passed_at, g.tid AS stalled, g.ripe
  FROM tasks AS t JOIN sessions AS s ON s.sid = t.sid LEFT JOIN works AS w ON w.wid = t.wid
  LEFT JOIN heads AS h ON h.sid = t.sid AND h.line = t.line
  LEFT JOIN stalled AS g ON g.sid = t.sid AND g.line = t.line
  LEFT JOIN schedules AS c ON c.tid = t.tid LEFT JOIN task_results AS r ON r.tid = t.tid
 WHERE <<condition>>;

-- query: why_task task_id
<<why t.task_id = :task_id>>

-- query: why_task_by_tid tid
<<why t.tid = :tid>>

-- The occurrence before one that waits, while it has not ended.
-- query: why_recurs tid
SELECT b.task_id, b.state FROM schedules AS c JOIN tasks AS b ON b.tid = c.last_tid
 WHERE c.tid = :tid AND b.state IN ('QUEUED', 'RUNNING', 'RETRY_WAIT', 'SUSPENDED');

-- How many go before a task: of its line, of the ready ones of its pool, of those at its gate.
-- query: why_line sid line seq limit
SELECT count(*) FROM (SELECT 1 FROM tasks INDEXED BY tasks_line
                       WHERE sid = :sid AND line = :line AND state = 'QUEUED' AND held = 0
                         AND seq < :seq LIMIT :limit);

-- query: why_ready pool rank start tie ready_at tid limit
SELECT count(*) FROM (SELECT 1 FROM heads
                       WHERE pool = :pool AND (rank, start, tie, ready_at, tid)
                                              < (:rank, :start, :tie, :ready_at, :tid)
                       LIMIT :limit);

-- query: why_gate wid ripe sid line limit
SELECT count(*) FROM (SELECT 1 FROM stalled
                       WHERE wid = :wid AND (ripe, sid, line) < (:ripe, :sid, :line) LIMIT :limit);

-- query: why_level pool rank
SELECT l.passed, (SELECT h.rank FROM heads AS h WHERE h.pool = :pool ORDER BY h.rank LIMIT 1)
  FROM levels AS l WHERE l.pool = :pool AND l.rank = :rank;

-- query: why_work work
SELECT wid, work, most, burst, tokens, refill_mono, broken, probe_mono FROM works
 WHERE work = :work;

-- query: why_under_way wid
SELECT (SELECT count(*) FROM tasks WHERE wid = :wid AND state = 'RUNNING'),
       (SELECT count(*) FROM heads WHERE gate = :wid);

-- query: why_approvals tid limit
SELECT approval_id, request, expires_at FROM approvals
 WHERE tid = :tid AND state = 'open' ORDER BY ordinal LIMIT :limit;

-- query: why_event sid event_id
SELECT payload FROM events WHERE sid = :sid AND event_id = :event_id;

-- query: effects_in_state tid state limit
SELECT ordinal, name, class FROM effects
 WHERE tid = :tid AND state = :state ORDER BY ordinal LIMIT :limit;

-- Calls that were not made: denied (2) or rejected (3).
-- query: effects_refused tid limit
SELECT ordinal, name, failed, result FROM effects
 WHERE tid = :tid AND failed IN (2, 3) ORDER BY ordinal LIMIT :limit;

-- query: dead_letters before fingerprint limit
<<task_row t.state = 'DEAD_LETTER' AND t.dropped_at IS NULL AND t.tid < :before AND (:fingerprint IS NULL OR t.fingerprint = :fingerprint)>>
 ORDER BY t.tid DESC LIMIT :limit;

-- Of sub-tasks only those that have not ended.
-- query: children_of tid
SELECT tid, task_id, state FROM tasks
 WHERE parent_tid = :tid AND state IN ('QUEUED', 'RUNNING', 'RETRY_WAIT', 'SUSPENDED');

-- query: open_children
SELECT c.task_id, t.tid, t.task_id AS parent_id, t.state
  FROM tasks AS c INDEXED BY tasks_children JOIN tasks AS t ON t.tid = c.parent_tid
 WHERE c.parent_tid IS NOT NULL AND c.state IN ('QUEUED', 'RUNNING', 'RETRY_WAIT', 'SUSPENDED');

-- As many generations as a run may be deep.
-- query: ancestors tid
SELECT a.parent_tid, b.parent_tid AS grand_tid, c.parent_tid AS great_tid
  FROM tasks AS a LEFT JOIN tasks AS b ON b.tid = a.parent_tid
  LEFT JOIN tasks AS c ON c.tid = b.parent_tid WHERE a.tid = :tid;

-- Parents whose sub-tasks have all ended: a kill may have come before they were woken.
-- query: parents_to_wake
SELECT t.tid FROM tasks AS t INDEXED BY tasks_waiting
 WHERE t.state IN ('RETRY_WAIT', 'SUSPENDED') AND t.state = 'SUSPENDED' AND t.reason = 'subtask'
   AND NOT EXISTS (SELECT 1 FROM tasks AS o WHERE o.parent_tid = t.tid
                      AND o.state IN ('QUEUED', 'RUNNING', 'RETRY_WAIT', 'SUSPENDED'));

-- query: schedule_of tid
SELECT cron, zone, misfire FROM schedules WHERE tid = :tid;

-- The oldest head of each level, as Turn of engine/fairness.py.
-- query: heads_waiting pools
SELECT h.pool, h.sid, p.claims, h.rank, s.weight, p.claims - h.ready_at, l.passed - h.passed_at,
       h.stays
  FROM json_each(:pools) AS j CROSS JOIN pools AS p ON p.pool = j.value
  JOIN levels AS l ON l.pool = p.pool
  JOIN heads AS h ON (h.sid, h.line) = (SELECT a.sid, a.line FROM heads AS a
                                         WHERE a.pool = l.pool AND a.rank = l.rank
                                         ORDER BY a.ready_at, a.tid LIMIT 1)
  JOIN sessions AS s ON s.sid = h.sid;

-- query: ready_pools pools
SELECT j.value FROM json_each(:pools) AS j
 WHERE EXISTS (SELECT 1 FROM heads AS h WHERE h.pool = j.value);

-- query: effects_of_task tid
SELECT ordinal, kind, name, class, state, key, hash, request, result, failed, deduplicated, call_id,
       attempt, token, created_at, updated_at
  FROM effects WHERE tid = :tid ORDER BY ordinal;

-- query: effects_page tid after limit
SELECT ordinal, kind, name, class, state, key, hash, created_at
  FROM effects WHERE tid = :tid AND ordinal > :after ORDER BY ordinal LIMIT :limit;

-- query: effect_of_task tid ordinal
SELECT ordinal, kind, name, class, state, key, hash, created_at, request
  FROM effects WHERE tid = :tid AND ordinal = :ordinal;

-- The first that this lease began and nobody knows of.
-- query: unknown_effect tid token
SELECT ordinal FROM effects
 WHERE tid = :tid AND token = :token AND state = 'unknown' ORDER BY ordinal LIMIT 1;

-- query: worker_effect tid ordinal
SELECT name, class, state, hash, result, failed FROM effects
 WHERE tid = :tid AND ordinal = :ordinal;

-- query: approvals_listed sid limit
SELECT a.approval_id, s.session_id, t.task_id, t.run_id, a.ordinal, a.request, a.state, a.option_id,
       a.allowed, a.answered_by, a.created_at, a.expires_at, a.answered_at, a.sid
  FROM approvals AS a INDEXED BY approvals_open
  JOIN sessions AS s ON s.sid = a.sid JOIN tasks AS t ON t.tid = a.tid
 WHERE a.state = 'open' AND (:sid IS NULL OR a.sid = :sid) ORDER BY a.aid LIMIT :limit;

-- query: approval_by_id approval_id
SELECT a.approval_id, s.session_id, t.task_id, t.run_id, a.ordinal, a.request, a.state, a.option_id,
       a.allowed, a.answered_by, a.created_at, a.expires_at, a.answered_at, a.sid
  FROM approvals AS a JOIN sessions AS s ON s.sid = a.sid JOIN tasks AS t ON t.tid = a.tid
 WHERE a.approval_id = :approval_id;

-- query: grants_of_tool tool sid now limit
SELECT g.grant_id, s.session_id, g.tool, g.resources, g.digests, g.uses_left, g.until_at,
       g.by, g.created_at
  FROM grants AS g INDEXED BY grants_open LEFT JOIN sessions AS s ON s.sid = g.sid
 WHERE g.tool = :tool AND g.until_at > :now AND g.revoked_at IS NULL AND g.uses_left > 0
   AND (g.sid IS NULL OR g.sid = :sid)
 ORDER BY g.until_at LIMIT :limit;

-- query: grants_listed now limit
SELECT g.grant_id, s.session_id, g.tool, g.resources, g.digests, g.uses_left, g.until_at,
       g.by, g.created_at
  FROM grants AS g INDEXED BY grants_open LEFT JOIN sessions AS s ON s.sid = g.sid
 WHERE g.until_at > :now AND g.revoked_at IS NULL AND g.uses_left > 0
 ORDER BY g.tool, g.until_at LIMIT :limit;

-- query: approvals_of_task tid
SELECT approval_id, ordinal, digest, state, option_id, allowed, answered_by FROM approvals
 WHERE tid = :tid
 ORDER BY aid;

-- query: approvals_due now limit
SELECT approval_id FROM approvals WHERE state = 'open' AND expires_at <= :now
 ORDER BY expires_at LIMIT :limit;

-- query: next_expiry now
SELECT min(expires_at) FROM approvals WHERE state = 'open' AND expires_at > :now;

-- query: signals_of_task tid
SELECT name, payload FROM signals WHERE tid = :tid;

-- query: submission sid key
SELECT t.task_id, t.run_id, t.state FROM submissions AS u JOIN tasks AS t ON t.tid = u.tid
 WHERE u.sid = :sid AND u.key = :key;

-- Where a task stood at an event of its session, and how much of the log a fork there would copy.
-- query: fork_point sid tid at
SELECT p.state, p.attempt, p.whole, p.events, p.bytes
  FROM (SELECT json_extract(CAST(l.payload AS TEXT), '$.to') AS state, l.attempt,
               json_extract(CAST(f.payload AS TEXT), '$.from') IS NULL AS whole,
               (SELECT count(*) FROM events AS c
                 WHERE c.sid = :sid AND c.event_id <= :at) AS events,
               (SELECT ifnull(sum(length(c.payload)), 0) FROM events AS c
                 WHERE c.sid = :sid AND c.event_id <= :at) AS bytes
          FROM events AS l
          JOIN events AS f ON f.sid = :sid AND f.event_id = (
                 SELECT min(b.event_id) FROM events AS b
                  WHERE b.sid = :sid AND b.event_id <= :at AND b.tid = :tid AND b.type LIKE 'task.%')
         WHERE l.sid = :sid AND l.event_id = (
                 SELECT max(b.event_id) FROM events AS b
                  WHERE b.sid = :sid AND b.event_id <= :at AND b.tid = :tid
                    AND b.type LIKE 'task.%')) AS p;

-- query: submission_of_task tid
SELECT payload, key, client, origin FROM task_payloads WHERE tid = :tid;

-- query: fence_read
SELECT epoch, number FROM fence WHERE id = 1;

-- query: tasks_stopped reason limit
SELECT tid FROM tasks WHERE state IN ('RETRY_WAIT', 'SUSPENDED') AND reason = :reason LIMIT :limit;

-- query: meta_get key
SELECT value FROM meta WHERE key = :key;

-- query: artefact_get key
SELECT digest FROM artefacts WHERE key = :key;

-- query: policy_get version
SELECT text FROM policies WHERE version = :version;

-- Versions that work in progress is pinned to, and their texts.
-- query: policies_pinned
SELECT version, text FROM policies
 WHERE version IN (SELECT policy_version FROM tasks
                    WHERE state = 'RUNNING'
                    UNION ALL
                   SELECT policy_version FROM tasks WHERE state IN ('RETRY_WAIT', 'SUSPENDED'));

-- query: policy_activations before limit
SELECT seq, version, at, by FROM policy_activations
 WHERE seq < :before ORDER BY seq DESC LIMIT :limit;

-- query: audit_before seq limit
SELECT seq, at, record FROM audit WHERE seq < :seq ORDER BY seq DESC LIMIT :limit;

-- query: audit_head
SELECT seq, link FROM audit_head WHERE id = 1;

-- query: audit_after seq limit
SELECT seq, at, record, link FROM audit WHERE seq > :seq ORDER BY seq LIMIT :limit;

-- query: database_bytes
SELECT (SELECT page_count FROM pragma_page_count()) * (SELECT page_size FROM pragma_page_size());

-- program: secret_put name sealed hosts tools digest created now
-- returns: name
-- step: run
INSERT INTO secrets (name, sealed, hosts, tools, digest, created_at, updated_at)
VALUES (:name, :sealed, :hosts, :tools, :digest, :created, :now)
    ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed, hosts = excluded.hosts,
       tools = excluded.tools, digest = excluded.digest, updated_at = excluded.updated_at
    RETURNING name;

-- program: secret_drop name
-- returns: name
-- step: run
DELETE FROM secrets WHERE name = :name;

-- query: secrets_all
SELECT name, sealed, hosts, tools, digest, created_at, updated_at FROM secrets ORDER BY name;

-- program: taint tid token label source now
-- A session has met something for the first time; later times change nothing.
-- step: expect lease_lost
<<live_task>>
-- step: need
SELECT 1 AS fresh WHERE NOT EXISTS (SELECT 1 FROM taints WHERE sid = :sid AND label = :label);
<<event 1 | 'session.tainted' | json_object('label', :label, 'source', :source)>>
-- step: run
INSERT INTO taints (sid, label, source, event_id) VALUES (:sid, :label, :source, :event_id);

-- query: taints_any
SELECT 1 FROM taints LIMIT 1;

-- query: taints_of sid
SELECT label FROM taints WHERE sid IN (
  WITH RECURSIVE line (sid) AS (
    SELECT :sid
    UNION
    SELECT i.parent_sid FROM session_info AS i JOIN line USING (sid) WHERE i.parent_sid IS NOT NULL
  )
  SELECT sid FROM line);
