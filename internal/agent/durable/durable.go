// Package durable writes files of the agent's state so that a crash leaves the old one or the new one,
// never a part: temporary file, fsync, rename, fsync of the folder. The journal, which appends, has its
// own way (internal/agent/journal).
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFile replaces the file name below root with data, and returns once that is on disk. Two writers
// of one name must not run at once.
func WriteFile(root *os.Root, name string, data []byte, perm fs.FileMode) error {
	if err := writeFile(root, name, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func writeFile(root *os.Root, name string, data []byte, perm fs.FileMode) error {
	temporary := name + ".new"
	if err := root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = root.Rename(temporary, name)
	}
	if err != nil {
		_ = root.Remove(temporary) // what is left over is only a leftover
		return err
	}
	return SyncDir(root, filepath.Dir(name))
}

// SyncDir makes the names in a folder below root durable.
func SyncDir(root *os.Root, name string) error {
	dir, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// ReadFile reads a file below root of at most limit bytes.
func ReadFile(root *os.Root, name string, limit int) ([]byte, error) {
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > int64(limit) {
		return nil, fmt.Errorf("read %s: it is no regular file of at most %d bytes", name, limit)
	}
	return root.ReadFile(name)
}

// OpenDir opens the folder at path, which is made where it is missing, for the agent alone.
func OpenDir(path string) (*os.Root, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	return os.OpenRoot(path)
}
