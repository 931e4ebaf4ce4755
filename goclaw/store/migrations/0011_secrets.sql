-- Secrets, sealed with a key that lies elsewhere (A-5). No column tells anything of a value: the
-- digest is keyed.

CREATE TABLE secrets (
  name TEXT PRIMARY KEY,
  sealed BLOB NOT NULL,                 -- nonce, value and tag; bound to name, hosts and tools
  hosts TEXT NOT NULL,                  -- JSON: names; a leading dot is every name below
  tools TEXT NOT NULL,                  -- JSON: names of tools
  digest TEXT NOT NULL,                 -- of the value: what a reference names it by
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL
);
