-- oldest: 1

-- The append-only log. The row's id is its order; body is JSON.
CREATE TABLE log (
	seq         INTEGER PRIMARY KEY,
	recorded_at INTEGER NOT NULL, -- nanoseconds since 1970
	kind        TEXT NOT NULL,
	rollout     TEXT NOT NULL,    -- '' where it is not about one rollout
	host        TEXT NOT NULL,    -- '' where it is not about one host
	body        BLOB NOT NULL
) STRICT;

CREATE INDEX log_by_rollout ON log (rollout, seq);

-- Large values, in chunks so that writing one never holds up the log for long. A value without a row in
-- objects or snapshots is one whose writing was cut short.
CREATE TABLE chunks (
	digest TEXT NOT NULL, -- SHA-256 of the whole value, in hex
	n      INTEGER NOT NULL,
	data   BLOB NOT NULL,
	UNIQUE (digest, n)
) STRICT;

-- Artifacts as they were published.
CREATE TABLE objects (
	digest TEXT PRIMARY KEY,
	size   INTEGER NOT NULL
) STRICT;

-- What the log adds up to, as of the entry seq.
CREATE TABLE snapshots (
	seq      INTEGER PRIMARY KEY,
	taken_at INTEGER NOT NULL,
	digest   TEXT NOT NULL,
	size     INTEGER NOT NULL
) STRICT;

-- When each host was last heard: one row, a JSON object of host names and nanoseconds since 1970.
CREATE TABLE heard (
	id   INTEGER PRIMARY KEY CHECK (id = 1),
	data BLOB NOT NULL
) STRICT;
