// Package release is the side of nixfleet that CI runs: it turns a declared fleet into signed rollout
// manifests and publishes them to a release repository (design/artifacts.md).
//
// Every command that changes a repository works the same way. It reads what is published and verifies it
// against trust.json, prepares a Draft of what should be published next, signs it, checks that the whole
// result would be accepted by a control plane that trusts the same keys, and publishes it: all of it, or
// none. Where several people must sign, the draft is kept in a directory in between (Sign, Publish).
//
// The package writes only file:// repositories; what serves them elsewhere is any static file server.
// It does not evaluate Nix, roll anything out, or make keys and certificates: that is
// internal/bootstrap's. internal/cli, internal/demo and tests call it. Nothing in it is safe for
// concurrent use on one value, but any number of processes may work on one repository.
package release
