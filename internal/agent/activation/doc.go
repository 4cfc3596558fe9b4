// Package activation takes a host to a closure and back (design/agent.md, "Activation"): preflight,
// realise, wait for the control plane, set the profile, switch, watch, confirm; and the same from
// setting the profile on for a rollback.
//
// A Procedure is one worker of the reducer. It decides nothing about the rollout: each thing that
// happened, and each thing about to be done that a restart must know of, goes through a Ledger, which
// returns once it is durable. A Task says where to go on, so a procedure that was cut off anywhere is
// run again from the task that the journal holds. What a machine is (directories, Nix, systemd) is
// behind Backend.
//
// It is not for choosing what to activate, nor for probing: see internal/agent/reducer and
// internal/agent/probe.
package activation
