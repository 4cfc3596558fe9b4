package server

import (
	"context"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// What one server bears. Connections are bounded by Options.MaxConnections.
const (
	maxHeaderBytes      = 16 << 10
	maxRequests         = 8192 // at a time, parked polls not counted
	maxAnonymous        = 64   // requests at a time without a certificate
	maxOperatorRequests = 32   // at a time of one operator
	maxNameConnections  = 16   // of one host or operator
	defaultConnections  = 65_000
)

// timeouts are how long a client may take.
type timeouts struct {
	handshake time.Duration
	header    time.Duration
	body      time.Duration
	write     time.Duration
	idle      time.Duration // between two requests
	stranger  time.Duration // a whole connection without a certificate
}

// contract has the times of design/wire.md; tests shorten them.
var contract = timeouts{
	handshake: 10 * time.Second, header: 10 * time.Second, body: 30 * time.Second, write: 30 * time.Second,
	idle: 90 * time.Second, stranger: time.Minute,
}

// limits counts what is in use: connections in all, connections that nobody has authenticated on yet,
// and the connections and requests of each name.
type limits struct {
	connections chan struct{} // a slot for each open connection
	strangers   chan struct{} // a slot for each that is not authenticated

	mu       sync.Mutex
	requests int
	byName   map[Identity]*use // keyed by role and name alone
}

// use is what one name has open.
type use struct{ connections, requests int }

func newLimits(connections int) *limits {
	return &limits{
		connections: make(chan struct{}, connections),
		strangers:   make(chan struct{}, max(connections/4, 1)),
		byName:      map[Identity]*use{},
	}
}

// admit waits for a place for one more connection; it returns false once ctx ends.
func (l *limits) admit(ctx context.Context) bool {
	select {
	case l.connections <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	select {
	case l.strangers <- struct{}{}:
		return true
	case <-ctx.Done():
		<-l.connections
		return false
	}
}

// authenticated moves a connection from the strangers to its name.
func (l *limits) authenticated(c *rawConn) {
	l.mu.Lock()
	l.of(c.peer.id).connections++
	l.mu.Unlock()
	c.counted = true
	<-l.strangers
}

// depart gives the place of a connection back; c is nil for one that never was.
func (l *limits) depart(c *rawConn) {
	<-l.connections
	if c == nil || !c.counted {
		<-l.strangers
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.of(c.peer.id)
	u.connections--
	l.forget(c.peer.id, u)
}

func key(id Identity) Identity { return Identity{Role: id.Role, Name: id.Name} }

func (l *limits) of(id Identity) *use {
	u := l.byName[key(id)]
	if u == nil {
		u = &use{}
		l.byName[key(id)] = u
	}
	return u
}

func (l *limits) forget(id Identity, u *use) {
	if u.connections == 0 && u.requests == 0 {
		delete(l.byName, key(id))
	}
}

// begin takes a place for a request of id, the zero Identity for one without a certificate; end gives
// it back.
func (l *limits) begin(id Identity) *Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.requests >= maxRequests {
		return Refuse(api.CodeOverloaded, "over %d requests are being answered", maxRequests)
	}
	u := l.of(id)
	switch {
	case u.requests >= id.Role.most():
		return Refuse(api.CodeTooMany, "at most %d requests at a time", id.Role.most())
	case u.connections > maxNameConnections:
		return closing(Refuse(api.CodeTooMany, "at most %d connections at a time", maxNameConnections))
	}
	u.requests++
	l.requests++
	return nil
}

// most is how many requests at a time one name of a role may have; all without a certificate are one.
func (r Role) most() int {
	switch r {
	case Host:
		return api.MaxHostRequests
	case Operator:
		return maxOperatorRequests
	}
	return maxAnonymous
}

func (l *limits) end(id Identity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.of(id)
	u.requests--
	l.requests--
	l.forget(id, u)
}
