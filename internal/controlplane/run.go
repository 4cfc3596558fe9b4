package controlplane

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/dispatch"
	"nixfleet.dev/nixfleet/internal/controlplane/enroll"
	"nixfleet.dev/nixfleet/internal/controlplane/server"
	"nixfleet.dev/nixfleet/internal/controlplane/source"
	"nixfleet.dev/nixfleet/internal/controlplane/store/sqlite"
	"nixfleet.dev/nixfleet/internal/controlplane/writer"
	"nixfleet.dev/nixfleet/internal/trust"
)

// acceptedDir is the folder below state_dir of what the source has accepted. It is apart from the
// database, so that losing that does not undo it.
const acceptedDir = "accepted"

// defaultReload is how often the files that may be replaced are looked at.
const defaultReload = 10 * time.Second

// Options are what a Config does not say. Logger and Clock are needed.
type Options struct {
	Logger  *slog.Logger
	Clock   clock.Clock
	Version string
	// Ready is called once, when agents are served and the log is read.
	Ready func(addr, metricsAddr net.Addr)

	HeartbeatInterval time.Duration     // what agents are told; rollout's default when zero
	SourceTransport   http.RoundTripper // for an https:// repository; one with the system's CAs when nil
	ReloadEvery       time.Duration     // how often replaced files are looked for; 10 s when zero
}

// Run runs a control plane until ctx ends, and then stops it within c.ShutdownTimeout: parked polls
// and requests are answered, what was taken is written. It returns nil after that; any other return is
// why it could not start or go on. Several may run in one process, each in its own StateDir.
func Run(ctx context.Context, c Config, o Options) error {
	if o.ReloadEvery <= 0 {
		o.ReloadEvery = defaultReload
	}
	s := &supervisor{config: c, options: o, log: o.Logger, registry: prometheus.NewRegistry()}
	if err := s.prepare(); err != nil {
		return err
	}
	if err := s.listen(ctx); err != nil {
		return err
	}
	defer s.closeSockets()
	db, err := sqlite.Open(ctx, c.StateDir, o.Clock)
	if err != nil {
		return fmt.Errorf("opening the database: %w", err)
	}
	err = s.assemble(db)
	if err == nil {
		err = s.run(ctx)
	}
	return errors.Join(err, db.Close())
}

// supervisor holds the parts of one control plane.
type supervisor struct {
	config   Config
	options  Options
	log      *slog.Logger
	registry *prometheus.Registry

	trust       atomic.Pointer[trust.Root]
	credentials *server.Credentials

	socket, metricsSocket net.Listener

	writer *writer.Writer
	server *server.Server
	issuer *enroll.Issuer // nil where there is none
	source *source.Source

	stopping atomic.Bool
}

// prepare reads what can be wrong, before anything is started.
func (s *supervisor) prepare() error {
	if err := os.MkdirAll(filepath.Join(s.config.StateDir, acceptedDir), 0o700); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	root, err := loadTrust(s.config.TrustFile)
	if err != nil {
		return err
	}
	s.trust.Store(root)
	s.credentials, err = server.LoadCredentials(s.config.TLS.Cert, s.config.TLS.Key, s.config.TLS.ClientCA)
	return err
}

func loadTrust(name string) (*trust.Root, error) {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading trust.json: %w; a control plane believes nothing without it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading trust.json: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, api.MaxTrust+1))
	if err != nil {
		return nil, fmt.Errorf("reading trust.json: %w", err)
	}
	return trust.ParseRoot(name, data)
}

func (s *supervisor) listen(ctx context.Context) (err error) {
	var lc net.ListenConfig
	if s.socket, err = lc.Listen(ctx, "tcp", s.config.Listen); err != nil {
		return fmt.Errorf("listening for agents and operators: %w", err)
	}
	if s.metricsSocket, err = lc.Listen(ctx, "tcp", s.config.MetricsListen); err != nil {
		s.socket.Close()
		return fmt.Errorf("listening for metrics: %w", err)
	}
	return nil
}

// closeSockets closes what may not have come to be served.
func (s *supervisor) closeSockets() {
	s.socket.Close()
	s.metricsSocket.Close()
}

// assemble makes the parts and tells each of the others that it needs.
func (s *supervisor) assemble(db *sqlite.Store) (err error) {
	o := s.options
	polls := dispatch.New()
	s.writer = writer.New(writer.Options{
		Store: db, Registry: polls, Clock: o.Clock, Logger: s.log, Metrics: s.registry, HeartbeatInterval: o.HeartbeatInterval,
	})
	c := &core{writer: s.writer, clock: o.Clock}
	so := server.Options{
		Credentials: s.credentials, TrustDomain: s.config.TrustDomain, Registry: polls, Core: c, Views: c,
		Artifacts: newArtifacts(c, db), Clock: o.Clock, Logger: s.log, Metrics: server.NewMetrics(s.registry),
	}
	if s.config.Issuer != nil {
		if s.issuer, err = s.newIssuer(c); err != nil {
			return err
		}
		so.Issuer = s.issuer
	}
	s.server = server.New(so)
	s.source, err = source.New(source.Options{
		URL: s.config.Source.URL, TokenFile: s.config.Source.TokenFile, Interval: s.config.Source.PollInterval,
		Dir: filepath.Join(s.config.StateDir, acceptedDir), Root: s.trust.Load, Adopter: c, Objects: db,
		Revoked: s.revoked, Clock: o.Clock, Logger: s.log, Metrics: s.registry, Transport: o.SourceTransport,
	})
	if err != nil {
		return fmt.Errorf("[source] url: %w", err)
	}
	s.observe()
	return s.source.Restore()
}

func (s *supervisor) newIssuer(tokens enroll.Tokens) (*enroll.Issuer, error) {
	i := s.config.Issuer
	return enroll.New(enroll.Options{
		CertFile: i.CACert, KeyFile: i.CAKey, Lifetime: i.CertificateLifetime, TrustDomain: s.config.TrustDomain,
		Root: s.trust.Load, Tokens: tokens, Clock: s.options.Clock, Logger: s.log, Metrics: s.registry,
		Accepted: func(chain []*x509.Certificate) error {
			return s.credentials.VerifyClient(chain, s.options.Clock.Now())
		},
	})
}

// revoked has a revocation list count wherever that matters.
func (s *supervisor) revoked(list api.Revocations) {
	if s.issuer != nil {
		s.issuer.SetRevocations(list)
	}
	s.server.SetRevocations(server.NewRevocations(list))
}

// observe registers the metrics of the process itself.
func (s *supervisor) observe() {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "nixfleet_build_info", Help: "1, with the version that runs.", ConstLabels: prometheus.Labels{"version": s.options.Version},
	})
	build.Set(1)
	s.registry.MustRegister(build)
	prometheus.WrapRegistererWithPrefix("nixfleet_", s.registry).MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// run starts the parts and stops them: the server first, so that what it has taken is still written,
// the writer after it, and the metrics last.
func (s *supervisor) run(ctx context.Context) error {
	metricsCtx, stopMetrics := context.WithCancel(context.WithoutCancel(ctx))
	writerCtx, stopWriter := context.WithCancel(context.WithoutCancel(ctx))
	frontCtx, stopFront := context.WithCancelCause(ctx) // the server and the source; a failure ends it too
	defer stopMetrics()
	defer stopWriter()
	defer stopFront(nil)

	var metrics, back, front sync.WaitGroup
	metrics.Go(func() { fail(stopFront, "serving metrics", s.serveMetrics(metricsCtx)) })
	back.Go(func() { fail(stopFront, "the log", s.writer.Run(writerCtx)) })
	front.Go(func() { fail(stopFront, "serving", s.server.Serve(frontCtx, s.socket, s.config.ShutdownTimeout)) })
	front.Go(func() { s.reload(frontCtx) })
	front.Go(func() { s.whenReady(frontCtx) })

	<-frontCtx.Done()
	s.stopping.Store(true)
	if ctx.Err() != nil {
		s.log.Info("shutting down", "timeout", s.config.ShutdownTimeout)
	}
	front.Wait()
	stopWriter()
	back.Wait()
	stopMetrics()
	metrics.Wait()
	if ctx.Err() != nil && !errors.As(context.Cause(frontCtx), new(*failure)) {
		return nil
	}
	return context.Cause(frontCtx)
}

// failure is why a part ended that was not told to.
type failure struct {
	part string
	err  error
}

func (f *failure) Error() string { return f.part + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func fail(stop context.CancelCauseFunc, part string, err error) {
	if err != nil {
		stop(&failure{part, err})
	}
}

// whenReady waits until the log is read, says so, and then keeps up with the source.
func (s *supervisor) whenReady(ctx context.Context) {
	select {
	case <-s.writer.Ready():
	case <-ctx.Done():
		return
	}
	s.log.Info("serving", "listen", s.socket.Addr().String(), "metrics", s.metricsSocket.Addr().String(), "version", s.options.Version)
	if s.options.Ready != nil {
		s.options.Ready(s.socket.Addr(), s.metricsSocket.Addr())
	}
	s.source.Run(ctx)
}

// reload looks again and again whether a file was replaced: certificates, CAs, trust.json.
func (s *supervisor) reload(ctx context.Context) {
	for s.options.Clock.Sleep(ctx, s.options.ReloadEvery) == nil {
		changed, err := s.credentials.Reload()
		s.reloaded("the server's certificates", changed, err)
		if changed {
			s.server.Recheck()
		}
		if s.issuer != nil {
			changed, err = s.issuer.Reload()
			s.reloaded("the issuer", changed, err)
		}
		root, err := loadTrust(s.config.TrustFile)
		if changed = err == nil && root.SHA256() != s.trust.Load().SHA256(); changed {
			s.trust.Store(root)
		}
		s.reloaded("trust.json", changed, err)
	}
}

func (s *supervisor) reloaded(what string, changed bool, err error) {
	switch {
	case err != nil:
		s.log.Error("a file was replaced by one that cannot be used; what was read before stays in force", "what", what, "err", err)
	case changed:
		s.log.Info("read again", "what", what)
	}
}
