package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// FS is the directory that a journal lives in: every system call that it makes, so that a test can have
// each of them fail. Names are plain file names in the directory.
type FS interface {
	// Open opens a file for reading; the error wraps fs.ErrNotExist where there is none.
	Open(name string) (File, error)
	// Create opens a new, empty file for writing; it is an error if there is one.
	Create(name string) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	// List returns the names in the directory.
	List() ([]string, error)
	// Sync makes the directory's names durable.
	Sync() error
	// Lock takes a lock that ends with this process, or when it is closed. The error wraps ErrLocked
	// where another holder has it.
	Lock(name string) (io.Closer, error)
	// Close lets go of the directory.
	Close() error
}

// File is an open file. Write writes at its end and Sync makes what was written durable.
type File interface {
	io.Reader
	io.Writer
	Sync() error
	io.Closer
}

// ErrLocked is wrapped by Open's error where another process uses the directory.
var ErrLocked = errors.New("another agent uses this state directory")

// openDir returns the real directory at path, which is made, for its owner alone, where it is missing.
func openDir(path string) (FS, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	// The name of a new directory is durable only once its parent is.
	if err := syncPath(filepath.Dir(path)); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &dir{root}, nil
}

func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// dir is FS on a real directory.
type dir struct{ root *os.Root }

func (d *dir) Open(name string) (File, error) { return d.root.Open(name) }

func (d *dir) Create(name string) (File, error) {
	return d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
}

func (d *dir) Rename(from, to string) error { return d.root.Rename(from, to) }
func (d *dir) Remove(name string) error     { return d.root.Remove(name) }
func (d *dir) Close() error                 { return d.root.Close() }

func (d *dir) List() ([]string, error) {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (d *dir) Sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *dir) Lock(name string) (io.Closer, error) {
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = ErrLocked
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", name, err), f.Close())
	}
	return f, nil
}
