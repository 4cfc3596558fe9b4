package fleet

import (
	"time"

	"nixfleet.dev/nixfleet/api"
)

// What a policy is where it says nothing (design/artifacts.md).
const (
	defaultFailureThreshold  = 60 * time.Second
	defaultActivationTimeout = 30 * time.Minute
	defaultConfirmTimeout    = 5 * time.Minute
	defaultRevertWindow      = 24 * time.Hour
	defaultOfflineAfter      = 10 * time.Minute
)

// The words that a policy's fields may have, the default first.
var (
	healthFailurePolicies = []api.OnHealthFailure{api.RollbackAndHalt, api.Halt, api.RollbackAll}
	offlineActions        = []string{"skip", "wait"}
	rebootModes           = []string{"never", "window"}
	preflights            = []string{"off", "report", "require"}
)

// WithDefaults returns the policy with every field that was left out filled in. What p points at is
// never changed.
func WithDefaults(p api.Policy) api.Policy {
	if p.Waves == nil {
		p.Waves = []api.Wave{{Selector: &api.Selector{All: true}}}
	}
	if p.OnHealthFailure == "" {
		p.OnHealthFailure = healthFailurePolicies[0]
	}
	if p.MaxFailures == nil {
		p.MaxFailures = &api.Amount{}
	}
	p.FailureThreshold = orDefault(p.FailureThreshold, defaultFailureThreshold)
	p.ActivationTimeout = orDefault(p.ActivationTimeout, defaultActivationTimeout)
	p.ConfirmTimeout = orDefault(p.ConfirmTimeout, defaultConfirmTimeout)
	p.RevertWindow = orDefault(p.RevertWindow, defaultRevertWindow)
	p.Offline = offlineWithDefaults(p.Offline)
	p.Reboot = rebootWithDefaults(p.Reboot)
	if p.Preflight == "" {
		p.Preflight = preflights[0]
	}
	return p
}

func orDefault(d *api.Duration, value time.Duration) *api.Duration {
	if d != nil {
		return d
	}
	filled := api.Duration(value)
	return &filled
}

func offlineWithDefaults(given *api.Offline) *api.Offline {
	var offline api.Offline
	if given != nil {
		offline = *given
	}
	offline.After = orDefault(offline.After, defaultOfflineAfter)
	if offline.Action == "" {
		offline.Action = offlineActions[0]
	}
	return &offline
}

func rebootWithDefaults(given *api.Reboot) *api.Reboot {
	var reboot api.Reboot
	if given != nil {
		reboot = *given
	}
	if reboot.Mode == "" {
		reboot.Mode = rebootModes[0]
	}
	if reboot.For == nil {
		reboot.For = []string{}
	}
	return &reboot
}
