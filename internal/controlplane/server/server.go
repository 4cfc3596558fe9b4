package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/dispatch"
)

// Options are what a Server is made of. Issuer may be nil: then enrolling and renewing are 404.
type Options struct {
	Credentials *Credentials
	TrustDomain string
	Registry    *dispatch.Registry
	Core        Core
	Views       Views
	Artifacts   Artifacts
	Issuer      Issuer
	Clock       clock.Clock
	Logger      *slog.Logger
	Metrics     *Metrics

	// MaxConnections bounds open connections; 0 is a default that the descriptors of a process bound.
	MaxConnections int

	timeouts *timeouts // nil for those of the contract
}

// Server answers agents and operators. Make it with New and run it with Serve.
type Server struct {
	credentials *Credentials
	trustDomain string
	registry    *dispatch.Registry
	core        Core
	views       Views
	artifacts   Artifacts
	issuer      Issuer
	clock       clock.Clock
	log         *slog.Logger
	metrics     *Metrics

	limits      *limits
	timeouts    timeouts
	tls         atomic.Pointer[configFor]
	revocations atomic.Pointer[Revocations]
	listener    *listener
	polls       polls
}

// New returns a server that does not listen yet.
func New(o Options) *Server {
	if o.MaxConnections <= 0 {
		o.MaxConnections = connectionsByDescriptors()
	}
	s := &Server{
		credentials: o.Credentials, trustDomain: o.TrustDomain, registry: o.Registry, core: o.Core, views: o.Views,
		artifacts: o.Artifacts, issuer: o.Issuer, clock: o.Clock, log: o.Logger, metrics: o.Metrics,
		limits: newLimits(o.MaxConnections), timeouts: contract,
		polls: polls{parked: map[*poll]struct{}{}, idle: map[*conn]struct{}{}, blocked: map[*blocked]struct{}{}},
	}
	if o.timeouts != nil {
		s.timeouts = *o.timeouts
	}
	s.metrics.observe(s)
	return s
}

// SetRevocations has r count from now on: for every request, and for the polls that are parked.
func (s *Server) SetRevocations(r *Revocations) {
	s.revocations.Store(r)
	s.polls.recheck(s)
}

// Recheck ends the parked polls whose certificates are no longer good; it is called after the
// credentials were reloaded.
func (s *Server) Recheck() { s.polls.recheck(s) }

// Serve answers on socket until ctx ends, and then shuts down within grace: parked polls end with 204
// and Connection: close, requests under way are finished, and what is left is cut off.
func (s *Server) Serve(ctx context.Context, socket net.Listener, grace time.Duration) error {
	s.listener = s.listen(socket)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	h := &http.Server{
		Handler:                      s.handler(),
		Protocols:                    protocols,
		TLSConfig:                    &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}, // for net/http's HTTP/2 alone
		ReadHeaderTimeout:            s.timeouts.header,
		IdleTimeout:                  s.timeouts.idle,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext:                  withPeer,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxOperatorRequests,
			SendPingTimeout:      30 * time.Second,
			PingTimeout:          15 * time.Second,
			WriteByteTimeout:     s.timeouts.write,
		},
	}
	watching, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { s.hearParked(watching) })
	failed := make(chan error, 1)
	background.Go(func() { failed <- h.Serve(s.listener) })

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	stop()
	s.shutdown(h, grace)
	background.Wait()
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("accepting connections: %w", err)
	}
	return nil
}

func (s *Server) shutdown(h *http.Server, grace time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	s.registry.Drain()
	s.polls.wait(ctx)
	s.polls.closeIdle()
	if err := h.Shutdown(ctx); err != nil {
		s.log.Warn("requests were cut off at shutdown", "err", err)
		_ = h.Close()
	}
	s.polls.wait(ctx)      // for those that were about to be parked
	_ = s.listener.Close() // net/http has closed it already
}

type peerKey struct{}

// withPeer puts the peer of a connection into the context of its requests.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	var p *peer
	switch c := c.(type) {
	case *conn:
		p = c.peer
	case *tls.Conn:
		if raw, ok := c.NetConn().(*rawConn); ok {
			p = raw.peer
		}
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerOf(ctx context.Context) *peer {
	p, _ := ctx.Value(peerKey{}).(*peer)
	return p
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
