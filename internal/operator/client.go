// Package operator is the client of a control plane's operator endpoints (design/wire.md): what the
// command line and the demo read a fleet with. It only reads, holds no state of its own, and is not
// for agents, whose client is internal/agent/client.
package operator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// maxBody caps a response, in bytes.
const maxBody = 64 << 20

// requestTimeout bounds one request with its body.
const requestTimeout = 30 * time.Second

// Context says how to reach a control plane as an operator: one entry of config.toml. CA, Cert and Key
// are paths of PEM files.
type Context struct {
	ControlPlane string `toml:"control_plane"`
	CA           string `toml:"ca"`
	Cert         string `toml:"cert"`
	Key          string `toml:"key"`
}

// Client reads a control plane. It may be used concurrently.
type Client struct {
	base string
	http *http.Client
}

// New returns a client for c. The error names the file that cannot be read or is not what it should be.
func New(c Context) (*Client, error) {
	base, err := url.Parse(c.ControlPlane)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("control_plane %q is not an https:// URL", c.ControlPlane)
	}
	roots, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("reading the control plane's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", c.CA)
	}
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("loading the operator's certificate %s with key %s: %w", c.Cert, c.Key, err)
	}
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{pair}},
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     time.Minute,
	}
	return &Client{base: strings.TrimRight(c.ControlPlane, "/"), http: &http.Client{Transport: transport, Timeout: requestTimeout}}, nil
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is a problem response of the control plane.
type Error struct{ Problem api.Problem }

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("%s (%s)", e.Problem.Detail, e.Problem.Code)
}

// IsCode says whether err is a problem response with the code.
func IsCode(err error, code api.Code) bool {
	problem, ok := errors.AsType[*Error](err)
	return ok && problem.Problem.Code == code
}

// HostFilter narrows a list of hosts; empty fields do not.
type HostFilter struct {
	Channel, State, Tag, Query string
}

// Host returns one host.
func (c *Client) Host(ctx context.Context, name string) (api.Host, error) {
	return get[api.Host](ctx, c, "/v1/hosts/"+url.PathEscape(name), nil)
}

// Why returns every gate's verdict on a host.
func (c *Client) Why(ctx context.Context, name string) (api.Why, error) {
	return get[api.Why](ctx, c, "/v1/hosts/"+url.PathEscape(name)+"/why", nil)
}

// Rollout returns one rollout.
func (c *Client) Rollout(ctx context.Context, id string) (api.Rollout, error) {
	return get[api.Rollout](ctx, c, "/v1/rollouts/"+url.PathEscape(id), nil)
}

// Hosts iterates over all hosts that match, page by page; it ends after the first error.
func (c *Client) Hosts(ctx context.Context, f HostFilter) iter.Seq2[api.Host, error] {
	q := url.Values{"limit": {strconv.Itoa(api.MaxListLimit)}}
	for name, value := range map[string]string{"channel": f.Channel, "state": f.State, "tag": f.Tag, "q": f.Query} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return all[api.Host](ctx, c, "/v1/hosts", q)
}

// Rollouts iterates over all rollouts, newest first; it ends after the first error.
func (c *Client) Rollouts(ctx context.Context) iter.Seq2[api.Rollout, error] {
	return all[api.Rollout](ctx, c, "/v1/rollouts", url.Values{})
}

// Channels iterates over all channels; it ends after the first error.
func (c *Client) Channels(ctx context.Context) iter.Seq2[api.Channel, error] {
	return all[api.Channel](ctx, c, "/v1/channels", url.Values{})
}

// Events returns up to limit entries of a rollout's history after the log sequence number after.
func (c *Client) Events(ctx context.Context, id string, after int64, limit int) (api.List[api.LoggedEvent], error) {
	q := url.Values{"after": {strconv.FormatInt(after, 10)}, "limit": {strconv.Itoa(limit)}}
	return get[api.List[api.LoggedEvent]](ctx, c, "/v1/rollouts/"+url.PathEscape(id)+"/events", q)
}

func all[T any](ctx context.Context, c *Client, path string, q url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		for {
			page, err := get[api.List[T]](ctx, c, path, q)
			if err != nil {
				yield(none, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if page.NextCursor == "" {
				return
			}
			q.Set("cursor", page.NextCursor)
		}
	}
}

func get[T any](ctx context.Context, c *Client, path string, q url.Values) (T, error) {
	var v T
	target := c.base + path
	if len(q) > 0 {
		target += "?" + q.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return v, err
	}
	req.Header.Set(api.ProtocolHeader, api.ProtocolVersion)
	req.Header.Set("Accept", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return v, fmt.Errorf("asking the control plane: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		return v, fmt.Errorf("reading the control plane's answer: %w", err)
	case len(body) > maxBody:
		return v, fmt.Errorf("the control plane's answer to %s is over %d bytes", path, maxBody)
	case resp.StatusCode != http.StatusOK:
		return v, problem(resp.StatusCode, body)
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fmt.Errorf("the control plane's answer to %s is not what it should be: %w", path, err)
	}
	return v, nil
}

func problem(status int, body []byte) error {
	var p api.Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" {
		return fmt.Errorf("the control plane answered %d %s", status, http.StatusText(status))
	}
	return &Error{p}
}
