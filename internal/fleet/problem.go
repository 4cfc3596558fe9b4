package fleet

import (
	"fmt"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong with a fleet.
type Problem struct {
	Field  string `json:"field"`  // dotted path: "hosts.web-01.channel"
	Reason string `json:"reason"` // what is wrong, and what to do
}

// String writes the problem as a line.
func (p Problem) String() string { return p.Field + ": " + p.Reason }

// Problems is the error of a fleet that is not right: everything that is wrong with it.
type Problems []Problem

// Error implements error, with a line for each problem.
func (p Problems) Error() string {
	if len(p) == 1 {
		return "the fleet is not right: " + p[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "the fleet is not right, %d problems:", len(p))
	for _, problem := range p {
		b.WriteString("\n  " + problem.String())
	}
	return b.String()
}

// fieldPath joins the parts of a path, quoting names that could be taken for something else.
func fieldPath(parts ...string) string {
	quoted := make([]string, len(parts))
	for i, part := range parts {
		quoted[i] = quoteName(part)
	}
	return strings.Join(quoted, ".")
}

// quoteName keeps a name from outside short and on its line.
func quoteName(s string) string {
	if len(s) > maxLabel {
		s = s[:maxLabel] + "…"
	}
	if q := strconv.Quote(s); q != `"`+s+`"` || s == "" {
		return q
	}
	return s
}

// sample lists the first few of names for a person.
func sample(names []string) string {
	const most = 5
	if len(names) == 0 {
		return "none"
	}
	quoted := []string{}
	for _, name := range names[:min(most, len(names))] {
		quoted = append(quoted, quoteName(name))
	}
	list := strings.Join(quoted, ", ")
	if more := len(names) - most; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return list
}
