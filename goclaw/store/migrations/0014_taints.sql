-- What a session has met (A-13): untrusted text, private data. Once met, for ever.

CREATE TABLE taints (
  sid INTEGER NOT NULL REFERENCES sessions (sid),
  label TEXT NOT NULL,
  source TEXT NOT NULL,                 -- the tool whose result brought it
  event_id INTEGER NOT NULL,            -- where it stands in the timeline
  PRIMARY KEY (sid, label)
) WITHOUT ROWID;
