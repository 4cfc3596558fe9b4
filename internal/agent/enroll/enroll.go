// Package enroll gets this host its certificate, and the next ones: by a signed token at first and
// where the last certificate ran out, by the certificate itself at half its life (design/wire.md,
// "Certificates").
//
// The key is made on the host and never leaves it. Another tool may look after the files as well: they
// are read again each time, and whoever wrote a good certificate has done the work.
package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/backoff"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

const (
	// lookAgain is how long it is at most until the certificate's file is read again.
	lookAgain = time.Hour
	// betweenRenewals is the least time from one certificate to the next, however short they live.
	betweenRenewals = time.Minute
)

// ControlPlane issues certificates; *client.Client is one.
type ControlPlane interface {
	Enroll(ctx context.Context, r api.EnrollRequest) (api.CertificateReply, error)
	Renew(ctx context.Context, r api.RenewRequest) (api.CertificateReply, error)
}

// Options configure a Host.
type Options struct {
	Hostname     string
	Cert, Key    string // files
	Token        string // file, "" for none
	ErrorBackoff time.Duration
	ControlPlane ControlPlane
	Clock        clock.Clock
	Logger       *slog.Logger
	Random       func() float64 // in [0, 1), for jitter; nil is math/rand/v2's
}

// Host looks after one host's certificate. It is for one goroutine.
type Host struct {
	o       Options
	backoff backoff.Backoff
}

// New returns a Host.
func New(o Options) *Host {
	if o.Random == nil {
		o.Random = rand.Float64
	}
	return &Host{o: o, backoff: backoff.Backoff{Floor: o.ErrorBackoff, Random: o.Random}}
}

// Ensure returns once this host has a certificate that is good now, enrolling by the token where it has
// none. It goes on trying while the control plane cannot be reached or is not ready, and gives up where
// the token is refused, or there is none.
func (h *Host) Ensure(ctx context.Context) error {
	for {
		cert, err := h.load()
		if err == nil && h.o.Clock.Now().Before(cert.NotAfter) {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err = h.enroll(ctx); err == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if final(err) {
			return err
		}
		pause := h.backoff.Next(client.RetryAfter(err))
		h.o.Logger.Warn("enrollment failed", "err", err, "wait", pause)
		if err := h.o.Clock.Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// errNoToken is why a host without a good certificate cannot help itself.
var errNoToken = errors.New("there is no good certificate and no enrollment token")

// final says whether trying again is of no use: the control plane refused, or something here is wrong.
func final(err error) bool {
	status, ok := errors.AsType[*client.StatusError](err)
	if ok {
		return status.Status < 500 && status.Status != http.StatusTooManyRequests
	}
	local, ok := errors.AsType[*localError](err)
	return ok && local != nil
}

// localError is one that only someone on this host can mend.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// Run renews the certificate at half its life, or enrols again where it ran out, until ctx ends; it
// returns ctx's cause.
func (h *Host) Run(ctx context.Context) error {
	jitter := h.o.Random() / 10 // of the life: a fleet enrolled at one moment does not renew at one
	for {
		pause := h.look(ctx, jitter)
		if err := h.o.Clock.Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// look does what the certificate needs now, and returns when to look again.
func (h *Host) look(ctx context.Context, jitter float64) time.Duration {
	cert, err := h.load()
	now := h.o.Clock.Now()
	if err == nil {
		life := cert.NotAfter.Sub(cert.NotBefore)
		due := halfLife(cert).Add(time.Duration(jitter * float64(life)))
		if wait := due.Sub(now); wait > 0 {
			return min(wait, lookAgain)
		}
		if now.Before(cert.NotAfter) {
			err = h.renew(ctx, cert)
		} else {
			err = h.enroll(ctx)
		}
	}
	switch {
	case err == nil:
		h.backoff.Reset()
		return betweenRenewals
	case ctx.Err() != nil:
		return 0
	case client.IsProblem(err, api.CodeNotFound):
		h.o.Logger.Warn("the certificate is due for renewal, but this control plane issues none", "err", err)
		return lookAgain
	case errors.Is(err, errNoBetter):
		h.o.Logger.Warn("the certificate is due for renewal, but this control plane has no better one", "err", err)
		return lookAgain
	}
	pause := h.backoff.Next(client.RetryAfter(err))
	h.o.Logger.Error("the certificate could not be renewed", "err", err, "wait", pause)
	return pause
}

// load reads the certificate and checks that it is this host's.
func (h *Host) load() (*x509.Certificate, error) {
	data, err := readFile(h.o.Cert)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	chain, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("read the certificate %s: %w", h.o.Cert, err)
	}
	cert := chain[0]
	key, err := loadKey(h.o.Key)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	if err := check(cert, key, h.o.Hostname); err != nil {
		return nil, fmt.Errorf("%s: %w", h.o.Cert, err)
	}
	return cert, nil
}

func (h *Host) enroll(ctx context.Context) error {
	key, csr, err := h.request()
	if err != nil {
		return err
	}
	token, err := h.token()
	if err != nil {
		return &localError{err}
	}
	reply, err := h.o.ControlPlane.Enroll(ctx, api.EnrollRequest{Token: token, CSR: csr})
	if err != nil {
		return err
	}
	return h.save(reply, key, nil)
}

func (h *Host) renew(ctx context.Context, current *x509.Certificate) error {
	key, csr, err := h.request()
	if err != nil {
		return err
	}
	reply, err := h.o.ControlPlane.Renew(ctx, api.RenewRequest{CSR: csr})
	if err != nil {
		return err
	}
	return h.save(reply, key, current)
}

// request returns the key, made where there is none, and a CSR by it.
func (h *Host) request() (*ecdsa.PrivateKey, string, error) {
	key, err := ensureKey(h.o.Key)
	if err != nil {
		return nil, "", &localError{err}
	}
	csr, err := newRequest(key, h.o.Hostname)
	if err != nil {
		return nil, "", &localError{err}
	}
	return key, csr, nil
}

// token reads the token's file. It is the control plane that verifies it.
func (h *Host) token() (api.Envelope, error) {
	if h.o.Token == "" {
		return api.Envelope{}, errNoToken
	}
	data, err := readFile(h.o.Token)
	if err != nil {
		return api.Envelope{}, fmt.Errorf("%w: %w", errNoToken, err)
	}
	return strictjson.Decode[api.Envelope]("enrollment token", data, trust.MaxEnvelope(api.MaxToken))
}

// errNoBetter is why a renewed certificate is not taken: a hostile control plane must not be able to take
// a good one away from a host that may have no token to come back by.
var errNoBetter = errors.New("the new certificate is not of the same name, or ends before the current one")

// save replaces the certificate by the chain of one that is this host's, good now, and no worse than the
// current one; current is nil where there is none that is good.
func (h *Host) save(reply api.CertificateReply, key *ecdsa.PrivateKey, current *x509.Certificate) error {
	chain, err := parse([]byte(reply.Certificate))
	if err == nil {
		err = check(chain[0], key, h.o.Hostname)
	}
	if err != nil {
		return fmt.Errorf("the control plane's certificate: %w", err)
	}
	cert := chain[0]
	switch {
	case !h.o.Clock.Now().Before(cert.NotAfter):
		return fmt.Errorf("the control plane's certificate ended at %s", cert.NotAfter.Format(time.RFC3339))
	case current != nil && (cert.NotAfter.Before(current.NotAfter) || cert.URIs[0].String() != current.URIs[0].String()):
		return fmt.Errorf("%w, at %s and not at %s", errNoBetter, cert.NotAfter.Format(time.RFC3339), current.NotAfter.Format(time.RFC3339))
	}
	if err := writeFile(h.o.Cert, encode(chain)); err != nil {
		return &localError{fmt.Errorf("write the certificate: %w", err)}
	}
	h.o.Logger.Info("got a certificate", "notAfter", cert.NotAfter)
	return nil
}
