-- A signal's answer is kept, so that a repeated one gets the same (E-9).
ALTER TABLE signals ADD COLUMN event_id INTEGER;

-- Every signal that was given a key, the ones that came too late included.
CREATE TABLE signal_keys (
  tid INTEGER NOT NULL,
  key TEXT NOT NULL,
  hash BLOB NOT NULL,                   -- of name and payload
  event_id INTEGER NOT NULL,            -- of the first signal of its name
  PRIMARY KEY (tid, key)
) WITHOUT ROWID;
