-- Where the audit's chain ends: without it nobody would see that the last records are gone.

CREATE TABLE audit_head (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  seq INTEGER NOT NULL,
  link BLOB NOT NULL
);
INSERT INTO audit_head VALUES (1, 0, zeroblob(32));
UPDATE audit_head SET seq = last.seq, link = last.link
  FROM (SELECT seq, link FROM audit ORDER BY seq DESC LIMIT 1) AS last;
