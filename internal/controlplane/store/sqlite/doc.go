// Package sqlite keeps the control plane's log in an embedded SQLite database in its state directory:
// the default store, which needs nothing else to run. The control plane opens it; nothing else may.
//
// One connection writes, in WAL mode with synchronous=FULL, so that a commit that returned survives
// the loss of power; a few read-only connections serve reads beside it. The log has one index beside
// its own order, (rollout, seq), which only ever grows at its right edges: one led by the host's name
// costs three quarters of the throughput (docs/performance.md). The state directory is locked, so that
// two control planes never write one database.
//
// The schema is what migrations/ adds up to. Migrations only go forward, are checked against what was
// applied before, and name the oldest release that can work on their result, since the control plane's
// own host may roll back to it.
package sqlite
