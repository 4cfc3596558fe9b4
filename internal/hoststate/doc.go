// Package hoststate is the machine of one host in one rollout (design/state.md, "A host in a
// rollout"): the whole table, as one pure function, Step.
//
// The agent runs it on what it does, before it does it; the control plane runs the same code on what
// it is told. So a step that the agent takes is one that the control plane will accept, and a lie that
// contradicts the record is refused on both sides. It reads no clock and does no I/O, and it never
// changes its arguments: a Record is a value.
//
// Its callers are internal/agent/reducer and internal/rollout.
package hoststate
