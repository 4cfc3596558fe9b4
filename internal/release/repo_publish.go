package release

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"nixfleet.dev/nixfleet/internal/trust"
)

// publish writes objects and then replaces the index, if the index is still the one whose bytes have the
// digest base ("" for none). Whatever goes wrong, and wherever the process or the machine stops, readers
// find the old release or the new one, each with all of its objects. An error that wraps ErrChanged
// means that nothing was published because of another job.
func (r *Repo) publish(ctx context.Context, base string, objects [][]byte, index []byte) error {
	unlock, err := r.lock()
	if err != nil {
		return err
	}
	defer unlock()
	current, err := r.Index()
	if err != nil {
		return err
	}
	if digestOrNone(current) != base {
		return fmt.Errorf("%w: %s is no longer what this release was made from; run it again", ErrChanged, r.path)
	}
	if err := r.prepare(); err != nil {
		return err
	}
	for _, data := range objects {
		if err := r.putObject(ctx, data); err != nil {
			return err
		}
	}
	if err := r.syncFolder(objectsFolder); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("publishing to %s: %w", r.path, err)
	}
	return r.replace(".", indexFile, index)
}

func digestOrNone(data []byte) string {
	if data == nil {
		return ""
	}
	return trust.Digest(data)
}

// lock takes the repository for this process; the system lets go of it when the process ends.
func (r *Repo) lock() (unlock func(), err error) {
	file, err := r.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", r.path, err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("%w: %s is being published to right now; run it again", ErrChanged, r.path)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() { _ = file.Close() }, nil
}

// prepare makes the objects folder and removes what a job that was killed left half-written.
func (r *Repo) prepare() error {
	if err := r.step("mkdir " + objectsFolder); err != nil {
		return err
	}
	if err := r.root.Mkdir(objectsFolder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the objects folder: %w", err)
	}
	for _, folder := range []string{".", objectsFolder} {
		entries, err := fs.ReadDir(r.root.FS(), folder)
		if err != nil {
			return fmt.Errorf("listing %s: %w", folder, err)
		}
		for _, entry := range entries {
			if !strings.HasPrefix(entry.Name(), tempPrefix) {
				continue
			}
			if err := r.root.Remove(folder + "/" + entry.Name()); err != nil {
				return fmt.Errorf("removing what a killed job left: %w", err)
			}
		}
	}
	return r.syncFolder(".")
}

// putObject writes an object, unless it is there and whole: objects never change.
func (r *Repo) putObject(ctx context.Context, data []byte) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("publishing to %s: %w", r.path, err)
	}
	name := trust.Digest(data)
	if there, err := r.Object(name, len(data)); err == nil && len(there) == len(data) {
		return nil
	}
	return r.replace(objectsFolder, name, data)
}

// replace writes a file of folder whole or not at all.
func (r *Repo) replace(folder, name string, data []byte) error {
	temp := folder + "/" + tempPrefix + rand.Text()
	err := r.writeSynced(temp, data)
	if err == nil {
		err = r.step("rename to " + name)
	}
	if err == nil {
		err = r.root.Rename(temp, folder+"/"+name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", name, err), r.removeIfThere(temp))
	}
	if folder == objectsFolder {
		return nil // publish syncs that folder once, after the last object
	}
	return r.syncFolder(folder)
}

func (r *Repo) removeIfThere(name string) error {
	if err := r.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (r *Repo) writeSynced(name string, data []byte) error {
	if err := r.step("create"); err != nil {
		return err
	}
	file, err := r.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = r.step("write")
	if err == nil {
		_, err = file.Write(data)
	}
	if err == nil {
		err = r.step("sync")
	}
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func (r *Repo) syncFolder(name string) error {
	if err := r.step("sync folder " + name); err != nil {
		return err
	}
	folder, err := r.root.Open(name)
	if err != nil {
		return fmt.Errorf("opening %s: %w", name, err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return fmt.Errorf("syncing %s: %w", name, err)
	}
	return nil
}

func (r *Repo) step(name string) error {
	if r.before == nil {
		return nil
	}
	return r.before(name)
}
