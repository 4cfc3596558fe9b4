// Package trust decides what may be believed: it checks DSSE signatures over exact bytes against the
// keys of trust.json, by threshold, and only then parses those same bytes. What it has checked it hands
// out as a Verified[T], which nothing else can make.
//
// It is pure: it reads no clock, file or network. It knows the rules that all signed artifacts share
// (signature, size, shape, age, order); what a rollout manifest says beyond that is internal/manifest's,
// and what a fleet says is internal/fleet's.
//
// The release side signs with it; the agent, the control plane and `nixfleet verify` check with it.
// Every refusal is an *Error with a code of the contract (design/artifacts.md, design/wire.md).
package trust
