package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// listener takes connections from a socket, does their TLS handshakes and hands them to net/http as
// they become ready; and it takes back connections that were parked (park.go). Handshaken connections
// of HTTP/1.1 come out as *conn, those of HTTP/2 as *tls.Conn, which net/http wants for it.
type listener struct {
	net.Listener
	s     *Server
	ready chan net.Conn

	closing sync.Once
	closed  chan struct{}
	cancel  context.CancelFunc // ends handshakes
	running sync.WaitGroup     // the accept loop and the handshakes
}

func (s *Server) listen(socket net.Listener) *listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{Listener: socket, s: s, ready: make(chan net.Conn), closed: make(chan struct{}), cancel: cancel}
	l.running.Go(func() { l.acceptAll(ctx) })
	return l
}

// Accept implements net.Listener for net/http.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close stops accepting, cuts handshakes off and waits for both.
func (l *listener) Close() error {
	l.shut()
	err := l.Listener.Close()
	l.running.Wait()
	return err
}

// shut ends Accept and the handshakes.
func (l *listener) shut() {
	l.closing.Do(func() {
		close(l.closed)
		l.cancel()
	})
}

// give hands a connection to net/http, or closes it where the listener is closed.
func (l *listener) give(c net.Conn) {
	select {
	case l.ready <- c:
	case <-l.closed:
		c.Close()
	}
}

// acceptAll accepts until the socket is closed. It stops accepting while too many connections are open
// or not yet authenticated: the kernel's backlog holds the others.
func (l *listener) acceptAll(ctx context.Context) {
	for {
		if !l.s.limits.admit(ctx) {
			return
		}
		raw, err := l.Listener.Accept()
		if err != nil {
			l.s.limits.depart(nil)
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				l.shut()
				return
			}
			l.s.log.Warn("accepting a connection", "err", err) // out of descriptors, most likely
			if l.s.clock.Sleep(ctx, 50*time.Millisecond) != nil {
				return
			}
			continue
		}
		c := &rawConn{Conn: raw, s: l.s}
		l.running.Go(func() { l.handshake(ctx, c) })
	}
}

func (l *listener) handshake(ctx context.Context, raw *rawConn) {
	ctx, cancel := context.WithTimeout(ctx, l.s.timeouts.handshake)
	defer cancel()
	c := tls.Server(raw, l.s.tlsConfig())
	if err := c.HandshakeContext(ctx); err != nil {
		l.s.metrics.handshakeFailures.Inc()
		l.s.log.Debug("a TLS handshake failed", "remote", raw.RemoteAddr().String(), "err", err)
		_ = c.Close()
		return
	}
	state := c.ConnectionState()
	raw.peer = l.s.peer(state.PeerCertificates)
	if raw.peer.id.Role != Nobody {
		l.s.limits.authenticated(raw)
	} else {
		raw.until = l.s.clock.Now().Add(l.s.timeouts.stranger)
	}
	if state.NegotiatedProtocol == "h2" {
		l.give(c)
		return
	}
	l.give(&conn{Conn: c, s: l.s, peer: raw.peer})
}

// rawConn is a TCP connection that gives its place back when it is closed.
type rawConn struct {
	net.Conn
	s    *Server
	peer *peer // once the handshake is done

	until   time.Time // the end of a stranger's connection, whatever it does
	counted bool      // as authenticated, by limits
	closing sync.Once
}

// SetDeadline implements net.Conn, like the next two.
func (c *rawConn) SetDeadline(t time.Time) error { return c.Conn.SetDeadline(c.clamp(t)) }

// SetReadDeadline implements net.Conn.
func (c *rawConn) SetReadDeadline(t time.Time) error { return c.Conn.SetReadDeadline(c.clamp(t)) }

// SetWriteDeadline implements net.Conn.
func (c *rawConn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(c.clamp(t)) }

func (c *rawConn) clamp(t time.Time) time.Time {
	if c.until.IsZero() || !t.IsZero() && t.Before(c.until) {
		return t
	}
	return c.until
}

// Close implements net.Conn.
func (c *rawConn) Close() error {
	err := c.Conn.Close()
	c.closing.Do(func() { c.s.limits.depart(c) })
	return err
}

// conn is an HTTP/1.1 connection that can be parked: taken from net/http and given back. Conn is a
// *tls.Conn.
type conn struct {
	net.Conn
	s    *Server
	peer *peer

	unread  []byte // what net/http had read ahead when the connection was parked
	resumed bool   // given back to net/http and nothing read yet
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.unread) > 0 {
		c.active()
		n := copy(b, c.unread)
		if c.unread = c.unread[n:]; len(c.unread) == 0 {
			c.unread = nil
		}
		return n, nil
	}
	n, err := c.Conn.Read(b)
	if n > 0 && c.resumed {
		c.active()
		if err := c.Conn.SetReadDeadline(c.s.clock.Now().Add(c.s.timeouts.header)); err != nil {
			return n, fmt.Errorf("setting the deadline of a request's header: %w", err)
		}
	}
	return n, err
}

// resume makes the connection ready to be given back.
func (c *conn) resume() {
	c.resumed = true
	c.s.polls.rests(c)
}

// active notes that the next request has begun.
func (c *conn) active() {
	if c.resumed {
		c.resumed = false
		c.s.polls.stirs(c)
	}
}

// cut closes the connection without a word to the peer, which might not take it.
func (c *conn) cut() {
	c.s.polls.stirs(c)
	if t, ok := c.Conn.(*tls.Conn); ok {
		_ = t.NetConn().Close()
	}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.s.polls.stirs(c)
	return c.Conn.Close()
}

// SetReadDeadline implements net.Conn. net/http gives a new connection c.s.timeouts.header to send a request;
// one that it gets back may be idle first, like any that it kept.
func (c *conn) SetReadDeadline(t time.Time) error {
	if c.resumed && !t.IsZero() {
		t = c.s.clock.Now().Add(c.s.timeouts.idle)
	}
	return c.Conn.SetReadDeadline(t)
}

// tlsConfig returns the configuration for the next handshake, with the certificate and CA as they are
// now.
func (s *Server) tlsConfig() *tls.Config {
	loaded := s.credentials.loaded.Load()
	if c := s.tls.Load(); c != nil && c.loaded == loaded {
		return c.config
	}
	config := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{loaded.cert},
		NextProtos:   []string{"h2", "http/1.1"},
		// A certificate is asked for and not required, since enrollment goes without; which requests
		// need one is decided for each (authenticate).
		ClientAuth: tls.RequestClientCert,
		ClientCAs:  loaded.pool,
		VerifyConnection: func(state tls.ConnectionState) error {
			return s.verifyConnection(loaded, state)
		},
		Time: s.clock.Now,
	}
	s.tls.Store(&configFor{loaded, config})
	return config
}

type configFor struct {
	loaded *loaded
	config *tls.Config
}

// verifyConnection ends the handshake of a certificate that does not lead to the fleet's CA. It runs on
// resumed sessions too, unlike VerifyPeerCertificate. One that is expired, revoked or nobody's gets
// through to be told so: authenticate refuses each of its requests.
func (s *Server) verifyConnection(l *loaded, state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	err := l.verify(state.PeerCertificates, s.clock.Now())
	if err != nil && !expired(err) {
		return fmt.Errorf("verifying the client's certificate: %w", err)
	}
	return nil
}
