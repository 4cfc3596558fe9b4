package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// request is one call of an endpoint.
type request struct {
	what    string // for errors: "poll for a dispatch"
	method  string
	path    string // from /v1 on, with the query
	body    any    // nil for none
	limit   int    // cap of the answer's body
	timeout time.Duration
	via     *http.Transport // nil for the client's own
}

// answer is a response of 200 or 204.
type answer struct {
	status  int
	body    []byte
	closing bool // the control plane said "Connection: close"
}

// maxProblem caps the body of an answer that is not 2xx.
const maxProblem = 64 << 10

// do sends r to the control planes in turn until one can be connected to, and returns its answer.
func (c *Client) do(ctx context.Context, r request) (answer, error) {
	body, err := encode(r.body)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", r.what, err)
	}
	if r.via == nil {
		r.via = c.transport
		c.refresh()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.timeout, fmt.Errorf("no whole answer within %v", r.timeout))
	defer cancel()
	for _, n := range c.order() {
		var a answer
		a, err = c.ask(ctx, r, n, body)
		if err == nil {
			c.good(n)
			return a, nil
		}
		wait := c.bad(n, RetryAfter(err))
		if status, ok := errors.AsType[*StatusError](err); ok {
			status.RetryAfter = wait
		}
		if _, ok := errors.AsType[*connectError](err); !ok || ctx.Err() != nil {
			break
		}
	}
	return answer{}, fmt.Errorf("%s: %w", r.what, err)
}

// refresh has connections that were made with older files give way to new ones. A request that is in
// progress keeps its own.
func (c *Client) refresh() {
	if _, changed, err := c.credentials.config(); err == nil && changed {
		c.logger.Info("TLS files changed; the next connection uses them")
		c.transport.CloseIdleConnections()
	}
}

func encode(body any) ([]byte, error) {
	if body == nil {
		return nil, nil
	}
	return json.Marshal(body)
}

func (c *Client) ask(ctx context.Context, r request, n int, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, c.base(n)+r.path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	req.Header.Set(api.ProtocolHeader, api.ProtocolVersion)
	req.Header.Set("User-Agent", c.userAgent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	} else {
		req.Body = nil
	}
	resp, err := r.via.RoundTrip(req)
	if err != nil {
		return answer{}, explain(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNoContent {
		return answer{}, c.problem(resp)
	}
	data, err := read(resp, r.limit)
	if err != nil {
		return answer{}, explain(ctx, err)
	}
	return answer{status: resp.StatusCode, body: data, closing: resp.Close}, nil
}

// explain gives an error of the context its cause: the deadline's own words rather than "deadline
// exceeded".
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// read returns the whole body, or an error where it is over limit: an attacker's 10 GB cost limit bytes.
func read(resp *http.Response, limit int) ([]byte, error) {
	if resp.ContentLength > int64(limit) {
		return nil, &TooLargeError{limit}
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(data) > limit {
		return nil, &TooLargeError{limit}
	}
	return data, nil
}

// problem makes an error of an answer that is not what was asked for.
func (c *Client) problem(resp *http.Response) error {
	e := &StatusError{Status: resp.StatusCode, RetryAfter: c.retryAfter(resp.Header.Get("Retry-After"))}
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if mediaType != api.ProblemType {
		return e
	}
	if data, err := read(resp, maxProblem); err == nil {
		if problem, err := strictjson.Decode[api.Problem]("problem", data, maxProblem); err == nil {
			e.Problem = problem
		}
	}
	return e
}

// retryAfter reads the header's seconds or date, clamped to MaxRetryAfter.
func (c *Client) retryAfter(header string) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(header, 10, 63); err == nil {
		wait = time.Duration(min(seconds, uint64(MaxRetryAfter/time.Second))) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		wait = at.Sub(c.clock.Now())
	}
	return min(max(wait, 0), MaxRetryAfter)
}

// fresh returns a transport for one request on a connection of its own.
func (c *Client) fresh(tlsConfig func() (*tls.Config, error)) *http.Transport {
	t := c.newTransport(tlsConfig)
	t.DisableKeepAlives = true
	return t
}
