package server

import (
	"bytes"
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/controlplane/dispatch"
)

// hearEvery is how often the hosts that are parked are counted as heard.
const hearEvery = 3 * time.Second

// dispatch answers a poll: at once where there is something to say, else when there is, or when the
// wait is over.
func (s *Server) dispatch(w http.ResponseWriter, r *http.Request, who Identity) error {
	wait, err := parseWait(r.URL.RawQuery)
	if err != nil {
		return err
	}
	if !s.core.Ready() {
		return Refuse(api.CodeStarting, "the control plane is starting")
	}
	s.core.Heard(who.Name)
	if left := who.expires.Sub(s.clock.Now()); left < wait {
		wait = max(left, 0)
	}
	if r.ContentLength != 0 {
		return closing(Refuse(api.CodeMalformed, "a poll has no body"))
	}
	if r.ProtoMajor == 1 && r.ProtoAtLeast(1, 1) && !r.Close && wait > 0 {
		return s.park(w, r, who, wait)
	}
	return s.block(w, r, who, wait)
}

// block is park for connections that net/http keeps: those of HTTP/2.
func (s *Server) block(w http.ResponseWriter, r *http.Request, who Identity, wait time.Duration) error {
	if err := http.NewResponseController(w).SetWriteDeadline(s.clock.Now().Add(wait + s.timeouts.write)); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	p := peerOf(ctx)
	defer s.polls.blocks(p, cancel)()
	timer := s.clock.NewTimer(wait)
	defer timer.Stop()
	answer := s.registry.Wait(ctx, who.Name, timer.C)
	if r.Context().Err() != nil {
		return nil // the peer has gone away
	}
	return s.writeAnswer(w, p, answer)
}

// writeAnswer answers a poll whose connection net/http has.
func (s *Server) writeAnswer(w http.ResponseWriter, p *peer, answer dispatch.Answer) error {
	status, header, body := s.pollResponse(p, answer)
	for name := range header {
		w.Header().Set(name, header.Get(name))
	}
	if err := http.NewResponseController(w).SetWriteDeadline(s.clock.Now().Add(s.timeouts.write)); err != nil {
		return err
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the peer has gone away, if this fails
	return nil
}

// pollResponse is the response to a poll. The certificate is looked at again: it may have been revoked
// or have run out while the poll was parked.
func (s *Server) pollResponse(p *peer, answer dispatch.Answer) (status int, header http.Header, body []byte) {
	header = http.Header{}
	who, refused := s.authenticate(p)
	if refused != nil {
		refused.header(header)
		return refused.Status, header, refused.body()
	}
	s.core.Heard(who.Name)
	s.metrics.polls.WithLabelValues(outcomes[answer.Outcome]).Inc()
	if answer.Outcome == dispatch.Drained {
		header.Set("Connection", "close")
	}
	if answer.Outcome != dispatch.Given {
		return http.StatusNoContent, header, nil
	}
	body, err := json.Marshal(answer.Dispatch)
	if err != nil {
		s.log.Error("encoding a dispatch", "host", who.Name, "err", err)
		p := asProblem(err)
		p.header(header)
		return p.Status, header, p.body()
	}
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	return http.StatusOK, header, body
}

var outcomes = map[dispatch.Outcome]string{
	dispatch.Given: "given", dispatch.Abandoned: "abandoned", dispatch.Superseded: "superseded", dispatch.Drained: "drained", dispatch.TimedOut: "timed-out",
}

// poll is a parked poll on HTTP/1.1 whose connection net/http no longer has.
type poll struct {
	s    *Server
	host string

	mu     sync.Mutex
	conn   *conn // once it is taken over
	timer  *time.Timer
	answer *dispatch.Answer // that came before that
}

// park parks r and returns at once: the poll is answered later, on a connection that net/http gave up.
func (s *Server) park(w http.ResponseWriter, r *http.Request, who Identity, wait time.Duration) error {
	p := &poll{s: s, host: who.Name}
	answer, parked := s.registry.Park(who.Name, p)
	if !parked {
		return s.writeAnswer(w, peerOf(r.Context()), answer)
	}
	taken, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.registry.Leave(who.Name, p)
		return err
	}
	c := taken.(*conn) // what the listener gave to net/http
	if n := buffered.Reader.Buffered(); n > 0 {
		ahead, _ := buffered.Reader.Peek(n) // the next request, sent before this one was answered
		c.unread = append(bytes.Clone(ahead), c.unread...)
	}
	if rec, ok := w.(*recorder); ok {
		rec.parked = true
	}
	s.polls.add(p)
	p.arm(c, wait)
	return nil
}

// arm has the poll answered from now on: with what came in the meantime, or when the wait is over.
func (p *poll) arm(c *conn, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = c
	if p.answer != nil {
		go p.respond(*p.answer)
		return
	}
	p.timer = p.s.clock.AfterFunc(wait, func() { p.leave(dispatch.Answer{Outcome: dispatch.TimedOut}) })
}

// Wake implements dispatch.Waiter.
func (p *poll) Wake(answer dispatch.Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		p.answer = &answer
		return
	}
	if p.timer != nil {
		p.timer.Stop()
	}
	go p.respond(answer)
}

// leave ends the poll from this side, unless it is being answered already.
func (p *poll) leave(answer dispatch.Answer) {
	if p.s.registry.Leave(p.host, p) {
		p.Wake(answer)
	}
}

// respond writes the response and gives the connection back to net/http, for the next request.
func (p *poll) respond(answer dispatch.Answer) {
	defer p.s.polls.done(p)
	status, header, body := p.s.pollResponse(p.conn.peer, answer)
	closing := header.Get("Connection") == "close"
	if err := p.conn.SetWriteDeadline(p.s.clock.Now().Add(p.s.timeouts.write)); err != nil {
		_ = p.conn.Close()
		return
	}
	if _, err := p.conn.Write(rawResponse(p.s.clock.Now(), status, header, body)); err != nil || closing {
		_ = p.conn.Close()
		return
	}
	p.conn.resume()
	p.s.listener.give(p.conn)
}

// rawResponse is a response as it goes over the wire.
func rawResponse(now time.Time, status int, header http.Header, body []byte) []byte {
	header.Set(api.ProtocolHeader, api.ProtocolVersion)
	header.Set("Date", now.UTC().Format(http.TimeFormat))
	if status != http.StatusNoContent {
		header.Set("Content-Length", strconv.Itoa(len(body)))
	}
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status) + "\r\n")
	_ = header.Write(&b) // a buffer takes everything
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// polls are the connections that net/http does not have, or does not yet know to be idle.
type polls struct {
	mu      sync.Mutex
	parked  map[*poll]struct{}    // from being parked until they are answered
	empty   chan struct{}         // closed when parked is empty, if somebody waits for that
	idle    map[*conn]struct{}    // given back, and nothing read since
	blocked map[*blocked]struct{} // polls that are ordinary blocked handlers
}

// blocked is a poll that a handler waits for.
type blocked struct {
	peer   *peer
	cancel context.CancelFunc
}

func (ps *polls) add(p *poll) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.parked[p] = struct{}{}
}

// blocks notes a poll that a handler waits for, until what it returns is called.
func (ps *polls) blocks(p *peer, cancel context.CancelFunc) (end func()) {
	b := &blocked{p, cancel}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.blocked[b] = struct{}{}
	return func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		delete(ps.blocked, b)
	}
}

func (ps *polls) done(p *poll) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.parked, p)
	if len(ps.parked) == 0 && ps.empty != nil {
		close(ps.empty)
		ps.empty = nil
	}
}

func (ps *polls) rests(c *conn) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.idle[c] = struct{}{}
}

func (ps *polls) stirs(c *conn) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.idle, c)
}

// closeIdle closes connections that rest: net/http takes them for new and would wait for their request.
func (ps *polls) closeIdle() {
	ps.mu.Lock()
	idle := slices.Collect(maps.Keys(ps.idle))
	ps.mu.Unlock()
	for _, c := range idle {
		c.cut()
	}
}

// wait waits for the answers that are being written, and cuts them off when ctx ends.
func (ps *polls) wait(ctx context.Context) {
	ps.mu.Lock()
	if len(ps.parked) == 0 {
		ps.mu.Unlock()
		return
	}
	if ps.empty == nil {
		ps.empty = make(chan struct{})
	}
	empty := ps.empty
	ps.mu.Unlock()
	select {
	case <-empty:
		return
	case <-ctx.Done():
	}
	ps.mu.Lock()
	cut := slices.Collect(maps.Keys(ps.parked))
	ps.mu.Unlock()
	for _, p := range cut {
		if c := p.taken(); c != nil {
			c.cut()
		}
	}
	<-empty
}

// recheck ends the parked polls whose certificates are no longer good: the answer says why.
func (ps *polls) recheck(s *Server) {
	ps.mu.Lock()
	var bad []*poll
	for p := range ps.parked {
		if c := p.taken(); c != nil {
			if _, refused := s.authenticate(c.peer); refused != nil {
				bad = append(bad, p)
			}
		}
	}
	for b := range ps.blocked {
		if _, refused := s.authenticate(b.peer); refused != nil {
			b.cancel()
		}
	}
	ps.mu.Unlock()
	for _, p := range bad {
		p.leave(dispatch.Answer{Outcome: dispatch.TimedOut})
	}
}

func (p *poll) taken() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

// hearParked counts the hosts that are parked as heard, again and again.
func (s *Server) hearParked(ctx context.Context) {
	var buf []string
	for s.clock.Sleep(ctx, hearEvery) == nil {
		buf = s.registry.ParkedHosts(buf[:0])
		for _, host := range buf {
			s.core.Heard(host)
		}
	}
}
