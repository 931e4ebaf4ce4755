-- The tasks of one pool, newest first. Those of goclaw's own lanes are no part of it.

CREATE INDEX tasks_of_pool ON tasks (pool, tid) WHERE pool <> '';
