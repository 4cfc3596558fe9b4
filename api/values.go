package api

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// Duration is a non-negative time.Duration that is written as a Go duration string ("90s", "24h").
type Duration time.Duration

// Std returns d as a time.Duration.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes d as the shortest Go duration string: "24h" rather than "24h0m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; negative durations are refused.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return errors.New(`is not a duration such as "90s" or "24h"`)
	}
	if v < 0 {
		return errors.New("is a negative duration")
	}
	*d = Duration(v)
	return nil
}

// Amount is a number of hosts, or a percentage of some set of hosts: 3 or "50%".
type Amount struct {
	Value   int
	Percent bool
}

// String writes a as it stands in JSON, without quotes.
func (a Amount) String() string {
	if a.Percent {
		return strconv.Itoa(a.Value) + "%"
	}
	return strconv.Itoa(a.Value)
}

// Of resolves a against a set of n hosts, rounding a percentage down.
func (a Amount) Of(n int) int {
	if a.Percent {
		return n * a.Value / 100
	}
	return a.Value
}

// MarshalJSONTo implements json.MarshalerTo.
func (a Amount) MarshalJSONTo(enc *jsontext.Encoder) error {
	if a.Percent {
		return enc.WriteToken(jsontext.String(a.String()))
	}
	return enc.WriteToken(jsontext.Int(int64(a.Value)))
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (a *Amount) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	tok, err := dec.ReadToken()
	if err != nil {
		return err
	}
	text, percent := tok.String(), false
	switch tok.Kind() {
	case '0':
	case '"':
		if text, percent = strings.CutSuffix(text, "%"); !percent {
			return fmt.Errorf("is neither a number nor a percentage such as \"50%%\"")
		}
	default:
		return errors.New("is neither a number nor a percentage such as \"50%\"")
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < 0 || v > 1<<31-1 || strings.HasPrefix(text, "+") {
		return errors.New("is not a whole number of hosts or a whole percentage")
	}
	*a = Amount{Value: v, Percent: percent}
	return nil
}
