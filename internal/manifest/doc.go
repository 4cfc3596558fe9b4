// Package manifest holds what a rollout manifest means: rollout ids, the lines of hosts.jsonl and
// their Merkle tree, the projection of a fleet into manifests, and every rule by which an agent accepts
// a manifest, acts on a dispatch, or a control plane adopts a release (design/artifacts.md).
//
// It is pure: bytes and times come in, values and refusals (*trust.Error) go out. It fetches and stores
// nothing, and it does not decide whose turn it is: that is internal/rollout's.
//
// The release side projects and encodes with it; agents call Accept and CheckDispatch, the control plane
// CheckAdoption, `nixfleet verify` Verify and ParseHosts.
package manifest
