-- Tasks are counted at each start without reading them, and a turn says since when it goes on.

-- What did not end well is counted here; what did is the rest.
CREATE INDEX tasks_unhappy ON tasks (state) WHERE state IN ('FAILED', 'CANCELED', 'DEAD_LETTER');

ALTER TABLE tasks ADD COLUMN since_event INTEGER;  -- first event since it was accepted or redriven
