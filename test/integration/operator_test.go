package integration

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/cli"
	"nixfleet.dev/nixfleet/internal/lab"
)

func TestMainCommandsShowAFleetThatHalted(t *testing.T) {
	l := breakable(t, 4)
	spawn(t, "control-plane", l.ControlPlaneConfig())
	spawn(t, "agents", configs(l.Machines)...)
	c := client(t, l)
	awaitHeard(t, c, 4)
	id := release(t, l, lab.Version{Number: "1", Broken: true})
	awaitState(t, c, id, api.RolloutHalted)
	canary, other := l.Machines[0].Name, l.Machines[1].Name
	eventually(t, time.Minute, canary+" is back", func() bool {
		h, err := c.Host(t.Context(), canary)
		return err == nil && h.State == api.Reverted
	})

	for _, test := range []struct {
		args []string
		want []string // in the text
	}{
		{[]string{"status"}, []string{"Halted", "wave 0", "4 of 4 reachable", canary, "health-failed"}},
		{[]string{"why", other}, []string{other, "rollout"}},
		{[]string{"why", id}, []string{"Halted"}},
		{[]string{"host", "list"}, []string{"HOST", canary, other, "Reverted", "Pending"}},
		{[]string{"host", "list", "--state", "Reverted"}, []string{canary}},
		{[]string{"host", "show", canary}, []string{"Reverted", "health-failed", l.Machines[0].Closure(lab.Version{Number: "0"})}},
		{[]string{"rollout", "list"}, []string{id, "Halted"}},
		{[]string{"rollout", "show", id}, []string{"Halted", "wave 1", "canary"}},
		{[]string{"rollout", "show", id[:len(lab.Channel)+1+12]}, []string{id, "Halted"}}, // as a status shows it
		{[]string{"channel", "list"}, []string{lab.Channel, "Halted"}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			text, code := nixfleet(t, l, test.args...)
			for _, want := range test.want {
				if !strings.Contains(text, want) {
					t.Errorf("it says nothing of %q", want)
				}
			}
			if code != 0 || strings.Contains(text, "\x1b") {
				t.Errorf("exit %d, or colours outside a terminal", code)
			}
			t.Logf("\n%s", text)
			data, code := nixfleet(t, l, append(test.args, "--json")...)
			var v any
			if err := json.Unmarshal([]byte(data), &v); err != nil || code != 0 {
				t.Errorf("--json: exit %d, %v:\n%s", code, err, data)
			}
		})
	}

	if text, _ := nixfleet(t, l, "why", id); strings.Count(text, "tolerated") != 1 {
		t.Errorf("it says more than once why it halted:\n%s", text)
	}
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"host show nobody", 1, "there is no host nobody (not-found); nixfleet host list shows them"},
		{"why " + lab.Channel, 1, "a rollout is named CHANNEL@REF"},
		{"rollout show nonsense", 2, `"nonsense" is not a rollout id`},
		{"rollout show " + lab.Channel + "@fffffff", 1, "(unknown-rollout); nixfleet rollout list shows those there are"},
		{"host list --tag nothing", 0, "No host matches."},
	} {
		if text, code := nixfleet(t, l, strings.Fields(test.args)...); code != test.code || !strings.Contains(text, test.want) {
			t.Errorf("%s gives exit %d and %q", test.args, code, text)
		}
	}
}

// nixfleet runs one command against the fleet and returns what it printed, on either side.
func nixfleet(t *testing.T, l *lab.Lab, args ...string) (string, int) {
	t.Helper()
	var out bytes.Buffer
	code := cli.Main(t.Context(), append(args, "--config", l.OperatorConfig()), os.Stdin, &out, &out)
	return out.String(), code
}
