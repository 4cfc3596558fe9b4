-- The database of a control plane with schema 1, as `sqlite3 nixfleet.db .dump` writes it, with its application id.
PRAGMA application_id = 1852203888;
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE schema_migrations (
			version    INTEGER PRIMARY KEY,
			name       TEXT NOT NULL,
			sha256     TEXT NOT NULL,
			oldest     INTEGER NOT NULL, -- the oldest version whose code works on the result
			applied_at INTEGER NOT NULL  -- nanoseconds since 1970
		) STRICT;
INSERT INTO schema_migrations VALUES(1,'0001_log','dea67d02e61dfd23b1825cd968946701551a5530d27743d1f1ab4270dbb65eb8',1,1795430656806933123);
CREATE TABLE log (
	seq         INTEGER PRIMARY KEY,
	recorded_at INTEGER NOT NULL, -- nanoseconds since 1970
	kind        TEXT NOT NULL,
	rollout     TEXT NOT NULL,    -- '' where it is not about one rollout
	host        TEXT NOT NULL,    -- '' where it is not about one host
	body        BLOB NOT NULL
) STRICT;
INSERT INTO log VALUES(1,1795420800124456789,'kind-1','stable@0a1b2c1','host-1',X'7b226e223a312c2274657874223a22c3bc5c7530303030227d');
INSERT INTO log VALUES(2,1795420800125456789,'kind-2','stable@0a1b2c2','host-2',X'7b226e223a322c2274657874223a22c3bc5c7530303030227d');
INSERT INTO log VALUES(3,1795420800126456789,'kind-0','stable@0a1b2c3','host-3',X'7b226e223a332c2274657874223a22c3bc5c7530303030227d');
INSERT INTO log VALUES(4,1795420800127456789,'kind-1','','host-4',X'7b226e223a342c2274657874223a22c3bc5c7530303030227d');
INSERT INTO log VALUES(5,1795420800128456789,'kind-2','stable@0a1b2c1','host-5',X'7b226e223a352c2274657874223a22c3bc5c7530303030227d');
CREATE TABLE chunks (
	digest TEXT NOT NULL, -- SHA-256 of the whole value, in hex
	n      INTEGER NOT NULL,
	data   BLOB NOT NULL,
	UNIQUE (digest, n)
) STRICT;
INSERT INTO chunks VALUES('c44b27339f507e2e4c80dd9aa9d42ef740bc8b619e717f3aa45862de27874289',0,X'616e206f626a656374');
INSERT INTO chunks VALUES('00006b57e974002b30291b59f2dff6932832aecfb5a3617ed292890077ae6aab',0,X'7b227374617465223a337d');
CREATE TABLE objects (
	digest TEXT PRIMARY KEY,
	size   INTEGER NOT NULL
) STRICT;
INSERT INTO objects VALUES('c44b27339f507e2e4c80dd9aa9d42ef740bc8b619e717f3aa45862de27874289',9);
CREATE TABLE snapshots (
	seq      INTEGER PRIMARY KEY,
	taken_at INTEGER NOT NULL,
	digest   TEXT NOT NULL,
	size     INTEGER NOT NULL
) STRICT;
INSERT INTO snapshots VALUES(3,1795420800000000000,'00006b57e974002b30291b59f2dff6932832aecfb5a3617ed292890077ae6aab',11);
CREATE TABLE heard (
	id   INTEGER PRIMARY KEY CHECK (id = 1),
	data BLOB NOT NULL
) STRICT;
INSERT INTO heard VALUES(1,X'7b22686f73742d31223a313739353432303830303030303030303030357d');
CREATE INDEX log_by_rollout ON log (rollout, seq);
COMMIT;
