package longpoll_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/accept"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/longpoll"
	"nixfleet.dev/nixfleet/internal/agent/manifestcache"
	"nixfleet.dev/nixfleet/internal/agent/reducer"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

const (
	pollPath   = "GET /v1/agent/dispatch"
	rejectPath = "POST /v1/agent/rejections"
)

// host is the one that the tests' agent is: the first, in wave 0.
var host = manifesttest.Hostname(0)

// rig is a worker between a stand-in control plane and a reducer that only writes down what it gets.
type rig struct {
	t       *testing.T
	dir     string
	ca      *standin.CA
	files   standin.Files
	cp      *standin.ControlPlane
	client  *client.Client
	reducer *recorder
	options longpoll.Options // to be edited before start
	log     *lockedBuffer
	after   chan struct{}
	resent  int
	running string // what Current returns

	cancel context.CancelFunc
	done   chan error
}

// inBubble runs a test in fake time, with connections in memory that carry real TLS.
func inBubble(t *testing.T, test func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		ca := standin.NewCA(t)
		test(t, newRig(t, ca, standin.StartInMemory(t, ca)))
	})
}

func newRig(t *testing.T, ca *standin.CA, cp *standin.ControlPlane) *rig {
	t.Helper()
	r := &rig{
		t: t, dir: t.TempDir(), ca: ca, cp: cp, reducer: &recorder{}, log: &lockedBuffer{},
		after: make(chan struct{}), done: make(chan error, 1), running: manifesttest.Closure(host, "before"),
	}
	r.files = ca.WriteHost(r.dir, host)
	logger := slog.New(slog.NewTextHandler(r.log, nil))
	var err error
	r.client, err = client.New(client.Options{
		ControlPlanes: []string{cp.URL + "//"}, CA: r.files.CA, Cert: r.files.Cert, Key: r.files.Key,
		Clock: clock.System{}, Logger: logger,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if r.cp.Dial != nil {
				return r.cp.Dial(ctx, network, address)
			}
			return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(r.cp.URL, "https://"))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.client.Close() })
	state, err := os.OpenRoot(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	root := manifesttest.Root(manifesttest.Trust())
	keeper, err := accept.Open(accept.Options{
		Dir: state, Root: func() *trust.Root { return root }, Hostname: host, Clock: clock.System{}, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := manifestcache.Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close(); state.Close() })
	r.options = longpoll.Options{
		Hostname: host, ErrorBackoff: 5 * time.Second, After: r.after,
		ControlPlane: r.client, Reducer: r.reducer, Keeper: keeper, Cache: cache,
		Current: func(context.Context) (string, error) { return r.running, nil },
		Resend:  func() { r.resent++ },
		Clock:   clock.System{}, Logger: logger,
	}
	return r
}

// start runs the worker until the test ends. The first heartbeat was answered.
func (r *rig) start() {
	close(r.after)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.done <- longpoll.New(r.options).Run(ctx) }()
	r.t.Cleanup(r.stop)
}

// stop ends the worker and waits for it.
func (r *rig) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	if err := <-r.done; !errors.Is(err, context.Canceled) {
		r.t.Errorf("the worker ended with %v", err)
	}
}

// pass lets fake time go by, and everything that happens in it happen.
func (r *rig) pass(d time.Duration) {
	clock.System{}.Sleep(context.Background(), d)
	synctest.Wait()
}

func now() time.Time { return clock.System{}.Now() }

// release publishes a good release, signed now, and returns it with the dispatch of this host.
func (r *rig) release(o manifesttest.Options) (manifesttest.Release, api.Dispatch) {
	if o.ReleasedAt.IsZero() {
		o.ReleasedAt = now().Truncate(time.Second)
	}
	rel := manifesttest.New(o)
	r.cp.Publish(rel.ID, rel.Envelope, host, rel.Proof(host))
	return rel, rel.Dispatch(host)
}

// polls returns when each poll came in.
func (r *rig) polls() []time.Time {
	var at []time.Time
	for _, req := range r.cp.Requests(pollPath) {
		at = append(at, req.At)
	}
	return at
}

// rejected returns the codes of the rejections so far.
func (r *rig) rejected() []api.Code {
	var codes []api.Code
	for _, rej := range r.cp.Rejections() {
		codes = append(codes, rej.Reason)
	}
	return codes
}

// recorder is a reducer that writes offers down.
type recorder struct {
	mu     sync.Mutex
	offers []reducer.Offer
	answer reducer.Answer // Accepted where it is zero
	view   reducer.View
}

func (r *recorder) Offer(_ context.Context, o reducer.Offer) (reducer.Answer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.offers = append(r.offers, o)
	if r.answer.Kind == 0 {
		return reducer.Answer{Kind: reducer.Accepted}, nil
	}
	return r.answer, nil
}

func (r *recorder) View() *reducer.View { return &r.view }

func (r *recorder) all() []reducer.Offer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]reducer.Offer(nil), r.offers...)
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
