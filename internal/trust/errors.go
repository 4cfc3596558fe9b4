package trust

import (
	"errors"
	"fmt"

	"nixfleet.dev/nixfleet/api"
)

// Error is a refusal: what it is that was refused and why, for a person, and the contract's code, for
// a program. Detail begins with the name of what was refused and holds no input but names and numbers.
type Error struct {
	Code   api.Code
	Detail string
	cause  error
}

// Error implements error.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Detail }

// Unwrap returns the error that was the reason, if one was: a parser's, or another refusal.
func (e *Error) Unwrap() error { return e.cause }

// Refuse returns an *Error about what, for the packages that add rules of their own to these. format
// may wrap the reason with %w, as that of fmt.Errorf may.
func Refuse(code api.Code, what, format string, args ...any) error {
	reason := fmt.Errorf(format, args...)
	return &Error{Code: code, Detail: what + ": " + reason.Error(), cause: errors.Unwrap(reason)}
}

// Malformed returns an *Error that says that a parser refused something; err names what it was.
func Malformed(err error) error {
	return &Error{Code: api.CodeMalformed, Detail: err.Error(), cause: err}
}

// CodeOf returns the code of the refusal that err is or wraps, or "" where it is none.
func CodeOf(err error) api.Code {
	if refusal, ok := errors.AsType[*Error](err); ok {
		return refusal.Code
	}
	return ""
}
