package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"nixfleet.dev/nixfleet/internal/agent/durable"
)

func TestAFileIsReplacedWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	root, err := durable.OpenDir(filepath.Join(dir, "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, text := range []string{"first, which is longer", "second"} {
		if err := durable.WriteFile(root, "file", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := durable.ReadFile(root, "file", 100); err != nil || string(got) != text {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	// A leftover of a crash is in nobody's way, and a failure leaves the old file and no leftover.
	if err := os.WriteFile(filepath.Join(root.Name(), "file.new"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(root, "file", []byte("third"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root.Name(), "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(root, "folder", []byte("x"), 0o600); err == nil {
		t.Error("a folder was replaced by a file")
	}
	entries, err := os.ReadDir(root.Name())
	if err != nil || len(entries) != 2 {
		t.Errorf("left over: %v, %v", entries, err)
	}
	if info, err := root.Stat("file"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestNothingOutsideTheFolderIsReached(t *testing.T) {
	dir := t.TempDir()
	root, err := durable.OpenDir(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../secret", filepath.Join(dir, "state", "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../secret", "link"} {
		if _, err := durable.ReadFile(root, name, 10); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	if err := durable.WriteFile(root, "../secret", []byte("y"), 0o600); err == nil {
		t.Error("a file outside was written")
	}
}

func TestReadingIsCapped(t *testing.T) {
	root, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := durable.WriteFile(root, "file", make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := durable.ReadFile(root, "file", 10); err == nil {
		t.Error("read over its cap")
	}
	if _, err := durable.ReadFile(root, "none", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent file: %v", err)
	}
}
