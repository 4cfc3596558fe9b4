package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"syscall"
)

// fault is what becomes of one system call.
type fault int

const (
	noFault   fault = iota
	failClean       // it does nothing and says so
	failDone        // it does its work, and says that it failed
	failHalf        // a write writes half, a sync makes half durable; others do nothing
	failShort       // a write writes half and does not even say so; others do nothing
	killed          // it and everything after it fails: the process is gone
)

var faults = []fault{failClean, failDone, failHalf, failShort, killed}

var errFault = fmt.Errorf("injected: %w", syscall.EIO)

// memory is a directory that remembers what is durable and what is not.
type memory struct {
	names   map[string]*inode   // as processes see it
	history []map[string]*inode // what the directory on disk may be: the durable one, then each change since
	locked  bool
	dead    bool
	calls   int
	decide  func(call int, name string) fault
}

// inode is a file's content. It is only ever appended to.
type inode struct {
	data    []byte
	durable int // bytes that survive
	lost    int // bytes whose sync failed: a later sync of them does nothing, though it says otherwise
}

func newMemory() *memory {
	m := &memory{names: map[string]*inode{}, decide: func(int, string) fault { return noFault }}
	m.history = []map[string]*inode{{}}
	return m
}

// call counts a system call and returns what is to become of it.
func (m *memory) call(name string) fault {
	if m.dead {
		return killed
	}
	m.calls++
	f := m.decide(m.calls, name)
	m.dead = f == killed
	return f
}

// do runs a call that either happens or does not.
func (m *memory) do(name string, work func() error) error {
	switch f := m.call(name); f {
	case noFault:
		return work()
	case failDone:
		return errors.Join(errFault, work())
	}
	return errFault
}

func (m *memory) renamed() { m.history = append(m.history, maps.Clone(m.names)) }

func (m *memory) Open(name string) (File, error) {
	var f File
	err := m.do("open", func() error {
		node, ok := m.names[name]
		if !ok {
			return fs.ErrNotExist
		}
		f = &handle{m: m, node: node}
		return nil
	})
	return f, err
}

func (m *memory) Create(name string) (File, error) {
	var f File
	err := m.do("create", func() error {
		if _, ok := m.names[name]; ok {
			return fs.ErrExist
		}
		node := &inode{}
		m.names[name] = node
		m.renamed()
		f = &handle{m: m, node: node}
		return nil
	})
	return f, err
}

func (m *memory) Rename(from, to string) error {
	return m.do("rename", func() error {
		node, ok := m.names[from]
		if !ok {
			return fs.ErrNotExist
		}
		delete(m.names, from)
		m.names[to] = node
		m.renamed()
		return nil
	})
}

func (m *memory) Remove(name string) error {
	return m.do("remove", func() error {
		if _, ok := m.names[name]; !ok {
			return fs.ErrNotExist
		}
		delete(m.names, name)
		m.renamed()
		return nil
	})
}

func (m *memory) List() ([]string, error) {
	var names []string
	err := m.do("list", func() error {
		names = slices.Collect(maps.Keys(m.names))
		return nil
	})
	return names, err
}

func (m *memory) Sync() error {
	return m.do("sync folder", func() error {
		m.history = []map[string]*inode{maps.Clone(m.names)}
		return nil
	})
}

func (m *memory) Lock(string) (io.Closer, error) {
	err := m.do("lock", func() error {
		if m.locked {
			return ErrLocked
		}
		m.locked = true
		return nil
	})
	return closer(func() error { m.locked = false; return nil }), err
}

func (m *memory) Close() error { return nil }

type closer func() error

func (c closer) Close() error { return c() }

// handle is an open file.
type handle struct {
	m    *memory
	node *inode
	read int
}

func (h *handle) Read(b []byte) (int, error) {
	n := 0
	err := h.m.do("read", func() error {
		if h.read == len(h.node.data) {
			return io.EOF
		}
		n = copy(b, h.node.data[h.read:])
		h.read += n
		return nil
	})
	return n, err
}

func (h *handle) Write(b []byte) (int, error) {
	f := h.m.call("write")
	n := map[fault]int{noFault: len(b), failDone: len(b), failHalf: len(b) / 2, failShort: len(b) / 2, killed: len(b) / 2}[f]
	h.node.data = append(h.node.data, b[:n]...)
	switch f {
	case noFault, failShort:
		return n, nil
	case failHalf:
		return n, syscall.ENOSPC
	}
	return n, errFault
}

func (h *handle) Sync() error {
	f := h.m.call("sync")
	if f == noFault || f == failDone {
		if h.node.lost == 0 {
			h.node.durable = len(h.node.data)
		}
	}
	switch f {
	case noFault:
		return nil
	case failHalf, failShort, failClean:
		if f == failHalf {
			h.node.durable += (len(h.node.data) - h.node.durable) / 2
		}
		h.node.lost = len(h.node.data)
	}
	return errFault
}

func (h *handle) Close() error { return h.m.do("close", func() error { return nil }) }

// restart is what a next process finds after this one ended.
func (m *memory) restart() {
	m.locked, m.dead, m.calls = false, false, 0
	m.decide = func(int, string) fault { return noFault }
}

// powerLoss is what a next boot finds. choose(n) picks below n: which of the changes of names, and how
// much of what was written and not synced, made it to the disk; beyond that there may be zeros.
func (m *memory) powerLoss(choose func(n int) int) {
	m.restart()
	m.names = maps.Clone(m.history[choose(len(m.history))])
	m.history = []map[string]*inode{maps.Clone(m.names)}
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		node := m.names[name]
		rest := len(node.data) - node.durable
		kept := node.durable + choose(rest+1)
		data := bytes.Clone(node.data[:kept])
		if choose(2) == 1 {
			data = append(data, make([]byte, len(node.data)-kept)...)
		}
		m.names[name] = &inode{data: data, durable: len(data)}
	}
	m.history = []map[string]*inode{maps.Clone(m.names)}
}
