// Package fleet holds the rules of what is declared: hosts, channels, policies, selectors, edges and
// budgets (design/artifacts.md, "fleet: what is declared").
//
// It reads a fleet strictly (Parse), lists everything that is wrong with it at once (Validate), fills
// the defaults of a policy in (WithDefaults), and says which hosts a selector picks (Matches) and which
// wave a host goes in (Waves). It does not sign, project or store anything: internal/manifest makes
// rollouts of a fleet, internal/release publishes them, and the control plane reads fleets back.
//
// The package is pure, and everything in it may be called concurrently.
package fleet
