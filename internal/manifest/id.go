package manifest

import (
	"strings"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/trust"
)

// ID returns the id of the rollout of ref in channel.
func ID(channel, ref string) string { return channel + "@" + ref }

// ParseID splits a rollout id and refuses, as malformed, one that is not of the form
// `^[a-z0-9][a-z0-9_-]{0,62}@[0-9a-f]{7,64}$`. An id that it accepts is safe as a file's name.
func ParseID(id string) (channel, ref string, err error) {
	channel, ref, found := strings.Cut(id, "@")
	if !found || !fleet.ValidChannel(channel) || !fleet.ValidRef(ref) {
		return "", "", trust.Refuse(api.CodeMalformed, "rollout id", "%.80q is not of the form channel@ref", id)
	}
	return channel, ref, nil
}

// ValidID says whether ParseID accepts id.
func ValidID(id string) bool {
	_, _, err := ParseID(id)
	return err == nil
}
