// Package settings reads the configuration of the two daemons: a TOML file in which an unknown key is an
// error, the NIXFLEET_* environment before it, and flags before both. It lists everything that is wrong,
// and knows no setting itself: internal/agent and internal/controlplane name theirs and judge them.
package settings

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// maxFile caps a configuration, in bytes.
const maxFile = 1 << 20

// Error is a configuration that cannot be used, with everything that is wrong with it.
type Error struct {
	File     string
	Problems []string
}

// Error implements error.
func (e *Error) Error() string { return e.File + ":\n  " + strings.Join(e.Problems, "\n  ") }

// Flag is a setting that a flag can give.
type Flag struct {
	Name  string // without dashes: "tls-cert"
	Usage string
}

// Scalar is a setting of S that the environment and flags can give too.
type Scalar[S any] struct {
	Key   string // in the file: "tls.cert"
	Usage string
	Set   func(*S, string)
}

// Of returns the setting of a key.
func Of[S any](key, usage string, set func(*S, string)) Scalar[S] {
	return Scalar[S]{Key: key, Usage: usage, Set: set}
}

// Flags returns the flags that give the settings.
func Flags[S any](scalars []Scalar[S]) []Flag {
	var list []Flag
	for _, s := range scalars {
		list = append(list, Flag{flagOf(s.Key), s.Usage})
	}
	return list
}

func flagOf(key string) string { return strings.NewReplacer(".", "-", "_", "-").Replace(key) }

// envOf returns the variable of a setting: [tls] cert is NIXFLEET_TLS_CERT.
func envOf(key string) string {
	return "NIXFLEET_" + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// Load reads the file at path, puts the environment and then flags (by Flag.Name) over it, and has check
// make a configuration of it. The error is an *Error with all that is wrong.
func Load[S, C any](path string, flags map[string]string, scalars []Scalar[S], check func(S, *Problems) C) (C, error) {
	var none C
	s, unknown, err := parse[S](path)
	if err != nil {
		return none, &Error{File: path, Problems: []string{err.Error()}}
	}
	for _, scalar := range scalars {
		if v, ok := os.LookupEnv(envOf(scalar.Key)); ok {
			scalar.Set(&s, v)
		}
		if v, ok := flags[flagOf(scalar.Key)]; ok {
			scalar.Set(&s, v)
		}
	}
	p := &Problems{list: unknown}
	c := check(s, p)
	if len(p.list) > 0 {
		return none, &Error{File: path, Problems: p.list}
	}
	return c, nil
}

// parse reads the file, and lists the keys that there are not.
func parse[S any](path string) (s S, unknown []string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return s, nil, err
	}
	if len(data) > maxFile {
		return s, nil, fmt.Errorf("it is over %d bytes", maxFile)
	}
	err = toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&s)
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		for _, e := range missing.Errors {
			line, _ := e.Position()
			unknown = append(unknown, fmt.Sprintf("line %d: %s: there is no such key", line, strings.Join(e.Key(), ".")))
		}
		return s, unknown, nil
	}
	if wrong, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := wrong.Position()
		err = fmt.Errorf("line %d: %s", line, strings.TrimPrefix(wrong.Error(), "toml: "))
	}
	return s, nil, err
}

// Problems gathers what is wrong with a configuration.
type Problems struct{ list []string }

// Require notes a problem where ok is false: "<key>: what is wrong and what to do".
func (p *Problems) Require(ok bool, format string, args ...any) {
	if !ok {
		p.list = append(p.list, fmt.Sprintf(format, args...))
	}
}

// Given returns a setting that must be there.
func (p *Problems) Given(key, value string) string {
	p.Require(value != "", "%s: is missing", key)
	return value
}

// Duration returns a duration of at least least.
func (p *Problems) Duration(key, value string, least time.Duration) time.Duration {
	d, err := time.ParseDuration(value)
	p.Require(err == nil && d >= least, "%s: %q is not a duration such as %q of at least %s", key, value, "30s", least)
	return d
}

// Or returns value, or otherwise where it is empty.
func Or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
