package manifest

import (
	"bytes"

	"nixfleet.dev/nixfleet/api"
)

// scanLine reads a line that is laid out exactly as EncodeHosts lays it out, which is every line that
// nixfleet wrote, in a tenth of the time that a JSON decoder takes: a control plane reads hundreds of
// thousands of them. ok is false for anything else, however good its JSON is; a decoder must then say.
// Where ok is true, the strict decoder would return the same line (FuzzLine).
func scanLine(raw []byte) (line api.HostLine, ok bool) {
	s := scanner{rest: raw}
	s.literal(`{"hostname":`)
	line.Hostname = s.text()
	s.literal(`,"wave":`)
	line.Wave = s.number()
	s.literal(`,"closure":`)
	line.Closure = s.text()
	if s.skip(`,"after":[`) {
		line.After = append(line.After, s.text())
		for s.skip(`,`) {
			line.After = append(line.After, s.text())
		}
		s.literal(`]`)
	}
	if s.skip(`,"budgets":[`) {
		line.Budgets = append(line.Budgets, s.number())
		for s.skip(`,`) {
			line.Budgets = append(line.Budgets, s.number())
		}
		s.literal(`]`)
	}
	s.literal(`}`)
	return line, !s.failed && len(s.rest) == 0
}

// scanner takes known text off the front of a line; once something was not as expected it has failed
// and takes nothing more.
type scanner struct {
	rest   []byte
	failed bool
}

// skip takes text off, if it is there.
func (s *scanner) skip(text string) bool {
	if s.failed || len(s.rest) < len(text) || string(s.rest[:len(text)]) != text {
		return false
	}
	s.rest = s.rest[len(text):]
	return true
}

func (s *scanner) literal(text string) {
	if !s.skip(text) {
		s.failed = true
	}
}

// text takes a string of printable ASCII without escapes off.
func (s *scanner) text() string {
	if s.literal(`"`); s.failed {
		return ""
	}
	end := bytes.IndexByte(s.rest, '"')
	if end < 0 {
		s.failed = true
		return ""
	}
	text := s.rest[:end]
	for _, c := range text {
		if c < ' ' || c > '~' || c == '\\' {
			s.failed = true
			return ""
		}
	}
	s.rest = s.rest[end+1:]
	return string(text)
}

// number takes a whole number of at most nine digits off, without sign or leading zero.
func (s *scanner) number() int {
	n, digits := 0, 0
	for digits < len(s.rest) && s.rest[digits] >= '0' && s.rest[digits] <= '9' {
		n = n*10 + int(s.rest[digits]-'0')
		if digits++; digits > 9 {
			s.failed = true
			return 0
		}
	}
	if s.failed || digits == 0 || (digits > 1 && s.rest[0] == '0') {
		s.failed = true
		return 0
	}
	s.rest = s.rest[digits:]
	return n
}
