-- Sub-tasks that have not ended: those that have are a long tale.
DROP INDEX tasks_children;
CREATE INDEX tasks_children ON tasks (parent_tid)
 WHERE parent_tid IS NOT NULL AND state IN ('QUEUED', 'RUNNING', 'RETRY_WAIT', 'SUSPENDED');
