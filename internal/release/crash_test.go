package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary runs itself to be killed in the middle of publishing.
const (
	killedRepo = "NIXFLEET_TEST_KILLED_REPO"
	killedStep = "NIXFLEET_TEST_KILLED_STEP"
)

func TestMain(m *testing.M) {
	if repo := os.Getenv(killedRepo); repo != "" {
		publishAndBeKilled(repo)
	}
	os.Exit(m.Run())
}

// publishAndBeKilled publishes a release and is killed before the step that the environment says. It
// ends with 0 if it got through.
func publishAndBeKilled(path string) {
	at, err := strconv.Atoi(os.Getenv(killedStep))
	if err != nil {
		panic(err)
	}
	steps := 0
	err = publishOnce(path, func(string) error {
		if steps == at {
			if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
				panic(err)
			}
			select {}
		}
		steps++
		return nil
	})
	if err != nil {
		panic(err)
	}
	os.Exit(0)
}

// publishOnce replaces what a repository holds by a release that has new and kept objects.
func publishOnce(path string, before func(string) error) error {
	r, err := OpenRepo(path)
	if err != nil {
		return err
	}
	defer r.Close()
	r.before = before
	index, err := r.Index()
	if err != nil {
		return err
	}
	objects := [][]byte{[]byte("kept"), []byte("one"), []byte("two")}
	return r.publish(context.Background(), digestOrNone(index), objects, []byte("new index"))
}

// published1 makes a repository with an old index and an object that the new one keeps.
func published1(t *testing.T) string {
	t.Helper()
	path := t.TempDir()
	r, err := OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.publish(context.Background(), "", [][]byte{[]byte("kept")}, []byte("old index")); err != nil {
		t.Fatal(err)
	}
	return path
}

// mustBeOldOrNew checks that a reader finds one of the two releases with all its objects.
func mustBeOldOrNew(t *testing.T, path string) (index string) {
	t.Helper()
	r, err := OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := r.Index()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"kept"}
	switch string(data) {
	case "old index":
	case "new index":
		want = append(want, "one", "two")
	default:
		t.Fatalf("the index is %q", data)
	}
	for _, object := range want {
		if _, err := r.Object(digestOrNone([]byte(object)), 100); err != nil {
			t.Errorf("under the %s, %q is not whole: %v", data, object, err)
		}
	}
	return string(data)
}

func TestAnErrorAtAnyStepLeavesTheOldReleaseOrTheNewOne(t *testing.T) {
	broken := errors.New("the disk is broken")
	for at := 0; ; at++ {
		path := published1(t)
		steps, last := 0, ""
		err := publishOnce(path, func(step string) error {
			steps++
			if steps == at+1 {
				last = step
				return broken
			}
			return nil
		})
		index := mustBeOldOrNew(t, path)
		if steps <= at { // the step that should have failed did not come: all went through
			if err != nil || index != "new index" || at < 10 {
				t.Errorf("after %d steps: error %v, %s", at, err, index)
			}
			return
		}
		if !errors.Is(err, broken) {
			t.Fatalf("step %d (%s) failed, but the error is %v", at, last, err)
		}
		if index == "new index" && last != "sync folder ." {
			t.Errorf("step %d (%s) failed, and the new release is there", at, last)
		}
		if err := publishOnce(path, nil); err != nil || mustBeOldOrNew(t, path) != "new index" {
			t.Errorf("after step %d (%s) failed, publishing again: %v", at, last, err)
		}
	}
}

func TestAKillAtAnyStepLeavesTheOldReleaseOrTheNewOne(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; ; at++ {
		path := published1(t)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		cmd := exec.CommandContext(ctx, self)
		cmd.Env = append(os.Environ(), killedRepo+"="+path, fmt.Sprintf("%s=%d", killedStep, at))
		output, err := cmd.CombinedOutput()
		cancel()
		index := mustBeOldOrNew(t, path)
		if err == nil {
			if index != "new index" || at < 10 {
				t.Errorf("it was not killed at step %d: %s", at, index)
			}
			return
		}
		if !strings.Contains(err.Error(), "killed") {
			t.Fatalf("step %d: %v: %s", at, err, output)
		}
		// The lock went with the process, and what was half-written is swept up.
		if err := publishOnce(path, nil); err != nil || mustBeOldOrNew(t, path) != "new index" {
			t.Errorf("after a kill at step %d, publishing again: %v", at, err)
		}
		left, err := filepath.Glob(filepath.Join(path, "*", tempPrefix+"*"))
		if err != nil || len(left) > 0 {
			t.Errorf("after a kill at step %d, %q are left over", at, left)
		}
	}
}

func TestADamagedObjectIsWrittenAgain(t *testing.T) {
	path := published1(t)
	object := filepath.Join(path, objectsFolder, digestOrNone([]byte("kept")))
	if err := os.WriteFile(object, []byte("k"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := publishOnce(path, nil); err != nil {
		t.Fatal(err)
	}
	mustBeOldOrNew(t, path)
}

func TestACancelledJobPublishesNothing(t *testing.T) {
	path := published1(t)
	r, err := OpenRepo(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err = r.publish(ctx, digestOrNone([]byte("old index")), nil, []byte("new index"))
	if !errors.Is(err, context.Canceled) || mustBeOldOrNew(t, path) != "old index" {
		t.Errorf("got %v", err)
	}
}

func TestRepositoriesAreDirectories(t *testing.T) {
	dir := t.TempDir()
	for location, good := range map[string]bool{
		dir: true, "file://" + dir: true, "file://localhost" + dir: true, dir + "/none": false,
		"https://fleet.example/releases": false, "file://elsewhere" + dir: false, "s3://bucket": false,
	} {
		r, err := OpenRepo(location)
		if good != (err == nil) {
			t.Errorf("%s: %v", location, err)
		}
		if err == nil && r.Path() != dir {
			t.Errorf("%s is %s", location, r.Path())
		}
		if err == nil {
			r.Close()
		}
	}
}
