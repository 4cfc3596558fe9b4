// Package api holds every type that crosses a boundary of nixfleet: the signed artifacts of the
// release repository, the bodies of the HTTP protocol, and the codes that both use.
//
// It is for everyone who reads or writes one of those: the agent, the control plane, the command
// line, and outside clients. It has no behaviour beyond encoding: validation lives in the packages
// that own a rule (internal/fleet, internal/manifest, internal/trust, internal/hoststate).
//
// A field is required when it is read unless its json tag has omitzero or omitempty, or the field
// carries the tag `strict:"optional"`; internal/strictjson enforces that. Field names, codes and
// layouts are contracts and only ever added to.
package api
