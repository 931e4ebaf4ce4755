-- A change of state evaluates this index's condition twice: a comparison, where IN over a list would
-- build a table of it each time. Before Q in the alphabet: CANCELED, DEAD_LETTER, FAILED.
DROP INDEX tasks_unhappy;
CREATE INDEX tasks_unhappy ON tasks (state) WHERE state < 'Q';
