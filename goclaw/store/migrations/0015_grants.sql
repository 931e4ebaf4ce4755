-- A yes that was given before the question: these calls, this long, at most so many (A-7).

CREATE TABLE grants (
  gid INTEGER PRIMARY KEY,
  grant_id TEXT NOT NULL UNIQUE,
  sid INTEGER,                          -- NULL: every session
  tool TEXT NOT NULL,
  resources TEXT NOT NULL,              -- JSON list of globs; empty: any
  digests TEXT NOT NULL,                -- JSON list of exact calls, hex; empty: any
  uses_left INTEGER NOT NULL,
  until_at INTEGER NOT NULL,
  by TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  revoked_at INTEGER
);
CREATE INDEX grants_open ON grants (tool, until_at) WHERE revoked_at IS NULL AND uses_left > 0;
