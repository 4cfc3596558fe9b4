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

// Views is what operators see. Lists are in a stable order; a page holds at most limit items of those
// that come after the item with the key after ("" for the first page), and more says that there are
// others behind it.
type Views interface {
	Host(name string) (api.Host, bool)
	// Hosts lists hosts by name; keys are names.
	Hosts(filter HostFilter, after string, limit int) (page []api.Host, more bool)
	Why(host string) (api.Why, bool)
	Channels() []api.Channel
	Rollout(id string) (api.Rollout, bool)
	// Rollouts lists rollouts, newest first; keys are ids.
	Rollouts(after string, limit int) (page []api.Rollout, more bool)
	// RolloutEvents lists a rollout's history after a log number, oldest first.
	RolloutEvents(ctx context.Context, id string, after int64, limit int) (page []api.LoggedEvent, more bool, err error)
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
