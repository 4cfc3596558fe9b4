// Package reducer is the agent's one writer (design/agent.md, "Shape"): one goroutine that takes
// everything that happens on this host from one bounded channel, steps the host's records
// (internal/hoststate), writes one journal record a step, and then has the step's effects run.
//
// A record holds the new state, the events to send, with their numbers, and the effects still to run:
// the activation or rollback that is in progress (an activation.Task) and the probing of a soak. The
// state is what replaying the records gives, so a restart goes on where the last record stands.
// Effects run after their record is durable, and are safe to run again.
//
// Its callers are the workers of internal/agent: longpoll (Offer, View), outbound (NextBatch, Acked,
// SetAside, OutboundReady), heartbeat (View, Replay, Forget, Withdraw), and the supervisor (New, Run).
// It does no network I/O itself: Options has functions for the two requests that an activation needs.
package reducer
