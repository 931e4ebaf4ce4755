-- A session may begin with another one's past (E-7).

ALTER TABLE session_info ADD COLUMN parent_sid INTEGER REFERENCES sessions (sid);
ALTER TABLE session_info ADD COLUMN parent_event INTEGER;  -- the last event that it shares
