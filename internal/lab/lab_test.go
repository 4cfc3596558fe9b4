package lab

import (
	"net/http"
	"os"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/release"
)

func TestALabReleasesAndServesWhatItsMachinesRun(t *testing.T) {
	base, next := Version{Number: "0"}, Version{Number: "1", Broken: true}
	l, err := New(t.Context(), Options{Dir: t.TempDir(), Hosts: 3, Base: base, Clock: clock.System{}, Soak: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m := l.Machines[0]
	if running, err := m.Running(); err != nil || running != m.Closure(base) {
		t.Errorf("%s runs %q (%v)", m.Name, running, err)
	}
	if got := l.health(t, m); got != http.StatusOK {
		t.Errorf("a healthy machine answers %d", got)
	}
	if err := l.Build(next); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Release(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	l.verify(t)
	if err := os.Remove(m.CurrentSystem()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(l.Store()+"/"+m.Closure(next), m.CurrentSystem()); err != nil {
		t.Fatal(err)
	}
	if got := l.health(t, m); got != http.StatusServiceUnavailable {
		t.Errorf("a machine that runs something broken answers %d", got)
	}
}

func (l *Lab) health(t *testing.T, m Machine) int {
	t.Helper()
	resp, err := http.Get(l.appURL + "/" + m.Name + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

func (l *Lab) verify(t *testing.T) {
	t.Helper()
	root, err := l.layout.Root()
	if err != nil {
		t.Fatal(err)
	}
	repo, err := release.OpenRepo(l.layout.Repository)
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	if _, err := release.VerifyRepo(repo, root, time.Now()); err != nil {
		t.Error(err)
	}
}

func TestSwitchesTellsOverlapsFromOneAfterTheOther(t *testing.T) {
	m := Machine{Dir: t.TempDir()}
	for _, test := range []struct {
		log     string
		want    int
		overlap bool
	}{
		{"start a 1\ndone a 1\nstart b 2\n", 2, false},
		{"start a 1\nstart b 2\n", 0, true},
	} {
		if err := os.WriteFile(m.switchLog(), []byte(test.log), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := m.Switches()
		if len(got) != test.want || (err != nil) != test.overlap {
			t.Errorf("%q gave %v, %v", test.log, got, err)
		}
	}
}
