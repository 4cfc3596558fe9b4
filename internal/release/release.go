package release

import (
	"context"
	"errors"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Options is what every job on a repository needs.
type Options struct {
	Repo    string         // a path, or a file:// URL
	Root    *trust.Root    // what readers of the repository believe
	Signers []trust.Signer // who signs
	Now     time.Time

	// DraftDir, where set, is an empty or missing directory that takes the signed draft instead of its
	// being published, for others to add their signatures (Sign, Publish).
	DraftDir string
	// DiscardUntrusted leaves out what is published but not verified by Root any more, instead of
	// refusing to go on.
	DiscardUntrusted bool
}

// Report says what a job did. It is what the commands print.
type Report struct {
	Repository string           `json:"repository"`
	Published  bool             `json:"published"`
	Draft      string           `json:"draft,omitzero"` // where the draft is, if it was not published
	Sequence   int64            `json:"sequence"`       // of the index
	SignedAt   time.Time        `json:"signedAt"`
	Channels   []ChannelReport  `json:"channels"`
	Revoked    *RevocationCount `json:"revocations,omitzero"`
	Missing    []string         `json:"missing"` // what a draft still needs before it can be published
	Warnings   []string         `json:"warnings"`
}

// What became of a channel.
const (
	Released  = "released"
	Refreshed = "refreshed"
	Kept      = "kept"
	Removed   = "removed"
)

// ChannelReport says what became of one channel.
type ChannelReport struct {
	Channel   string `json:"channel"`
	Change    string `json:"change"` // Released, Refreshed, Kept or Removed
	RolloutID string `json:"rolloutId"`
	Sequence  int64  `json:"sequence"`
	Hosts     int64  `json:"hosts"`
	Waves     int    `json:"waves"`
	Policy    string `json:"policy"`
}

// RevocationCount counts a revocation list.
type RevocationCount struct {
	Hosts     int `json:"hosts"`
	Operators int `json:"operators"`
	Tokens    int `json:"tokens"`
}

// finish signs a draft, and publishes or keeps it.
func finish(ctx context.Context, r *Repo, d *draft, opts Options, report Report) (Report, error) {
	report.Repository, report.Sequence, report.SignedAt = r.path, d.Index.Sequence, d.Index.SignedAt
	if err := d.seal(opts.Signers, opts.Root, opts.Now); err != nil {
		return report, err
	}
	if opts.DraftDir != "" {
		report.Draft, report.Missing = opts.DraftDir, d.stillNeeds(opts.Root, opts.Now)
		return report, d.create(opts.DraftDir)
	}
	if err := d.publish(ctx, r, opts.Root, opts.Now); err != nil {
		return report, err
	}
	report.Published = true
	return report, nil
}

// stillNeeds says what keeps a draft from being published.
func (d *draft) stillNeeds(root *trust.Root, now time.Time) []string {
	lines := []string{}
	for _, err := range d.missing(root, now) {
		lines = append(lines, err.Error())
	}
	if len(lines) == 0 && d.sealed == nil {
		lines = append(lines, "the index is not signed; sign the draft once more")
	}
	if d.sealed != nil {
		if _, err := trust.VerifyIndex(root, d.sealed, now); err != nil {
			lines = append(lines, err.Error())
		}
	}
	return lines
}

// open opens the repository of a job and reads what is published.
func open(opts Options, mayMake bool) (*Repo, *published, error) {
	if len(opts.Signers) == 0 {
		return nil, nil, errors.New("no key to sign with was given")
	}
	openRepo := OpenRepo
	if mayMake {
		openRepo = openOrMakeRepo
	}
	r, err := openRepo(opts.Repo)
	if err != nil {
		return nil, nil, err
	}
	p, err := readPublished(r, opts.Root, opts.Now, opts.DiscardUntrusted)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return r, p, nil
}

func channelReport(change string, m api.Manifest) ChannelReport {
	return ChannelReport{
		Channel: m.Channel, Change: change, RolloutID: m.RolloutID, Sequence: m.Sequence,
		Hosts: m.HostSet.Size, Waves: len(m.Policy.Waves), Policy: m.PolicyName,
	}
}
