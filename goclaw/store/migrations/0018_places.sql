-- Who was let in at a gate keeps the place it had there, and who recurs knows its last occurrence.

ALTER TABLE heads ADD COLUMN ripe INTEGER;          -- of the place at its gate; NULL without one
UPDATE heads SET ripe = ready_at + rank * ifnull(
  (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'aging_factor'), 16) WHERE gate IS NOT NULL;
DROP INDEX heads_gated;
CREATE INDEX heads_gated ON heads (gate, ripe) WHERE gate IS NOT NULL;
ALTER TABLE schedules ADD COLUMN last_tid INTEGER;  -- the occurrence before the one that waits
