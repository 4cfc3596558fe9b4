// Package agent is nixfleet's agent: the supervisor of its workers, and agent.toml.
//
// The workers are packages below: longpoll hears that it is this host's turn, reducer takes every
// decision and is the journal's one writer, activation switches, probe checks health, outbound and
// heartbeat report, enroll looks after the certificate. What each is for is in its own doc comment, and
// how they hang together in docs/architecture.md.
//
// Its callers are cmd/nixfleet-agent, and internal/demo, which runs many in one process: nothing here
// is global. Nothing an agent does depends on a control plane being honest, or there at all.
package agent
