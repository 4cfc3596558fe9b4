// Package dispatch is the control plane's registry of outstanding dispatches and parked polls: one
// entry a host, at most one of each (design/control-plane.md, "Dispatch").
//
// It is level-triggered and loses nothing: a dispatch stays until Set clears or replaces it, and every
// poll in the meantime gets it. Setting one host's dispatch touches that host alone. It decides
// nothing about rollouts (internal/rollout does) and knows nothing of HTTP (package server does);
// internal/controlplane/writer calls Set once a dispatch is on disk, package server parks the polls.
package dispatch
