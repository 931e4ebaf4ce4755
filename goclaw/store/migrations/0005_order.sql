-- The order of ready heads: by last service at equal virtual time; heads of one session that became
-- ready at the same claim by the age of their tasks.

ALTER TABLE heads ADD COLUMN stays INTEGER NOT NULL DEFAULT 0;  -- its session was not idle before
UPDATE heads SET start = start - 1048576 WHERE tie = 0;         -- goes before V, is charged from V
DROP INDEX heads_fair;
DROP INDEX heads_aged;
CREATE INDEX heads_fair ON heads (pool, rank, start, tie, ready_at, tid);
CREATE INDEX heads_aged ON heads (pool, rank, ready_at, tid);
ALTER TABLE levels DROP COLUMN mark;
ALTER TABLE levels DROP COLUMN mark_at;
ALTER TABLE levels DROP COLUMN round;
