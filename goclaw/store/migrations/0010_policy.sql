-- What follows an unknown outcome may be said by the rule that allowed the call (E-3), and which
-- policy was in force since when (A-3).

ALTER TABLE effects ADD COLUMN on_unknown TEXT;  -- suspend, tell_brain; NULL: as its task says

CREATE TABLE policy_activations (
  seq INTEGER PRIMARY KEY,
  version TEXT NOT NULL REFERENCES policies (version),
  at INTEGER NOT NULL,
  by TEXT NOT NULL                      -- 'start', or the client that asked for it
);
