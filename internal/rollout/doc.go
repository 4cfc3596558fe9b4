// Package rollout is the pure heart of the control plane: the picture of the whole fleet, the rollout
// machine, the gates and the planner (design/state.md).
//
// A Fleet is a value in memory that changes in one way only: Apply folds one log Entry into it. All
// that comes in (events, heartbeats, rejections, releases) is first judged against the picture, which
// answers with the entries to append; time is an argument; nothing here reads a clock, a disk or the
// network, and the same calls in the same order give the same entries. So the log alone is enough to
// build the picture again, and replaying it must land on the same state.
//
// # The caller's contract
//
// One goroutine owns a Fleet (internal/controlplane/writer). For each input it
//
//  1. calls Events, Heartbeat, Reject, Adopt or UseToken, and gives each returned entry the next LogSeq
//     and passes it to Apply at once, before it takes the next input;
//  2. calls Plan, after each input or after several, and applies what it returns in the same way,
//     until Plan returns nothing;
//  3. writes those entries, in that order and as one transaction with those of other inputs if it
//     likes, and only when they are on disk answers the caller and hands out ChangedDispatches.
//
// When writing fails, the Fleet is ahead of the disk: the process must end. On start it restores the
// last snapshot, applies the log's tail and calls Started. It calls Plan again at NextWake.
//
// Methods that read (Host, Hosts, Rollout, Rollouts, Channels, Why, Outstanding, Snapshot) may run at
// the same time as one another, and all others need the Fleet to themselves.
//
// # What is durable and what is not
//
// Everything that a decision was made from or led to is in an entry. What only tells "still there" is
// not: when a host was last heard, and how long this process has been ready. Decisions about silence
// are made from those and are entries themselves, so that a replay needs neither.
package rollout
