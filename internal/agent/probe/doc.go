// Package probe runs a host's own health checks (design/artifacts.md, health-checks.json, and
// design/agent.md, "Probes"): each once right away and then by its interval, never two runs of one at a
// time, and never all at once.
//
// It only tells what it found: whether a host is healthy, and for how long it must not be, is for its
// caller, internal/agent/reducer. What the checks may do is bounded here, as they are written by people
// in a hurry: a timeout, a cap on what is read, and an end to all processes that a command started.
package probe
