package controlplane

import (
	"container/list"
	"context"
	"strconv"
	"sync"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/controlplane/server"
	"nixfleet.dev/nixfleet/internal/controlplane/store"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/rollout"
	"nixfleet.dev/nixfleet/internal/strictjson"
	"nixfleet.dev/nixfleet/internal/trust"
)

// maxPlans is how many rollouts' plans are kept in memory: the current one of each channel, mostly.
const maxPlans = 16

// artifacts serves adopted plans out of the store: server.Artifacts.
type artifacts struct {
	core  *core
	store store.Store

	mu    sync.Mutex
	plans map[rollout.Objects]*plan
	used  *list.List // of *plan, the newest use first
}

// plan is a rollout's manifest and host list, loaded once.
type plan struct {
	objects rollout.Objects
	place   *list.Element

	load     sync.Mutex
	envelope []byte // nil until it is loaded
	hosts    *manifest.Hosts
	file     []byte
	sha256   string // of file
}

func newArtifacts(c *core, s store.Store) *artifacts {
	return &artifacts{core: c, store: s, plans: map[rollout.Objects]*plan{}, used: list.New()}
}

// plan returns the loaded plan of a rollout.
func (a *artifacts) plan(ctx context.Context, id string) (*plan, error) {
	var objects rollout.Objects
	err := a.core.view(ctx, func(f *rollout.Fleet) error {
		var ok bool
		objects, ok = f.RolloutObjects(id)
		return found(ok, api.CodeUnknownRollout, "rollout", id)
	})
	if err != nil {
		return nil, err
	}
	p := a.place(objects)
	p.load.Lock()
	defer p.load.Unlock()
	if p.envelope == nil {
		if err := p.read(ctx, a.store, id); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// place returns the place of a plan in memory, which may be empty yet.
func (a *artifacts) place(o rollout.Objects) *plan {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.plans[o]; p != nil {
		a.used.MoveToFront(p.place)
		return p
	}
	p := &plan{objects: o}
	p.place = a.used.PushFront(p)
	a.plans[o] = p
	if a.used.Len() > maxPlans {
		oldest := a.used.Remove(a.used.Back()).(*plan)
		delete(a.plans, oldest.objects)
	}
	return p
}

// read loads a plan. It was verified when it was adopted; since then keys may have been removed, and
// agents verify what they get anyhow.
func (p *plan) read(ctx context.Context, s store.Store, id string) error {
	what := "manifest of " + id
	envelope, err := s.Object(ctx, p.objects.Manifest)
	if err != nil {
		return err
	}
	e, err := strictjson.Decode[api.Envelope](what, envelope, trust.MaxEnvelope(api.MaxManifest))
	if err != nil {
		return err
	}
	payload, err := trust.DecodeBase64(e.Payload)
	if err != nil {
		return err
	}
	m, err := strictjson.Decode[api.Manifest](what, payload, api.MaxManifest)
	if err != nil {
		return err
	}
	file, err := s.Object(ctx, p.objects.Hosts)
	if err != nil {
		return err
	}
	hosts, err := manifest.ParseHosts(file, len(m.Policy.Waves), len(m.DisruptionBudgets))
	if err != nil {
		return err
	}
	p.envelope, p.hosts, p.file, p.sha256 = envelope, hosts, file, m.HostSet.SHA256
	return nil
}

// Manifest implements server.Artifacts.
func (a *artifacts) Manifest(ctx context.Context, id string) (server.Blob, error) {
	p, err := a.plan(ctx, id)
	if err != nil {
		return server.Blob{}, err
	}
	return server.Blob{Data: p.envelope, ETag: p.objects.Manifest}, nil
}

// HostsFile implements server.Artifacts.
func (a *artifacts) HostsFile(ctx context.Context, id string) (server.Blob, error) {
	p, err := a.plan(ctx, id)
	if err != nil {
		return server.Blob{}, err
	}
	return server.Blob{Data: p.file, ETag: p.sha256}, nil
}

// Proof implements server.Artifacts.
func (a *artifacts) Proof(ctx context.Context, id, host string) (api.HostProof, string, error) {
	p, err := a.plan(ctx, id)
	if err != nil {
		return api.HostProof{}, "", err
	}
	i, ok := p.hosts.Find(host)
	if !ok {
		return api.HostProof{}, "", server.Refuse(api.CodeNotFound, "%s is not in %s", host, id)
	}
	return p.hosts.Proof(i), p.sha256 + "-" + strconv.Itoa(i), nil
}
