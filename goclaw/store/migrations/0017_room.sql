-- A task's row grew when it was claimed and again when it ended: each time its page, full since the
-- row was written, was split over its neighbours. Now a row that waits keeps free what those need.

ALTER TABLE tasks ADD COLUMN room BLOB;  -- zeros: less after the claim, none after the end
