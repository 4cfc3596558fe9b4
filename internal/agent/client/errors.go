package client

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"nixfleet.dev/nixfleet/api"
)

// StatusError is an answer that is not the one the endpoint promises: a problem, a redirect, a status
// nobody expects.
type StatusError struct {
	Status  int
	Problem api.Problem // zero where the body was none
	// RetryAfter is how long to leave the control planes alone, at most MaxRetryAfter; 0 where they did
	// not say, or where another control plane has not been asked yet.
	RetryAfter time.Duration
}

// Error implements error. What the control plane wrote is quoted and cut.
func (e *StatusError) Error() string {
	text := "the control plane answered " + strconv.Itoa(e.Status)
	if e.Problem.Code != "" {
		text += " " + clip(string(e.Problem.Code))
	}
	if e.Problem.Detail != "" {
		text += ": " + clip(e.Problem.Detail)
	}
	return text
}

// clip quotes text from outside and keeps it short.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most]
	}
	return strconv.Quote(s)
}

// IsProblem says whether err is an answer with the code.
func IsProblem(err error, code api.Code) bool {
	var status *StatusError
	return errors.As(err, &status) && status.Problem.Code == code
}

// RetryAfter returns how long err asks to wait, 0 where it does not.
func RetryAfter(err error) time.Duration {
	if status, ok := errors.AsType[*StatusError](err); ok {
		return status.RetryAfter
	}
	return 0
}

// TooLargeError is an answer whose body is over its cap.
type TooLargeError struct{ Limit int }

// Error implements error.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the answer is over its cap of %d bytes", e.Limit)
}

// connectError is a connection that could not be made: the request was not sent, so another control
// plane may be asked at once.
type connectError struct {
	host string
	err  error
}

func (e *connectError) Error() string { return "connect to " + e.host + ": " + e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }
