// Package hoststate is the machine of one host in one rollout (design/state.md, "A host in a
// rollout"): the whole table, as one pure function, Step.
//
// The agent runs it on what it does, before it does it; the control plane runs the same code on what
// it is told. So a step that the agent takes is one that the control plane will accept, and a lie that
// contradicts the record is refused on both sides. It reads no clock and does no I/O, and it never
// changes its arguments: a Record is a value.
//
// Its callers are internal/agent/reducer and internal/rollout. What they can rely on:
//
//   - Effects are data, in the order in which to act on them, and safe to act on again. They are to be
//     run only once the record that came with them is durable.
//   - A refused step leaves the record as it was. The event has used up its number all the same, which
//     is the caller's to count: Step never looks at seq.
//   - The at of events never decreases: the agent takes it from Record.NextAt.
//   - A record is read back from JSON exactly as it was written.
//
// What it is not for: whether a host may be dispatched (internal/rollout), how an activation goes
// (internal/agent/activation), and which closure is the previous one, which DispatchAck says.
package hoststate
