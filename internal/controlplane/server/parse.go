package server

import (
	"encoding/base64"
	"net/url"
	"regexp"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
)

var (
	digits     = regexp.MustCompile(`^[0-9]{1,19}$`)
	journalID  = regexp.MustCompile(`^[0-9a-f]{32}$`)
	rolloutID  = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}@[0-9a-f]{7,64}$`)
	manyDigits = regexp.MustCompile(`^[0-9]+$`)
)

// parseWait reads ?wait= of a poll: whole seconds, clamped to api.MaxWait, which is also the default.
func parseWait(rawQuery string) (time.Duration, error) {
	q, err := parseQuery(rawQuery)
	if err != nil {
		return 0, err
	}
	if !q.Has("wait") {
		return api.MaxWait * time.Second, nil
	}
	v, err := only(q, "wait")
	if err != nil {
		return 0, err
	}
	if !manyDigits.MatchString(v) {
		return 0, Refuse(api.CodeMalformed, "wait is not a whole number of seconds")
	}
	seconds := 0
	for _, d := range v {
		seconds = min(seconds*10+int(d-'0'), api.MaxWait)
	}
	return time.Duration(seconds) * time.Second, nil
}

func parseQuery(raw string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, Refuse(api.CodeMalformed, "the query of the URL is malformed")
	}
	return q, nil
}

// only returns the one value of a parameter.
func only(q url.Values, name string) (string, error) {
	if len(q[name]) > 1 {
		return "", Refuse(api.CodeMalformed, "%s is given twice", name)
	}
	return q.Get(name), nil
}

// number reads a parameter that is a whole number; bigger ones than most are clamped to it.
func number(q url.Values, name string, absent, most int64) (int64, error) {
	if !q.Has(name) {
		return absent, nil
	}
	v, err := only(q, name)
	if err != nil {
		return 0, err
	}
	if !digits.MatchString(v) {
		return 0, Refuse(api.CodeMalformed, "%s is not a whole number", name)
	}
	n := int64(0)
	for _, d := range v {
		n = min(n*10+int64(d-'0'), most)
	}
	return n, nil
}

func parsePage(q url.Values) (Page, error) {
	limit, err := parseLimit(q)
	if err != nil {
		return Page{}, err
	}
	cursor, err := only(q, "cursor")
	if err != nil {
		return Page{}, err
	}
	after, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		return Page{}, Refuse(api.CodeMalformed, "cursor is not one that a list gave")
	}
	return Page{After: string(after), Limit: limit}, nil
}

func parseLimit(q url.Values) (int, error) {
	limit, err := number(q, "limit", api.DefaultListLimit, api.MaxListLimit)
	if err == nil && limit == 0 {
		err = Refuse(api.CodeMalformed, "limit is zero")
	}
	return int(limit), err
}

// cursor names the last item of a page, for the next one.
func cursor(key string) string { return base64.RawURLEncoding.EncodeToString([]byte(key)) }

// matches says whether one of the entity tags of If-None-Match is etag, comparing weakly.
func matches(values []string, etag string) bool {
	for _, value := range values {
		for candidate := range strings.SplitSeq(value, ",") {
			candidate = strings.TrimSpace(candidate)
			if candidate == "*" || strings.TrimPrefix(candidate, "W/") == etag {
				return true
			}
		}
	}
	return false
}
