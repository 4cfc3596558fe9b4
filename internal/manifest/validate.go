package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/schedule"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Words of a policy (design/artifacts.md).
const (
	OfflineSkip = "skip"
	OfflineWait = "wait"

	RebootNever  = "never"
	RebootWindow = "window"

	PreflightOff     = "off"
	PreflightReport  = "report"
	PreflightRequire = "require"
)

// MinFreshnessWindow is the shortest freshness window.
const MinFreshnessWindow = 5 * time.Minute

// Caps on a manifest's lists where the contract has none: each entry costs whoever checks a dispatch.
const (
	maxWindows = 256
	maxFreezes = 1024
)

// Validate checks the fields of a manifest that was decoded strictly, each and with one another, and
// refuses it as malformed at the first that is wrong. What a manifest commits to (hosts.jsonl, the
// fleet) is not looked at.
func Validate(what string, m api.Manifest) error {
	for _, check := range []func(api.Manifest) error{
		checkIdentity, checkTimes, checkPolicy, checkSchedule, checkHostSet, checkBudgets, checkChannelAfter,
	} {
		if err := check(m); err != nil {
			return trust.Refuse(api.CodeMalformed, what, "%w", err)
		}
	}
	return nil
}

func checkIdentity(m api.Manifest) error {
	switch {
	case !fleet.ValidChannel(m.Channel):
		return fmt.Errorf("channel %.80q is no channel name", m.Channel)
	case !fleet.ValidRef(m.Ref):
		return fmt.Errorf("ref %.80q is not 7 to 64 hex digits", m.Ref)
	case m.RolloutID != ID(m.Channel, m.Ref):
		return fmt.Errorf("rolloutId %.160q is not %s", m.RolloutID, ID(m.Channel, m.Ref))
	case m.Sequence < 1:
		return fmt.Errorf("sequence is %d", m.Sequence)
	case !isDigest(m.FleetDigest):
		return errors.New("fleetDigest is not a SHA-256")
	case m.PolicyName == "":
		return errors.New("policyName is empty")
	}
	return nil
}

func checkTimes(m api.Manifest) error {
	switch {
	case m.ReleasedAt.IsZero() || m.SignedAt.IsZero():
		return errors.New("releasedAt or signedAt is no time")
	case m.ReleasedAt.After(m.SignedAt):
		return errors.New("releasedAt is after signedAt")
	case m.FreshnessWindow.Std() < MinFreshnessWindow:
		return fmt.Errorf("freshnessWindow is %s; at least %s is needed", m.FreshnessWindow, api.Duration(MinFreshnessWindow))
	}
	return nil
}

func checkPolicy(m api.Manifest) error {
	p := m.Policy
	if n := len(p.Waves); n < 1 || n > api.MaxWaves {
		return fmt.Errorf("policy.waves has %d waves; 1 to %d are allowed", n, api.MaxWaves)
	}
	for i, wave := range p.Waves {
		if wave.Selector != nil {
			return fmt.Errorf("policy.waves.%d.selector is there; a manifest's waves have none", i)
		}
	}
	if missing := missingField(p); missing != "" {
		return fmt.Errorf("policy.%s is missing; a manifest's policy is whole", missing)
	}
	if p.MaxFailures.Percent && p.MaxFailures.Value > 100 {
		return fmt.Errorf("policy.maxFailures is %s", p.MaxFailures)
	}
	return errors.Join(
		oneOf("policy.onHealthFailure", p.OnHealthFailure, api.Halt, api.RollbackAndHalt, api.RollbackAll),
		oneOf("policy.offline.action", p.Offline.Action, OfflineSkip, OfflineWait),
		oneOf("policy.reboot.mode", p.Reboot.Mode, RebootNever, RebootWindow),
		oneOf("policy.preflight", p.Preflight, PreflightOff, PreflightReport, PreflightRequire),
	)
}

func missingField(p api.Policy) string {
	switch {
	case p.MaxFailures == nil:
		return "maxFailures"
	case p.FailureThreshold == nil:
		return "failureThreshold"
	case p.ActivationTimeout == nil:
		return "activationTimeout"
	case p.ConfirmTimeout == nil:
		return "confirmTimeout"
	case p.RevertWindow == nil:
		return "revertWindow"
	case p.Offline == nil:
		return "offline"
	case p.Offline.After == nil:
		return "offline.after"
	case p.Reboot == nil:
		return "reboot"
	}
	return ""
}

func oneOf[T ~string](field string, value T, known ...T) error {
	if slices.Contains(known, value) {
		return nil
	}
	return fmt.Errorf("%s is %.40q, not one of %q", field, string(value), known)
}

func checkSchedule(m api.Manifest) error {
	if n := len(m.MaintenanceWindows); n > maxWindows {
		return fmt.Errorf("maintenanceWindows has %d windows; at most %d are allowed", n, maxWindows)
	}
	if n := len(m.Freezes); n > maxFreezes {
		return fmt.Errorf("freezes has %d freezes; at most %d are allowed", n, maxFreezes)
	}
	for i, w := range m.MaintenanceWindows {
		if err := schedule.Validate(w); err != nil {
			return fmt.Errorf("maintenanceWindows.%d: %w", i, err)
		}
	}
	for i, f := range m.Freezes {
		if !f.Until.After(f.From) {
			return fmt.Errorf("freezes.%d.until is not after its from", i)
		}
	}
	return nil
}

func checkHostSet(m api.Manifest) error {
	if n := m.HostSet.Size; n < 0 || n > api.MaxHosts {
		return fmt.Errorf("hostSet.size is %d", n)
	}
	if !isDigest(m.HostSet.SHA256) {
		return errors.New("hostSet.sha256 is not a SHA-256")
	}
	if _, err := parseHash(m.HostSet.MerkleRoot); err != nil {
		return fmt.Errorf("hostSet.merkleRoot %w", err)
	}
	return nil
}

func checkBudgets(m api.Manifest) error {
	names := make(map[string]bool, len(m.DisruptionBudgets))
	for i, b := range m.DisruptionBudgets {
		switch {
		case b.Name == "":
			return fmt.Errorf("disruptionBudgets.%d.name is empty", i)
		case names[b.Name]:
			return fmt.Errorf("disruptionBudgets.%d: two budgets are named %.80q", i, b.Name)
		case b.MaxInFlight < 1:
			return fmt.Errorf("disruptionBudgets.%d.maxInFlight is %d", i, b.MaxInFlight)
		}
		names[b.Name] = true
	}
	return nil
}

func checkChannelAfter(m api.Manifest) error {
	for i, channel := range m.ChannelAfter {
		switch {
		case !fleet.ValidChannel(channel):
			return fmt.Errorf("channelAfter.%d is no channel name", i)
		case channel == m.Channel:
			return fmt.Errorf("channelAfter.%d is the channel itself", i)
		}
	}
	if i := repeated(m.ChannelAfter); i >= 0 {
		return fmt.Errorf("channelAfter.%d is there twice", i)
	}
	return nil
}

// isDigest says whether s is a SHA-256 in lower-case hex.
func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// repeated returns the index of the first element of list that is there before it too, or -1.
func repeated[T comparable](list []T) int {
	if len(list) < 2 {
		return -1
	}
	seen := make(map[T]bool, len(list))
	for i, v := range list {
		if seen[v] {
			return i
		}
		seen[v] = true
	}
	return -1
}
