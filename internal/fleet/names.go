package fleet

import (
	"regexp"
	"unicode"
	"unicode/utf8"

	"nixfleet.dev/nixfleet/api"
)

// maxLabel is the longest name of a policy, a budget or a tag, in bytes.
const maxLabel = 128

var (
	hostnamePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	channelPattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	refPattern      = regexp.MustCompile(`^[0-9a-f]{7,64}$`)
	operatorPattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)
	closurePattern  = regexp.MustCompile(`^[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+._?=-]{1,211}$`)
)

// ValidHostname says whether s can name a host: lower-case labels joined by dots, at most 253 bytes.
func ValidHostname(s string) bool { return len(s) <= api.MaxHostname && hostnamePattern.MatchString(s) }

// ValidChannel says whether s can name a channel.
func ValidChannel(s string) bool { return channelPattern.MatchString(s) }

// ValidRef says whether s can be what a channel points at: 7 to 64 lower-case hex digits.
func ValidRef(s string) bool { return refPattern.MatchString(s) }

// ValidClosure says whether s is the base name of a store path.
func ValidClosure(s string) bool { return closurePattern.MatchString(s) }

// ValidOperator says whether s can name an operator, in a certificate and in revocations: up to 64
// letters, digits, dots, hyphens and underscores, the first and the last a letter or a digit.
func ValidOperator(s string) bool { return operatorPattern.MatchString(s) }

// validLabel says whether s can name a policy, a budget or a tag: something short that prints.
func validLabel(s string) bool {
	if s == "" || len(s) > maxLabel || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
