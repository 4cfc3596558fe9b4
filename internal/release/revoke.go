package release

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/trust"
)

// RevokeOptions is what Revoke adds to the revocations.
type RevokeOptions struct {
	Options
	Hosts     []string // whose certificates issued before Before are no longer good
	Operators []string // the same
	Tokens    []string // nonces that are no longer good
	Before    time.Time
	Reason    string
}

var noncePattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Revoke adds to the published revocations. What is revoked stays revoked: a time that is before the one
// published for a host or operator changes nothing.
func Revoke(ctx context.Context, opts RevokeOptions) (Report, error) {
	if err := opts.Check(); err != nil {
		return Report{}, err
	}
	r, p, err := open(opts.Options, false)
	if err != nil {
		return Report{}, err
	}
	defer r.Close()
	if p.base == "" {
		return Report{}, fmt.Errorf("%s holds no release to revoke anything in; make one first", r.path)
	}
	if len(p.discarded) > 0 {
		return Report{}, errors.New("the repository holds what is not trusted any more; release anew first")
	}
	at, err := p.signingTime(opts.Now, 0)
	if err != nil {
		return Report{}, err
	}
	list := opts.merged(p, at)
	payload, err := json.Marshal(list, json.Deterministic(true))
	if err != nil {
		return Report{}, fmt.Errorf("encoding the revocations: %w", err)
	}
	if len(payload) > api.MaxRevocations {
		return Report{}, fmt.Errorf("the revocations would be %d bytes; at most %d are allowed", len(payload), api.MaxRevocations)
	}
	d := newDraft(p, at)
	name := revocationsFile
	d.Index.Revocations = &name
	d.Index.Sequence = nextSequence(p.index.Sequence, opts.Now)
	if err := d.add(name, api.PayloadRevocations, payload, opts.Signers); err != nil {
		return Report{}, err
	}
	report := Report{Revoked: &RevocationCount{len(list.Hosts), len(list.Operators), len(list.Tokens)}}
	for _, channel := range sortedKeys(p.manifests) {
		report.Channels = append(report.Channels, channelReport(Kept, p.manifests[channel].Value()))
	}
	return finish(ctx, r, d, opts.Options, report)
}

// Check says what makes no sense about the options.
func (o RevokeOptions) Check() error {
	if len(o.Hosts)+len(o.Operators)+len(o.Tokens) == 0 {
		return errors.New("name what to revoke: a host, an operator or a token")
	}
	for _, host := range o.Hosts {
		if !fleet.ValidHostname(host) {
			return fmt.Errorf("%q is not a host name", host)
		}
	}
	for _, name := range o.Operators {
		if !fleet.ValidOperator(name) {
			return fmt.Errorf("%q is not an operator's name, as it stands in a certificate", name)
		}
	}
	for _, nonce := range o.Tokens {
		if !noncePattern.MatchString(nonce) {
			return fmt.Errorf("%q is not the nonce of a token: 32 lower-case hex digits", nonce)
		}
	}
	if o.Before.After(o.Now.Add(trust.ClockTolerance)) && len(o.Hosts)+len(o.Operators) > 0 {
		return fmt.Errorf("%s is in the future: whoever is revoked until then could get no certificate that works, and a revocation cannot be taken back",
			o.Before.UTC().Format(time.RFC3339))
	}
	return nil
}

// merged returns the published revocations with these added, sorted, each name once.
func (o RevokeOptions) merged(p *published, at time.Time) api.Revocations {
	list := api.Revocations{SchemaVersion: api.SchemaVersion, SignedAt: at}
	if p.revocations != nil {
		old := p.revocations.Value()
		list.Sequence, list.Hosts, list.Operators, list.Tokens = old.Sequence, slices.Clone(old.Hosts), slices.Clone(old.Operators), slices.Clone(old.Tokens)
	}
	list.Sequence = nextSequence(list.Sequence, o.Now)
	before := o.Before.UTC().Truncate(time.Second)
	for _, name := range o.Hosts {
		list.Hosts = append(list.Hosts, api.RevokedHost{Hostname: name, CertificatesIssuedBefore: before, Reason: o.Reason})
	}
	for _, name := range o.Operators {
		list.Operators = append(list.Operators, api.RevokedOperator{Name: name, CertificatesIssuedBefore: before, Reason: o.Reason})
	}
	for _, nonce := range o.Tokens {
		list.Tokens = append(list.Tokens, api.RevokedToken{Nonce: nonce, Reason: o.Reason})
	}
	list.Hosts = latestOf(list.Hosts, func(h api.RevokedHost) (string, time.Time) { return h.Hostname, h.CertificatesIssuedBefore })
	list.Operators = latestOf(list.Operators, func(h api.RevokedOperator) (string, time.Time) { return h.Name, h.CertificatesIssuedBefore })
	list.Tokens = latestOf(list.Tokens, func(t api.RevokedToken) (string, time.Time) { return t.Nonce, time.Time{} })
	return list
}

// latestOf keeps, of the entries of each name, the one that revokes most, the first of equal ones; sorted.
func latestOf[T any](entries []T, of func(T) (string, time.Time)) []T {
	slices.SortStableFunc(entries, func(a, b T) int {
		nameA, timeA := of(a)
		nameB, timeB := of(b)
		if c := strings.Compare(nameA, nameB); c != 0 {
			return c
		}
		return timeB.Compare(timeA)
	})
	return slices.CompactFunc(entries, func(a, b T) bool {
		nameA, _ := of(a)
		nameB, _ := of(b)
		return nameA == nameB
	})
}
