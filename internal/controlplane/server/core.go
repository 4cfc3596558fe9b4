package server

import (
	"context"

	"nixfleet.dev/nixfleet/api"
)

// Core is where what hosts say goes, and what a host's dispatches come from. Each call returns once its
// outcome is on disk. An error that is a *Problem becomes that response; any other is an internal one.
// The hostname of every argument is that of the certificate. Methods may be called concurrently.
type Core interface {
	// Ready says whether the control plane knows its state yet; until then agents get 503 starting.
	Ready() bool
	// Heard notes that the host is there. It never blocks and writes nothing.
	Heard(host string)
	Events(ctx context.Context, batch api.EventBatch) (api.EventsAck, error)
	Heartbeat(ctx context.Context, hb api.Heartbeat) (api.HeartbeatReply, error)
	Reject(ctx context.Context, rejection api.Rejection) error
}

// HostFilter narrows a list of hosts; an empty field does not. Query is a part of the name.
type HostFilter struct {
	Channel string
	State   api.HostState
	Tag     string
	Query   string
}

// Page is the part of a list that is asked for: at most Limit items, of those that come after the item
// with the key After ("" for the first page).
type Page struct {
	After string
	Limit int
}

// Views is what operators see. Lists are in a stable order; where there are items after a page, its
// NextCursor is the key of its last item. A host or rollout that there is not is a *Problem with code
// not-found or unknown-rollout.
type Views interface {
	Host(ctx context.Context, name string) (api.Host, error)
	// Hosts lists hosts by name, which is their key.
	Hosts(ctx context.Context, filter HostFilter, page Page) (api.List[api.Host], error)
	Why(ctx context.Context, host string) (api.Why, error)
	Channels(ctx context.Context) ([]api.Channel, error)
	Rollout(ctx context.Context, id string) (api.Rollout, error)
	// Rollouts lists rollouts, newest first; their ids are their keys.
	Rollouts(ctx context.Context, page Page) (api.List[api.Rollout], error)
	// RolloutEvents lists a rollout's history after a log number, oldest first.
	RolloutEvents(ctx context.Context, id string, after int64, limit int) ([]api.LoggedEvent, error)
}

// Blob is an artifact as it was published. ETag is a digest, without quotes.
type Blob struct {
	Data []byte
	ETag string
}

// Artifacts holds the signed plans that were adopted. An id or a host that it does not have is a
// *Problem with code unknown-rollout or not-found.
type Artifacts interface {
	Manifest(ctx context.Context, id string) (Blob, error)  // the envelope
	HostsFile(ctx context.Context, id string) (Blob, error) // hosts.jsonl
	// Proof returns a host's line with its proof, and the ETag of both.
	Proof(ctx context.Context, id, host string) (api.HostProof, string, error)
}

// Issuer issues host certificates. Its errors are *Problem where the request is to blame.
type Issuer interface {
	Enroll(ctx context.Context, req api.EnrollRequest) (api.CertificateReply, error)
	Renew(ctx context.Context, host string, req api.RenewRequest) (api.CertificateReply, error)
}
