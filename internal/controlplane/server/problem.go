package server

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// retryAfter is what 429 and 503 tell clients to wait; agents add jitter of their own.
const retryAfter = 5 * time.Second

// Problem is an error that becomes a problem response (RFC 9457). Details are for people and hold
// nothing of the request but what has been validated or quoted.
type Problem struct {
	api.Problem
	closing bool   // the connection is closed with the response
	allow   string // for 405
}

// Error implements error.
func (p *Problem) Error() string { return fmt.Sprintf("%s (%d): %s", p.Code, p.Status, p.Detail) }

// Refuse returns the problem of a code, with the status that design/wire.md gives it.
func Refuse(code api.Code, format string, args ...any) *Problem {
	status, known := statuses[code]
	if !known {
		status = http.StatusInternalServerError
	}
	return &Problem{Problem: api.Problem{
		Type: "/problems/" + string(code), Title: http.StatusText(status), Status: status, Code: code,
		Detail: fmt.Sprintf(format, args...),
	}}
}

// RefuseGap returns the 409 that tells an agent which event to send again from.
func RefuseGap(expected int64) *Problem {
	p := Refuse(api.CodeSequenceGap, "the next event of this stream is number %d", expected)
	p.ExpectedSeq = expected
	return p
}

var statuses = map[api.Code]int{
	api.CodeUnsupportedProtocol: http.StatusBadRequest,
	api.CodeMalformed:           http.StatusBadRequest,
	api.CodeCertificateRequired: http.StatusUnauthorized,
	api.CodeIdentityMismatch:    http.StatusForbidden,
	api.CodeWrongRole:           http.StatusForbidden,
	api.CodeCertificateRevoked:  http.StatusForbidden,
	api.CodeTokenInvalid:        http.StatusForbidden,
	api.CodeNotFound:            http.StatusNotFound,
	api.CodeUnknownRollout:      http.StatusNotFound,
	api.CodeMethodNotAllowed:    http.StatusMethodNotAllowed,
	api.CodeSequenceGap:         http.StatusConflict,
	api.CodeWrongState:          http.StatusConflict,
	api.CodeTooLarge:            http.StatusRequestEntityTooLarge,
	api.CodeTooMany:             http.StatusTooManyRequests,
	api.CodeInternal:            http.StatusInternalServerError,
	api.CodeStarting:            http.StatusServiceUnavailable,
	api.CodeOverloaded:          http.StatusServiceUnavailable,
}

// asProblem returns the problem that err is or wraps; any other error is an internal one, whose text
// stays out of the response.
func asProblem(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	return Refuse(api.CodeInternal, "the control plane could not do this; its log says why")
}

// header sets the response headers of p.
func (p *Problem) header(h http.Header) {
	h.Set("Content-Type", api.ProblemType)
	h.Set("Cache-Control", "no-store")
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(int(retryAfter/time.Second)))
	}
	if p.allow != "" {
		h.Set("Allow", p.allow)
	}
	if p.closing {
		h.Set("Connection", "close")
	}
}

func (p *Problem) body() []byte {
	data, err := json.Marshal(p.Problem)
	if err != nil { // only strings and numbers are in it
		return []byte(`{}`)
	}
	return data
}

func (p *Problem) write(w http.ResponseWriter) {
	p.header(w.Header())
	w.WriteHeader(p.Status)
	_, _ = w.Write(p.body()) // the peer has gone away, if this fails
}
