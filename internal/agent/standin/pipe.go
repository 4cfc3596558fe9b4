package standin

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
)

// newPipe returns two ends of a connection in memory. Unlike net.Pipe it has a buffer: both ends of TLS
// may write before either reads, as over a socket. Everything that blocks does so on channels, which
// synctest understands.
func newPipe() (a, b net.Conn) {
	there, back := newBuffer(), newBuffer()
	return &pipeEnd{in: back, out: there}, &pipeEnd{in: there, out: back}
}

type pipeEnd struct{ in, out *buffer }

func (p *pipeEnd) Read(b []byte) (int, error)  { return p.in.read(b) }
func (p *pipeEnd) Write(b []byte) (int, error) { return p.out.write(b) }

func (p *pipeEnd) Close() error {
	p.in.close(net.ErrClosed)
	p.out.close(io.EOF)
	return nil
}

func (p *pipeEnd) LocalAddr() net.Addr  { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (p *pipeEnd) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }

func (p *pipeEnd) SetDeadline(t time.Time) error      { p.in.setDeadline(t); return nil }
func (p *pipeEnd) SetReadDeadline(t time.Time) error  { p.in.setDeadline(t); return nil }
func (p *pipeEnd) SetWriteDeadline(t time.Time) error { return nil } // a write never blocks for long

// maxBuffered is what one direction holds before a writer waits.
const maxBuffered = 256 << 10

// buffer is one direction.
type buffer struct {
	mu       sync.Mutex
	data     []byte
	end      error // what a reader gets after the data
	deadline time.Time
	changed  chan struct{}
}

func newBuffer() *buffer { return &buffer{changed: make(chan struct{})} }

// notify wakes readers and writers. The lock is held.
func (b *buffer) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *buffer) read(p []byte) (int, error) {
	for {
		b.mu.Lock()
		n, end, deadline, changed := copy(p, b.data), b.end, b.deadline, b.changed
		if n > 0 {
			b.data = b.data[n:]
			b.notify()
		}
		b.mu.Unlock()
		if n > 0 || len(p) == 0 {
			return n, nil
		}
		if end != nil {
			return 0, end
		}
		if !wait(changed, deadline) {
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// wait waits for a change and returns false where the deadline comes first.
func wait(changed chan struct{}, deadline time.Time) bool {
	if deadline.IsZero() {
		<-changed
		return true
	}
	timer := clock.System{}.NewTimer(deadline.Sub(clock.System{}.Now()))
	defer timer.Stop()
	select {
	case <-changed:
		return true
	case <-timer.C:
		return false
	}
}

func (b *buffer) write(p []byte) (int, error) {
	for {
		b.mu.Lock()
		if b.end != nil {
			b.mu.Unlock()
			return 0, io.ErrClosedPipe
		}
		if len(b.data) < maxBuffered {
			b.data = append(b.data, p...)
			b.notify()
			b.mu.Unlock()
			return len(p), nil
		}
		changed := b.changed
		b.mu.Unlock()
		<-changed
	}
}

func (b *buffer) close(end error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.end == nil {
		b.end = end
		b.notify()
	}
}

func (b *buffer) setDeadline(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.deadline = t
	b.notify()
}
