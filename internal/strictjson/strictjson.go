// Package strictjson decodes JSON that came from somewhere else, by the rules of the artifacts
// contract: one value and nothing after it, valid UTF-8, no duplicate and no missing keys, integers
// of at most 2^53-1, timestamps in UTC, bounded size and depth; unknown fields are ignored. Errors
// name what was read, the field and the reason.
//
// It is pure, and every parser of outside bytes goes through it. It validates shape, never meaning.
package strictjson

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// MaxInteger is the largest magnitude of an integer: 2^53-1.
const MaxInteger = 1<<53 - 1

// MaxDepth is how deep values may nest.
const MaxDepth = 64

// Error says what was wrong with which field of what. It is safe to show: Reason holds no input
// but short, quoted extracts.
type Error struct {
	What   string // what was read: a file's name, "request body"
	Field  string // dotted path, "" for the whole
	Reason string
	cause  error
}

// Unwrap returns ErrTooLarge for input over its limit.
func (e *Error) Unwrap() error { return e.cause }

// Error implements error.
func (e *Error) Error() string {
	if e.Field == "" {
		return e.What + ": " + e.Reason
	}
	return e.What + ": " + e.Field + ": " + e.Reason
}

// ErrTooLarge is wrapped by the error for input over its limit.
var ErrTooLarge = errors.New("too large")

// Decode decodes data into a new T; what names the input in errors and limit is its size cap in bytes.
// A field of a struct is required unless its json tag has omitzero or omitempty or it is tagged
// `strict:"optional"`; null counts as missing but where the field is a pointer. It may be called
// concurrently.
func Decode[T any](what string, data []byte, limit int) (T, error) {
	var v T
	err := decode(what, data, limit, &v)
	if err != nil {
		var zero T
		return zero, err
	}
	return v, nil
}

func decode(what string, data []byte, limit int, v any) error {
	if len(data) > limit {
		return &Error{What: what, cause: ErrTooLarge, Reason: fmt.Sprintf("is %d bytes; at most %d are allowed", len(data), limit)}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return &Error{What: what, Reason: "is empty"}
	}
	c := &checker{dec: jsontext.NewDecoder(bytes.NewReader(data))}
	if c.dec.PeekKind() == 'n' {
		return &Error{What: what, Reason: "is null"}
	}
	if err := c.value(reflect.TypeOf(v).Elem(), 0); err != nil {
		return c.fail(what, err)
	}
	if _, err := c.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return &Error{What: what, Reason: "has something after the JSON value"}
	}
	if err := json.Unmarshal(data, v); err != nil {
		return explain(what, err)
	}
	return nil
}

// checker walks the tokens of one value beside the Go type it will be decoded into.
type checker struct {
	dec  *jsontext.Decoder
	path []string
}

func (c *checker) fail(what string, err error) error {
	var syntactic *jsontext.SyntacticError
	reason := err.Error()
	if errors.As(err, &syntactic) {
		if syntactic.JSONPointer != "" {
			return &Error{What: what, Field: dotted(syntactic.JSONPointer), Reason: syntaxReason(syntactic)}
		}
		reason = syntaxReason(syntactic)
	} else if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		reason = "ends in the middle of a JSON value"
	}
	return &Error{What: what, Field: strings.Join(c.path, "."), Reason: reason}
}

func syntaxReason(e *jsontext.SyntacticError) string {
	switch {
	case errors.Is(e.Err, jsontext.ErrDuplicateName):
		return "is there twice"
	case errors.Is(e.Err, io.ErrUnexpectedEOF):
		return "ends in the middle of a JSON value"
	}
	return fmt.Sprintf("is not valid JSON at byte %d: %v", e.ByteOffset, e.Err)
}

func explain(what string, err error) error {
	var semantic *json.SemanticError
	if !errors.As(err, &semantic) {
		return &Error{What: what, Reason: err.Error()}
	}
	reason := "has the wrong type"
	if semantic.Err != nil {
		reason = semantic.Err.Error()
	} else if semantic.JSONKind != 0 && semantic.GoType != nil {
		reason = fmt.Sprintf("is a JSON %s, which does not fit here", semantic.JSONKind)
	}
	return &Error{What: what, Field: dotted(semantic.JSONPointer), Reason: reason}
}

func dotted(p jsontext.Pointer) string {
	var parts []string
	for token := range p.Tokens() {
		parts = append(parts, clip(token))
	}
	return strings.Join(parts, ".")
}

// clip keeps names from outside short in errors.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	if quoted := strconv.Quote(s); quoted != `"`+s+`"` {
		return quoted
	}
	return s
}

var (
	timeType      = reflect.TypeFor[time.Time]()
	rawType       = reflect.TypeFor[jsontext.Value]()
	unmarshaler   = reflect.TypeFor[json.UnmarshalerFrom]()
	textUnmarshal = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// opaque says whether t decodes itself, so that its inside is checked for shape only.
func opaque(t reflect.Type) bool {
	return t == rawType || reflect.PointerTo(t).Implements(unmarshaler) || reflect.PointerTo(t).Implements(textUnmarshal)
}

func (c *checker) value(t reflect.Type, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("is nested over %d deep", MaxDepth)
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch c.dec.PeekKind() {
	case '{':
		return c.object(t, depth)
	case '[':
		return c.array(t, depth)
	}
	tok, err := c.dec.ReadToken()
	if err != nil {
		return err
	}
	switch {
	case tok.Kind() == '0':
		return checkNumber(tok.String())
	case tok.Kind() == '"' && t == timeType && !strings.HasSuffix(tok.String(), "Z"):
		return errors.New(`is not a time in UTC such as "2026-11-23T08:00:00Z"`)
	}
	return nil
}

func checkNumber(s string) error {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > MaxInteger || n < -MaxInteger {
		return errors.New("is not a whole number of at most 2^53-1")
	}
	return nil
}

func (c *checker) array(t reflect.Type, depth int) error {
	var elem reflect.Type
	if t != nil && !opaque(t) && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		elem = t.Elem()
	}
	if _, err := c.dec.ReadToken(); err != nil {
		return err
	}
	for i := 0; c.dec.PeekKind() != ']'; i++ {
		c.path = append(c.path, strconv.Itoa(i))
		if elem != nil && elem.Kind() != reflect.Pointer && c.dec.PeekKind() == 'n' {
			return errors.New("is null")
		}
		if err := c.value(elem, depth+1); err != nil {
			return err
		}
		c.path = c.path[:len(c.path)-1]
	}
	_, err := c.dec.ReadToken()
	return err
}

func (c *checker) object(t reflect.Type, depth int) error {
	var fields map[string]field
	var elem reflect.Type
	if t != nil && !opaque(t) {
		switch t.Kind() {
		case reflect.Struct:
			fields = fieldsOf(t)
		case reflect.Map:
			elem = t.Elem()
		}
	}
	if _, err := c.dec.ReadToken(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for c.dec.PeekKind() != '}' {
		tok, err := c.dec.ReadToken()
		if err != nil {
			return err
		}
		name := tok.String()
		c.path = append(c.path, clip(name))
		f, known := fields[name]
		null := c.dec.PeekKind() == 'n'
		member := elem
		if known {
			member = f.typ
			seen[name] = true
			if null && f.required && f.typ.Kind() != reflect.Pointer {
				return errors.New("is null")
			}
		} else if null && elem != nil && elem.Kind() != reflect.Pointer {
			return errors.New("is null")
		}
		if err := c.value(member, depth+1); err != nil {
			return err
		}
		c.path = c.path[:len(c.path)-1]
	}
	if _, err := c.dec.ReadToken(); err != nil {
		return err
	}
	for name, f := range fields {
		if f.required && !seen[name] {
			c.path = append(c.path, name)
			return errors.New("is missing")
		}
	}
	return nil
}

type field struct {
	typ      reflect.Type
	required bool
}

func fieldsOf(t reflect.Type) map[string]field {
	fields := make(map[string]field, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "" || name == "-" {
			continue
		}
		optional := strings.Contains(options, "omit") || f.Tag.Get("strict") == "optional"
		fields[name] = field{typ: f.Type, required: !optional}
	}
	return fields
}
