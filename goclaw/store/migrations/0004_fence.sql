-- The restore fence (E-8): effects.log, beside the database, notes every intent before it is sent.

-- One row. number: given to the last intent of an effect that is not pure; one more with each. A line
-- of effects.log with a higher one was noted in a life that this file knows nothing of.
CREATE TABLE fence (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  epoch INTEGER NOT NULL,               -- one more after each restored backup
  number INTEGER NOT NULL
);
INSERT INTO fence SELECT 1, 1, count(*) FROM effects WHERE class <> 'pure';

-- What was sent in such lives, until it is met again.
CREATE TABLE fenced (
  key TEXT PRIMARY KEY,
  hash BLOB NOT NULL
) WITHOUT ROWID;
