package server

import (
	_ "embed"
	"math"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// openAPIDocument is OpenAPI 3.1 of every route.
//
//go:embed openapi.json
var openAPIDocument []byte

func marshal(v any) ([]byte, error) { return json.Marshal(v) }

func (s *Server) listHosts(w http.ResponseWriter, r *http.Request, _ Identity) error {
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	at, err := parsePage(q)
	if err != nil {
		return err
	}
	filter := HostFilter{Channel: q.Get("channel"), State: api.HostState(q.Get("state")), Tag: q.Get("tag"), Query: q.Get("q")}
	hosts, more := s.views.Hosts(filter, at.after, at.limit)
	return replyList(w, hosts, more, func(h api.Host) string { return cursor(h.Hostname) })
}

// replyList writes a page; next names its last item for the page after it.
func replyList[T any](w http.ResponseWriter, items []T, more bool, next func(T) string) error {
	list := api.List[T]{Items: items}
	if more && len(items) > 0 {
		list.NextCursor = next(items[len(items)-1])
	}
	return reply(w, list)
}

func (s *Server) showHost(w http.ResponseWriter, r *http.Request, _ Identity) error {
	name, err := hostOf(r)
	if err != nil {
		return err
	}
	host, ok := s.views.Host(name)
	if !ok {
		return Refuse(api.CodeNotFound, "there is no host %s", name)
	}
	return reply(w, host)
}

func (s *Server) why(w http.ResponseWriter, r *http.Request, _ Identity) error {
	name, err := hostOf(r)
	if err != nil {
		return err
	}
	why, ok := s.views.Why(name)
	if !ok {
		return Refuse(api.CodeNotFound, "there is no host %s", name)
	}
	return reply(w, why)
}

func (s *Server) listChannels(w http.ResponseWriter, _ *http.Request, _ Identity) error {
	return reply(w, api.List[api.Channel]{Items: s.views.Channels()})
}

func (s *Server) listRollouts(w http.ResponseWriter, r *http.Request, _ Identity) error {
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	at, err := parsePage(q)
	if err != nil {
		return err
	}
	rollouts, more := s.views.Rollouts(at.after, at.limit)
	return replyList(w, rollouts, more, func(r api.Rollout) string { return cursor(r.RolloutID) })
}

func (s *Server) showRollout(w http.ResponseWriter, r *http.Request, _ Identity) error {
	id, err := rolloutOf(r)
	if err != nil {
		return err
	}
	rollout, ok := s.views.Rollout(id)
	if !ok {
		return Refuse(api.CodeUnknownRollout, "there is no rollout %s", id)
	}
	return reply(w, rollout)
}

// rolloutEvents lists history; its cursor is the log number to go on after, so that `after` takes it.
func (s *Server) rolloutEvents(w http.ResponseWriter, r *http.Request, _ Identity) error {
	id, err := rolloutOf(r)
	if err != nil {
		return err
	}
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	name := "after"
	if q.Has("cursor") {
		name = "cursor"
	}
	after, err := number(q, name, 0, math.MaxInt64/16)
	if err != nil {
		return err
	}
	limit, err := number(q, "limit", api.DefaultListLimit, api.MaxListLimit)
	if err != nil {
		return err
	}
	if _, ok := s.views.Rollout(id); !ok {
		return Refuse(api.CodeUnknownRollout, "there is no rollout %s", id)
	}
	events, more, err := s.views.RolloutEvents(r.Context(), id, after, int(max(limit, 1)))
	if err != nil {
		return err
	}
	return replyList(w, events, more, func(e api.LoggedEvent) string { return strconv.FormatInt(e.LogSeq, 10) })
}

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request, _ Identity) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPIDocument) // the peer has gone away, if this fails
	return nil
}
