-- The end of a session's line: who comes back joins it there, and who is new stands behind him.

ALTER TABLE sessions ADD COLUMN tail INTEGER NOT NULL DEFAULT 0;  -- the last place that was given
UPDATE sessions
   SET tail = (SELECT ifnull(max(t.seq), 0) FROM tasks AS t WHERE t.sid = sessions.sid);
