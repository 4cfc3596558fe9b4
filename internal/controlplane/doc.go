// Package controlplane is the control plane as one process: its configuration, and the supervisor that
// puts its parts together, starts them in the order that they need one another in, and stops them in
// the reverse (design/control-plane.md).
//
// The parts are below it: writer owns the fleet's state and the log, store keeps it, source brings
// releases, server answers agents and operators, dispatch holds parked polls, enroll issues
// certificates. What is left here is how they meet. cmd/nixfleet-control-plane runs it, and so do
// internal/demo and tests, several in one process if they like: nothing in it is global.
package controlplane
