package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Caps on answers, in bytes.
const (
	maxDispatch    = 16 << 10
	maxAck         = 1 << 20
	maxReply       = 1 << 20
	maxCertificate = 256 << 10
)

// Poll is the answer to a question for work.
type Poll struct {
	Dispatch *api.Dispatch // nil: nothing to do
	Closing  bool          // the control plane is shutting down: do not all come back at once
}

// Dispatch asks for work and waits for it up to wait, in whole seconds. 204, an empty body and null
// mean that there is none (L3); anything else that is not a dispatch is an error (L4).
func (c *Client) Dispatch(ctx context.Context, wait time.Duration) (Poll, error) {
	const what = "poll for a dispatch"
	a, err := c.do(ctx, request{
		what: what, method: http.MethodGet,
		path:  "/v1/agent/dispatch?wait=" + strconv.Itoa(int(wait/time.Second)),
		limit: maxDispatch, timeout: wait + pollSlack,
	})
	if err != nil {
		return Poll{}, err
	}
	if text := strings.TrimSpace(string(a.body)); a.status == http.StatusNoContent || text == "" || text == "null" {
		return Poll{Closing: a.closing}, nil
	}
	d, err := strictjson.Decode[api.Dispatch]("dispatch", a.body, maxDispatch)
	if err == nil && d.Attempt < 1 {
		err = errors.New("dispatch: attempt: is below 1")
	}
	if err != nil {
		c.Avoid()
		return Poll{}, fmt.Errorf("%s: %w", what, err)
	}
	return Poll{Dispatch: &d, Closing: a.closing}, nil
}

// Events sends a batch and returns what of it is on the control plane's disk.
func (c *Client) Events(ctx context.Context, batch api.EventBatch) (api.EventsAck, error) {
	return call[api.EventsAck](ctx, c, request{
		what: "send events", method: http.MethodPost, path: "/v1/agent/events", body: batch, limit: maxAck,
	})
}

// Heartbeat says what the host is.
func (c *Client) Heartbeat(ctx context.Context, hb api.Heartbeat) (api.HeartbeatReply, error) {
	return call[api.HeartbeatReply](ctx, c, request{
		what: "send a heartbeat", method: http.MethodPost, path: "/v1/agent/heartbeat", body: hb, limit: maxReply,
	})
}

// Confirm completes one authenticated request over a connection of its own, which a system that was
// just switched to must be able to make (state.md, Confirmation). The request is a heartbeat; any
// answer counts, 5xx too, but for 401, which says that the host was not authenticated.
func (c *Client) Confirm(ctx context.Context, hb api.Heartbeat) error {
	_, err := c.do(ctx, request{
		what: "confirm", method: http.MethodPost, path: "/v1/agent/heartbeat", body: hb, limit: maxReply,
		timeout: requestTimeout,
		via: c.fresh(func() (*tls.Config, error) {
			config, _, err := c.credentials.config()
			if err != nil {
				return nil, err
			}
			config = config.Clone()
			config.ClientSessionCache = nil // a whole handshake
			return config, nil
		}),
	})
	if status, ok := errors.AsType[*StatusError](err); ok && status.Status != http.StatusUnauthorized {
		return nil
	}
	return err
}

// Reject tells that a dispatch was refused. What is too long for the protocol is cut.
func (c *Client) Reject(ctx context.Context, r api.Rejection) error {
	r.RolloutID = cut(r.RolloutID, api.MaxRejectID)
	r.Detail = cut(r.Detail, api.MaxRejectDetail)
	_, err := c.do(ctx, request{
		what: "send a rejection", method: http.MethodPost, path: "/v1/agent/rejections", body: r, limit: maxReply,
		timeout: requestTimeout,
	})
	return err
}

// cut shortens s to at most n bytes of valid UTF-8.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}

// Manifest fetches a rollout's envelope, unverified. The id must have been checked.
func (c *Client) Manifest(ctx context.Context, rolloutID string) ([]byte, error) {
	a, err := c.do(ctx, request{
		what: "fetch the manifest", method: http.MethodGet, timeout: requestTimeout, limit: trust.MaxEnvelope(api.MaxManifest),
		path: "/v1/rollouts/" + url.PathEscape(rolloutID) + "/manifest",
	})
	return a.body, err
}

// HostProof fetches a host's line of a rollout with its proof, unverified. The id must have been checked.
func (c *Client) HostProof(ctx context.Context, rolloutID, hostname string) (api.HostProof, error) {
	return call[api.HostProof](ctx, c, request{
		what: "fetch the host's line", method: http.MethodGet, limit: manifest.MaxHostProof,
		path: "/v1/rollouts/" + url.PathEscape(rolloutID) + "/hosts/" + url.PathEscape(hostname),
	})
}

// Enroll asks for the host's first certificate, or its next when the last one ran out. It shows no
// certificate.
func (c *Client) Enroll(ctx context.Context, r api.EnrollRequest) (api.CertificateReply, error) {
	return call[api.CertificateReply](ctx, c, request{
		what: "enrol", method: http.MethodPost, path: "/v1/enroll", body: r, limit: maxCertificate,
		via: c.fresh(c.credentials.anonymous),
	})
}

// Renew asks for the next certificate with the current one.
func (c *Client) Renew(ctx context.Context, r api.RenewRequest) (api.CertificateReply, error) {
	return call[api.CertificateReply](ctx, c, request{
		what: "renew the certificate", method: http.MethodPost, path: "/v1/agent/renew", body: r, limit: maxCertificate,
	})
}

// call does r and decodes its answer.
func call[T any](ctx context.Context, c *Client, r request) (T, error) {
	var zero T
	r.timeout = requestTimeout
	a, err := c.do(ctx, r)
	if err != nil {
		return zero, err
	}
	v, err := strictjson.Decode[T]("answer", a.body, r.limit)
	if err != nil {
		c.Avoid()
		return zero, fmt.Errorf("%s: %w", r.what, err)
	}
	return v, nil
}
