package journal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Names in the directory.
const (
	fileName    = "journal"
	newName     = "journal.new"
	lockName    = "lock"
	asidePrefix = "journal.damaged."
)

// keptAside is how many damaged journals are kept; the oldest go first.
const keptAside = 5

// Options is where a journal is.
type Options struct {
	Dir string // the state directory, which is made where it is missing
	FS  FS     // instead of the directory at Dir, for tests
}

// Replay is what a journal held.
type Replay struct {
	// Records are the payloads, oldest first. The first is the last snapshot, where there was one.
	Records [][]byte
	// SetAside is the path of a damaged journal that was put aside, "" where there is none, and Damage
	// what was wrong with it. Records is then empty.
	SetAside string
	Damage   string
}

// Journal is an open journal. Its methods may be called concurrently.
type Journal struct {
	dir  string
	fs   FS
	lock io.Closer

	mu   sync.Mutex
	file File
	size int64
	err  error // why everything is refused
}

// Errors of journals.
var (
	ErrClosed   = errors.New("the journal is closed")
	ErrTooLarge = errors.New("the record is too large for the journal")
)

// Open opens the journal, or starts one where there is none, and returns what it holds. The directory
// stays locked until Close.
func Open(o Options) (*Journal, Replay, error) {
	j, replay, err := open(o)
	if err != nil {
		return nil, Replay{}, fmt.Errorf("opening the journal in %s: %w", o.Dir, err)
	}
	return j, replay, nil
}

func open(o Options) (_ *Journal, replay Replay, err error) {
	j := &Journal{dir: o.Dir, fs: o.FS}
	if j.fs == nil {
		if j.fs, err = openDir(o.Dir); err != nil {
			return nil, Replay{}, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.release())
		}
	}()
	if j.lock, err = j.fs.Lock(lockName); err != nil {
		return nil, Replay{}, err
	}
	replay, err = j.recover()
	if err != nil {
		return nil, Replay{}, err
	}
	if err = j.replace(replay.Records); err != nil {
		return nil, Replay{}, err
	}
	if replay.SetAside != "" {
		replay.SetAside = filepath.Join(j.dir, replay.SetAside)
	}
	return j, replay, nil
}

// recover reads the file, and puts it aside where it is damaged.
func (j *Journal) recover() (Replay, error) {
	aside, err := j.aside()
	if err != nil {
		return Replay{}, err
	}
	data, err := j.read()
	if errors.Is(err, fs.ErrNotExist) {
		if len(aside) > 0 { // put aside by a process that came no further
			return Replay{SetAside: asideName(aside[len(aside)-1]), Damage: "it was set aside before"}, nil
		}
		return Replay{}, nil
	}
	if err != nil {
		return Replay{}, err
	}
	var records [][]byte
	damage := fmt.Errorf("it is longer than %d bytes", MaxFile)
	if len(data) <= MaxFile {
		records, damage = parse(data)
	}
	if damage == nil {
		return Replay{Records: records}, nil
	}
	name, err := j.setAside(aside)
	return Replay{SetAside: name, Damage: damage.Error()}, err
}

// SetAside puts the journal aside as Open does with a damaged one, and begins a new one; both are
// durable on return. It is for records that are whole and still say nothing to who reads them, since
// another version wrote them. Errors are as those of Append.
func (j *Journal) SetAside() (path string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return "", j.err
	}
	aside, err := j.aside()
	var name string
	if err == nil {
		name, err = j.setAside(aside)
	}
	if err == nil {
		err = j.replace(nil)
	}
	if err != nil {
		return "", j.fail("setting it aside", err)
	}
	return filepath.Join(j.dir, name), nil
}

func (j *Journal) read() ([]byte, error) {
	f, err := j.fs.Open(fileName)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	return data, errors.Join(err, f.Close())
}

func asideName(n int) string { return asidePrefix + strconv.Itoa(n) }

// aside returns the numbers of the journals that were put aside, the oldest first.
func (j *Journal) aside() ([]int, error) {
	names, err := j.fs.List()
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, name := range names {
		text, ok := strings.CutPrefix(name, asidePrefix)
		if n, err := strconv.Atoi(text); ok && err == nil && n > 0 {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// setAside gives the file another name, which is durable on return, and forgets the oldest of those
// that were put aside before.
func (j *Journal) setAside(before []int) (string, error) {
	number := 1
	if len(before) > 0 {
		number = before[len(before)-1] + 1
	}
	if err := j.fs.Rename(fileName, asideName(number)); err != nil {
		return "", err
	}
	if err := j.fs.Sync(); err != nil {
		return "", err
	}
	for len(before) >= keptAside {
		if err := j.fs.Remove(asideName(before[0])); err != nil {
			return "", err
		}
		before = before[1:]
	}
	return asideName(number), nil
}

// replace puts a new file with these records in the place of the old one, durably, and goes on with it.
func (j *Journal) replace(records [][]byte) error {
	if err := j.fs.Remove(newName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	data := []byte(header)
	for _, r := range records {
		data = appendRecord(data, r)
	}
	f, err := j.fs.Create(newName)
	if err != nil {
		return err
	}
	err = write(f, data)
	if err == nil {
		err = j.fs.Rename(newName, fileName)
	}
	if err == nil {
		err = j.fs.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	old := j.file
	j.file, j.size = f, int64(len(data))
	if old != nil {
		old.Close() // all that was to be known about it is in the new one
	}
	return nil
}

func write(f File, data []byte) error {
	n, err := f.Write(data)
	if err == nil && n < len(data) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return err
	}
	return f.Sync()
}

// Append adds a record; it is on disk on return. payload is not kept. A record that is too large
// changes nothing; after any other error the journal refuses everything.
func (j *Journal) Append(payload []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.admit(payload, j.size); err != nil {
		return err
	}
	record := appendRecord(make([]byte, 0, frame+len(payload)), payload)
	if err := write(j.file, record); err != nil {
		return j.fail("appending to", err)
	}
	j.size += int64(len(record))
	return nil
}

// Compact replaces every record with this one, which is on disk on return; on an error either all of
// the old ones are, or it is. Errors are as those of Append.
func (j *Journal) Compact(snapshot []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.admit(snapshot, int64(len(header))); err != nil {
		return err
	}
	if err := j.replace([][]byte{snapshot}); err != nil {
		return j.fail("compacting", err)
	}
	return nil
}

func (j *Journal) admit(payload []byte, before int64) error {
	switch {
	case j.err != nil:
		return j.err
	case len(payload) == 0:
		return errors.New("an empty record cannot be kept in the journal")
	case len(payload) > MaxRecord, before+frame+int64(len(payload)) > MaxFile:
		return ErrTooLarge
	}
	return nil
}

func (j *Journal) fail(doing string, err error) error {
	j.err = fmt.Errorf("the journal is unusable since %s it failed: %w", doing, err)
	return j.err
}

// Size is the file's length in bytes.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.size
}

// Close lets go of the file and the directory. Everything after it is refused; a second one is not.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if errors.Is(j.err, ErrClosed) {
		return nil
	}
	j.err = ErrClosed
	return j.release()
}

func (j *Journal) release() error {
	var errs []error
	if j.file != nil {
		errs = append(errs, j.file.Close())
	}
	if j.lock != nil {
		errs = append(errs, j.lock.Close())
	}
	return errors.Join(append(errs, j.fs.Close())...)
}
