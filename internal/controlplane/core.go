package controlplane

import (
	"context"
	"errors"
	"slices"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/clock"
	"nixfleet.dev/nixfleet/internal/controlplane/server"
	"nixfleet.dev/nixfleet/internal/controlplane/writer"
	"nixfleet.dev/nixfleet/internal/rollout"
)

// core is the writer as the server and the issuer see it: server.Core, server.Views and enroll.Tokens. It
// turns refusals into problems and knows nothing else.
type core struct {
	writer *writer.Writer
	clock  clock.Clock
}

// Ready implements server.Core.
func (c *core) Ready() bool {
	select {
	case <-c.writer.Ready():
		return true
	default:
		return false
	}
}

// Heard implements server.Core.
func (c *core) Heard(host string) { c.writer.Heard(host) }

// Events implements server.Core.
func (c *core) Events(ctx context.Context, b api.EventBatch) (api.EventsAck, error) {
	ack, err := c.writer.Events(ctx, b.Hostname, b)
	return ack, problem(err)
}

// Heartbeat implements server.Core.
func (c *core) Heartbeat(ctx context.Context, hb api.Heartbeat) (api.HeartbeatReply, error) {
	reply, err := c.writer.Heartbeat(ctx, hb)
	return reply, problem(err)
}

// Reject implements server.Core.
func (c *core) Reject(ctx context.Context, r api.Rejection) error {
	return problem(c.writer.Reject(ctx, r.Hostname, r))
}

// UseToken implements enroll.Tokens. That a token is spent is for the issuer to say.
func (c *core) UseToken(ctx context.Context, host, nonce, publicKeySHA256 string, expiresAt *time.Time) error {
	return problem(c.writer.UseToken(ctx, host, nonce, publicKeySHA256, expiresAt))
}

// problem turns what the writer and the fleet refuse with into what the server answers.
func problem(err error) error {
	if err == nil {
		return nil
	}
	if gap, ok := errors.AsType[*rollout.SequenceGap](err); ok {
		return server.RefuseGap(gap.Expected)
	}
	if unknown, ok := errors.AsType[*rollout.UnknownRollout](err); ok {
		return server.Refuse(api.CodeUnknownRollout, "%s", unknown.Reason)
	}
	if malformed, ok := errors.AsType[*rollout.Malformed](err); ok {
		return server.Refuse(api.CodeMalformed, "%s: %s", malformed.Field, malformed.Reason)
	}
	switch {
	case errors.Is(err, writer.ErrStarting), errors.Is(err, writer.ErrStopped):
		return server.Refuse(api.CodeStarting, "the control plane is starting or stopping")
	case errors.Is(err, writer.ErrOverloaded):
		return server.Refuse(api.CodeOverloaded, "the control plane has too much to do")
	}
	return err
}

// view reads the fleet, and refuses as read says.
func (c *core) view(ctx context.Context, read func(f *rollout.Fleet) error) error {
	var refusal error
	if err := c.writer.View(ctx, func(f *rollout.Fleet) { refusal = read(f) }); err != nil {
		return problem(err)
	}
	return refusal
}

// found returns a problem where there is not what was asked for.
func found(ok bool, code api.Code, what, name string) error {
	if ok {
		return nil
	}
	return server.Refuse(code, "there is no %s %s", what, name)
}

// Host implements server.Views.
func (c *core) Host(ctx context.Context, name string) (host api.Host, err error) {
	err = c.view(ctx, func(f *rollout.Fleet) error {
		var ok bool
		host, ok = f.Host(name, c.clock.Now())
		return found(ok, api.CodeNotFound, "host", name)
	})
	return host, err
}

// Hosts implements server.Views.
func (c *core) Hosts(ctx context.Context, filter server.HostFilter, page server.Page) (list api.List[api.Host], err error) {
	err = c.view(ctx, func(f *rollout.Fleet) error {
		list = f.Hosts(rollout.HostFilter{
			Channel: filter.Channel, State: filter.State, Tag: filter.Tag, Query: filter.Query,
			Limit: page.Limit, Cursor: page.After,
		}, c.clock.Now())
		return nil
	})
	return list, err
}

// Why implements server.Views.
func (c *core) Why(ctx context.Context, host string) (why api.Why, err error) {
	err = c.view(ctx, func(f *rollout.Fleet) error {
		var ok bool
		why, ok = f.Why(host, c.clock.Now())
		return found(ok, api.CodeNotFound, "host", host)
	})
	return why, err
}

// Channels implements server.Views.
func (c *core) Channels(ctx context.Context) (channels []api.Channel, err error) {
	err = c.view(ctx, func(f *rollout.Fleet) error {
		channels = f.Channels(c.clock.Now())
		return nil
	})
	return channels, err
}

// Rollout implements server.Views.
func (c *core) Rollout(ctx context.Context, id string) (ro api.Rollout, err error) {
	err = c.view(ctx, func(f *rollout.Fleet) error {
		var ok bool
		ro, ok = f.Rollout(id, c.clock.Now())
		return found(ok, api.CodeUnknownRollout, "rollout", id)
	})
	return ro, err
}

// Rollouts implements server.Views.
func (c *core) Rollouts(ctx context.Context, page server.Page) (list api.List[api.Rollout], err error) {
	var all []api.Rollout
	err = c.view(ctx, func(f *rollout.Fleet) error {
		all = f.Rollouts(c.clock.Now())
		return nil
	})
	if page.After != "" {
		at := slices.IndexFunc(all, func(r api.Rollout) bool { return r.RolloutID == page.After })
		all = all[at+1:] // from the beginning where the rollout has been forgotten since
	}
	list.Items = all[:min(len(all), page.Limit)]
	if len(all) > page.Limit {
		list.NextCursor = all[page.Limit-1].RolloutID
	}
	return list, err
}

// RolloutEvents implements server.Views.
func (c *core) RolloutEvents(ctx context.Context, id string, after int64, limit int) ([]api.LoggedEvent, error) {
	events, err := c.writer.History(ctx, id, after, limit)
	return events, problem(err)
}

// Adopt and Known implement source.Adopter.

// Adopt hands a verified release to the writer.
func (c *core) Adopt(ctx context.Context, a rollout.Adoption, objects ...[]byte) error {
	return c.writer.Adopt(ctx, a, objects...)
}

// Known returns the objects of a rollout that was adopted before.
func (c *core) Known(ctx context.Context, id string) (objects rollout.Objects, ok bool, err error) {
	err = c.writer.View(ctx, func(f *rollout.Fleet) { objects, ok = f.RolloutObjects(id) })
	return objects, ok, err
}
