package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/trust"
)

// repeatAfter is how often the same failure is logged again.
const repeatAfter = 10 * time.Minute

// Adopter is what a verified release is handed to: internal/controlplane/writer.
type Adopter interface {
	// Adopt makes a release known and durable, with the bytes of all objects that were not stored before.
	Adopt(ctx context.Context, a rollout.Adoption, objects ...[]byte) error
	// Known returns the objects of a rollout that was adopted before.
	Known(ctx context.Context, rolloutID string) (objects rollout.Objects, ok bool, err error)
}

// Objects reads artifacts that were adopted: a store.Store. Its errors are that package's.
type Objects interface {
	Object(ctx context.Context, digest string) ([]byte, error)
}

// Options are what a Source is made of; those after Metrics may be left out.
type Options struct {
	URL       string             // file:///… or https://…
	TokenFile string             // of a bearer token for https, "" for none
	Interval  time.Duration      // between two polls, give or take a tenth
	Dir       string             // where the records of what was accepted are; it is there and this one's own
	Root      func() *trust.Root // what is trusted now
	Adopter   Adopter
	Objects   Objects
	// Revoked is told of every revocation list that counts, before and after a restart. It must not block.
	Revoked func(api.Revocations)
	Clock   clock.Clock
	Logger  *slog.Logger
	Metrics prometheus.Registerer

	Transport http.RoundTripper // for https
	Random    func() float64    // in [0, 1), for jitter
}

// Source polls one repository. Make it with New, then call Restore once and Run once.
type Source struct {
	fetcher  fetcher
	records  records
	interval time.Duration
	root     func() *trust.Root
	adopter  Adopter
	objects  Objects
	revoked  func(api.Revocations)
	clock    clock.Clock
	log      *slog.Logger
	metrics  *metrics
	random   func() float64

	// Of Run alone.
	current []byte      // the index that was adopted last
	by      *trust.Root // and the keys that verified it
	warned  map[warning]bool
	failure string // logged last
	failed  time.Time

	mu       sync.Mutex
	channels map[string]api.Manifest // adopted, by channel
}

// warning is what is warned of once.
type warning struct {
	channel  string
	signedAt time.Time
	stale    bool
}

// New returns a Source that does nothing yet. The error is about the URL.
func New(o Options) (*Source, error) {
	f, err := newFetcher(o.URL, o.TokenFile, o.Transport, o.Clock)
	if err != nil {
		return nil, err
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	return &Source{
		fetcher: f, records: records{o.Dir}, interval: o.Interval, root: o.Root, adopter: o.Adopter, objects: o.Objects,
		revoked: o.Revoked, clock: o.Clock, log: o.Logger, metrics: newMetrics(o.Metrics), random: o.Random,
		warned: map[warning]bool{}, channels: map[string]api.Manifest{},
	}, nil
}

// CheckURL says what is wrong with the URL of a repository.
func CheckURL(url string) error {
	_, err := newFetcher(url, "", nil, nil)
	return err
}

// Restore has the revocations count that were accepted before the last stop. It must return before
// anybody is served.
func (s *Source) Restore() error {
	last, err := s.records.load(s.root(), s.clock.Now())
	if err != nil {
		return err
	}
	for _, ignored := range last.ignored {
		s.log.Warn("a record of what was accepted no longer counts", "err", ignored)
	}
	if last.revocations != nil {
		s.revoked(last.revocations.Value())
	}
	for _, v := range last.manifests {
		s.watch(v.Value())
	}
	return nil
}

// Run polls until ctx ends.
func (s *Source) Run(ctx context.Context) {
	for ctx.Err() == nil {
		s.poll(ctx)
		s.warn()
		pause := time.Duration(float64(s.interval) * (0.9 + 0.2*s.random()))
		if s.clock.Sleep(ctx, pause) != nil {
			return
		}
	}
}

// poll looks at the index once and adopts what it names if there is something new.
func (s *Source) poll(ctx context.Context) {
	result, err := s.look(ctx)
	if ctx.Err() != nil {
		return
	}
	s.metrics.polled(result, s.clock.Now())
	if err == nil {
		if s.failure != "" {
			s.log.Info("the release repository is well again")
			s.failure = ""
		}
		return
	}
	now := s.clock.Now()
	if text := err.Error(); text != s.failure || now.Sub(s.failed) >= repeatAfter {
		s.failure, s.failed = text, now
		s.log.Error("nothing was adopted from the release repository; the last good release stays", "result", result, "err", err)
	}
}

// Results of a poll.
const (
	adopted     = "adopted"
	unchanged   = "unchanged"
	unreachable = "unreachable" // the index could not be had
	refused     = "refused"     // something in the release is wrong or missing
)

func (s *Source) look(ctx context.Context) (result string, err error) {
	root := s.root()
	envelope, err := s.fetcher.fetch(ctx, indexName, trust.MaxEnvelope(api.MaxIndex))
	switch {
	case errors.Is(err, errUnchanged) && s.by == root:
		return unchanged, nil
	case errors.Is(err, errUnchanged):
		envelope = s.current // the same, by other keys
	case err != nil:
		return unreachable, err
	}
	if s.by == root && bytes.Equal(envelope, s.current) {
		s.fetcher.accept()
		return unchanged, nil
	}
	c, err := s.verify(ctx, root, envelope)
	if err != nil {
		return refused, err
	}
	if err := s.adopter.Adopt(ctx, c.adoption(), c.fetched...); err != nil {
		return refused, fmt.Errorf("adopting index %d: %w", c.index.Value().Sequence, err)
	}
	if err := s.records.save(c); err != nil {
		return refused, err
	}
	s.adopted(c, envelope, root)
	return adopted, nil
}

// adopted takes note of an index that is in force now.
func (s *Source) adopted(c candidate, envelope []byte, root *trust.Root) {
	s.fetcher.accept()
	s.current, s.by = envelope, root
	if c.revocations != nil {
		s.revoked(c.revocations.Value())
	}
	s.mu.Lock()
	clear(s.channels)
	s.mu.Unlock()
	for _, release := range c.releases {
		s.watch(release.Manifest.Value())
	}
	for _, text := range c.warnings {
		s.log.Warn("the release was adopted with a warning", "warning", text)
	}
	index := c.index.Value()
	s.metrics.sequence.Set(float64(index.Sequence))
	s.log.Info("adopted from the release repository", "sequence", index.Sequence, "signedAt", index.SignedAt, "channels", len(c.releases))
}

// watch has a manifest's age looked at from now on.
func (s *Source) watch(m api.Manifest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.channels[m.Channel] = m
	s.metrics.expiry.WithLabelValues(m.Channel).Set(float64(m.SignedAt.Add(m.FreshnessWindow.Std()).Unix()))
}

// warn warns once of each manifest whose signature is three quarters through its window, and once more
// when agents have begun to refuse it.
func (s *Source) warn() {
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for channel, m := range s.channels {
		window := m.FreshnessWindow.Std()
		age := now.Sub(m.SignedAt)
		if age < window/4*3 {
			continue
		}
		w := warning{channel, m.SignedAt, age > window}
		if s.warned[w] {
			continue
		}
		s.warned[w] = true
		expires := m.SignedAt.Add(window)
		if w.stale {
			s.log.Error("agents refuse this channel's manifest: its signature is too old; run nixfleet release refresh",
				"channel", channel, "rollout", m.RolloutID, "expiredAt", expires)
		} else {
			s.log.Warn("this channel's signature grows old; run nixfleet release refresh",
				"channel", channel, "rollout", m.RolloutID, "expiresAt", expires)
		}
	}
}
