package rollout

import (
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Objects names the artifacts of a release by the SHA-256 of their bytes, as the release repository
// does. The manifest's is that of its envelope, and so changes when it is signed again.
type Objects struct {
	Manifest string `json:"manifest"`
	Hosts    string `json:"hosts"`
	Fleet    string `json:"fleet"`
}

// Lines is the host list of a release: *manifest.Hosts is one. It is read once, when the release is
// applied.
type Lines interface {
	Len() int
	Line(i int) api.HostLine
}

// Release is a manifest with its host list.
type Release struct {
	manifest api.Manifest
	lines    Lines
	objects  Objects
	verified bool
}

// NewRelease makes a release that may be adopted: its manifest was verified now, and the caller
// checked lines and objects against it (manifest.CheckAdoption).
func NewRelease(m trust.Verified[api.Manifest], lines Lines, objects Objects) Release {
	return Release{manifest: m.Value(), lines: lines, objects: objects, verified: true}
}

// StoredRelease makes a release for a Loader, out of objects whose bytes have the digests that an
// Adopted entry names. It was verified when it was adopted, and adopting it again is refused: keys may
// have been removed since, and a log must fold all the same.
func StoredRelease(m api.Manifest, lines Lines, objects Objects) Release {
	return Release{manifest: m, lines: lines, objects: objects}
}

// ID returns the rollout id of r.
func (r Release) ID() string { return r.manifest.RolloutID }

// Manifest returns the manifest of r.
func (r Release) Manifest() api.Manifest { return r.manifest }

// Objects returns the names of r's artifacts.
func (r Release) Objects() Objects { return r.objects }

// mismatch says why the host list cannot be the manifest's, or "". The planner relies on no more than
// this; that the list is the signed one is for the caller to check.
func (r Release) mismatch() string {
	waves, budgets := len(r.manifest.Policy.Waves), len(r.manifest.DisruptionBudgets)
	if r.lines == nil || int64(r.lines.Len()) != r.manifest.HostSet.Size {
		return "its host list is not of the size that its manifest says"
	}
	last := ""
	for i := range r.lines.Len() {
		line := r.lines.Line(i)
		if line.Hostname <= last {
			return "its host list is not in order"
		}
		if last = line.Hostname; line.Wave < 0 || line.Wave >= waves {
			return "its host list names a wave that its policy does not have"
		}
		for _, b := range line.Budgets {
			if b < 0 || b >= budgets {
				return "its host list names a budget that its manifest does not have"
			}
		}
	}
	return ""
}

// Loader finds what entries name by digest. Apply calls it for each Adopted and FleetDeclared entry
// whose release or fleet was not just given to Adopt, that is, when a log is folded. An error ends the
// fold.
type Loader interface {
	Release(rolloutID string, objects Objects) (Release, error)
	Fleet(object string) (api.Fleet, error)
}

// Adoption is a verified index with all that it names.
type Adoption struct {
	Sequence int64 // of the index, like SignedAt
	SignedAt time.Time
	Fleet    api.Fleet // the newest fleet
	Object   string    // its name
	Releases []Release // one for each channel of the index
}
