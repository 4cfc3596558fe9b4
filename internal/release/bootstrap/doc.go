// Package bootstrap makes the files of a new fleet: its certificate authority, its certificates and
// keys, trust.json, configurations and a first fleet.json (`nixfleet init`), and issues more
// certificates from them later (`nixfleet cert`).
//
// It is for the machine of whoever runs the fleet: it holds the root of everything. Control planes issue
// the certificates of hosts themselves (internal/controlplane/enroll) with the issuer made here, which
// can certify clients of this fleet and nothing else. internal/cli, the demo and tests call it.
package bootstrap
