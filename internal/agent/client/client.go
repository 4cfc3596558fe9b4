package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
)

// Patience of the client.
const (
	// MaxRetryAfter is the longest that a control plane may have an agent wait.
	MaxRetryAfter = 5 * time.Minute
	// pollSlack is what a parked poll's deadline is over its wait (L2).
	pollSlack = 5 * time.Second
	// requestTimeout bounds every other request, its answer's body included.
	requestTimeout = 30 * time.Second
	// connectTimeout bounds dialling and the TLS handshake.
	connectTimeout = 10 * time.Second
	// spareConnection is how long a connection lives that no request uses. The parked poll keeps the
	// first one in use, so what this closes is the second, soon after events were sent on it.
	spareConnection = 5 * time.Second
	// maxConnections is how many requests a control plane takes from a host at a time.
	maxConnections = 4
	// maxHeader caps an answer's header.
	maxHeader = 64 << 10
)

// Options configure a Client.
type Options struct {
	ControlPlanes []string // base URLs, https only, tried in turn
	CA            string   // file: what the control planes' certificates are checked against
	Cert, Key     string   // files: the host's own; both may be absent before enrollment
	Version       string   // of the agent, for the User-Agent header
	Clock         clock.Clock
	Logger        *slog.Logger
	// Dial makes the connection under TLS; nil dials TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Client talks to the control planes. It may be used concurrently.
type Client struct {
	userAgent   string
	clock       clock.Clock
	logger      *slog.Logger
	dial        func(ctx context.Context, network, address string) (net.Conn, error)
	credentials *credentials
	transport   *http.Transport // shows the host's certificate, keeps one connection

	ctx    context.Context // ends with Close: a dial in progress must not outlive the client
	cancel context.CancelFunc

	mu        sync.Mutex
	endpoints []endpoint
	current   int // the endpoint that is asked first
}

// endpoint is one control plane.
type endpoint struct {
	base      string    // without a trailing slash
	notBefore time.Time // until when it asked to be left alone
}

// New returns a client. It fails where a control plane's URL is not https or the files that are there
// cannot be used.
func New(o Options) (*Client, error) {
	if len(o.ControlPlanes) == 0 {
		return nil, errors.New("no control plane is configured")
	}
	c := &Client{
		userAgent:   "nixfleet-agent/" + o.Version,
		clock:       o.Clock,
		logger:      o.Logger,
		dial:        o.Dial,
		credentials: &credentials{ca: o.CA, cert: o.Cert, key: o.Key, clock: o.Clock, logger: o.Logger},
	}
	if c.dial == nil {
		c.dial = (&net.Dialer{}).DialContext
	}
	for _, raw := range o.ControlPlanes {
		base, err := CheckURL(raw)
		if err != nil {
			return nil, err
		}
		c.endpoints = append(c.endpoints, endpoint{base: base})
	}
	if _, _, err := c.credentials.config(); err != nil {
		return nil, err
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.transport = c.newTransport(func() (*tls.Config, error) {
		config, _, err := c.credentials.config()
		return config, err
	})
	return c, nil
}

// Close ends the connections and the dials in progress. Requests in progress end with their contexts.
// The error is nil.
func (c *Client) Close() error {
	c.cancel()
	c.transport.CloseIdleConnections()
	return nil
}

// CheckURL checks a control plane's base URL and returns it without trailing slashes (L1).
func CheckURL(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("control plane %q is not a URL such as https://cp.fleet.example:8443", raw)
	}
	return strings.TrimRight(raw, "/"), nil
}

// newTransport returns a transport whose connections each use the configuration that tlsConfig returns
// when they are made.
func (c *Client) newTransport(tlsConfig func() (*tls.Config, error)) *http.Transport {
	return &http.Transport{
		Proxy:                  nil,
		DialTLSContext:         c.dialTLS(tlsConfig),
		DisableCompression:     true,
		MaxIdleConnsPerHost:    1,
		MaxConnsPerHost:        maxConnections,
		IdleConnTimeout:        spareConnection,
		MaxResponseHeaderBytes: maxHeader,
	}
}

func (c *Client) dialTLS(tlsConfig func() (*tls.Config, error)) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		defer context.AfterFunc(c.ctx, cancel)()
		conn, err := c.handshake(ctx, network, address, tlsConfig)
		if err != nil {
			return nil, &connectError{host: address, err: err}
		}
		return conn, nil
	}
}

func (c *Client) handshake(ctx context.Context, network, address string, tlsConfig func() (*tls.Config, error)) (net.Conn, error) {
	config, err := tlsConfig()
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	raw, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName = host
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// order returns the control planes in the order in which a request should try them: the current one
// and those after it, those that asked to be left alone last.
func (c *Client) order() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.Now()
	var order, later []int
	for i := range c.endpoints {
		n := (c.current + i) % len(c.endpoints)
		if c.endpoints[n].notBefore.After(now) {
			later = append(later, n)
		} else {
			order = append(order, n)
		}
	}
	if len(order) == 0 {
		return later
	}
	return order
}

func (c *Client) base(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endpoints[n].base
}

// good remembers that control plane n answered as it should.
func (c *Client) good(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = n
	c.endpoints[n].notBefore = time.Time{}
}

// bad has the next request start at another control plane than n, which asked to be left alone for d.
// It returns how long it is until some control plane may be asked again.
func (c *Client) bad(n int, d time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.Now()
	if d > 0 {
		c.endpoints[n].notBefore = now.Add(d)
	}
	if c.current == n {
		c.current = (n + 1) % len(c.endpoints)
	}
	wait := d
	for _, e := range c.endpoints {
		wait = min(wait, max(e.notBefore.Sub(now), 0))
	}
	return wait
}

// Avoid has the next request start at another control plane, where there is one: what the current one
// answered was well formed, but could not be verified.
func (c *Client) Avoid() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = (c.current + 1) % len(c.endpoints)
}
