// Package writer is the one place where the fleet's state changes: it owns the rollout.Fleet, and
// everything that happens goes through it onto the log (design/control-plane.md, One log, one writer).
//
// HTTP handlers and the source call its methods, which return when what they brought is on disk; the
// control plane's supervisor runs it with Run. It judges nothing itself: what an input means is
// internal/rollout's business, and what bytes look like on disk is the store's.
//
// # How it works
//
// One goroutine, the core, takes inputs from a bounded queue, has the Fleet judge them, numbers and
// applies the entries that come of it, and plans. A second one, the committer, writes entries in
// groups: while it writes one, the core collects what comes in into the next. When a group is on disk
// the committer, and only it, tells the world: it puts the changed dispatches into the registry and
// answers the inputs of the group, also those that changed nothing, so that no answer is ever based on
// what is not on disk yet. View waits in the same way.
//
// An input's entries are in one group and so all or none on the log. A plan's are as many groups as
// it takes: each decision stands by itself, and after a crash the planner takes those that are missing
// again.
//
// When a commit fails, memory is ahead of the disk: everybody who waits gets an error, nothing more is
// taken, and Run returns. The process must end; starting again reads what really is on disk.
//
// On start the newest snapshot that can be read and the log's tail are folded. A snapshot is taken
// whenever the tail has grown as large as the last one, so that reading both is never much more work
// than reading a snapshot. The core is held up while the state is copied, not while the copy is encoded
// and written.
package writer
