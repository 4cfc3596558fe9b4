package server

import (
	_ "embed"
	"net/http"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
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
	page, err := parsePage(q)
	if err != nil {
		return err
	}
	filter := HostFilter{Channel: q.Get("channel"), State: api.HostState(q.Get("state")), Tag: q.Get("tag"), Query: q.Get("q")}
	if filter.State != "" && filter.State != api.Idle && !slices.Contains(api.HostStates, filter.State) {
		return Refuse(api.CodeMalformed, "state is not a host state such as %s", api.Soaking)
	}
	list, err := s.views.Hosts(r.Context(), filter, page)
	return replyList(w, list, err)
}

// replyList writes a page; the key of its last item becomes a cursor that clients do not look into.
func replyList[T any](w http.ResponseWriter, list api.List[T], err error) error {
	if err != nil {
		return err
	}
	if list.NextCursor != "" {
		list.NextCursor = cursor(list.NextCursor)
	}
	return reply(w, list)
}

func (s *Server) showHost(w http.ResponseWriter, r *http.Request, _ Identity) error {
	name, err := hostOf(r)
	if err != nil {
		return err
	}
	host, err := s.views.Host(r.Context(), name)
	if err != nil {
		return err
	}
	return reply(w, host)
}

func (s *Server) why(w http.ResponseWriter, r *http.Request, _ Identity) error {
	name, err := hostOf(r)
	if err != nil {
		return err
	}
	why, err := s.views.Why(r.Context(), name)
	if err != nil {
		return err
	}
	return reply(w, why)
}

func (s *Server) listChannels(w http.ResponseWriter, r *http.Request, _ Identity) error {
	channels, err := s.views.Channels(r.Context())
	return replyList(w, api.List[api.Channel]{Items: channels}, err)
}

func (s *Server) listRollouts(w http.ResponseWriter, r *http.Request, _ Identity) error {
	q, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return err
	}
	page, err := parsePage(q)
	if err != nil {
		return err
	}
	list, err := s.views.Rollouts(r.Context(), page)
	return replyList(w, list, err)
}

func (s *Server) showRollout(w http.ResponseWriter, r *http.Request, _ Identity) error {
	id, err := rolloutOf(r)
	if err != nil {
		return err
	}
	rollout, err := s.views.Rollout(r.Context(), id)
	if err != nil {
		return err
	}
	return reply(w, rollout)
}

// rolloutEvents lists history. Its cursor is the log number to go on after, so that `after` takes it; a
// full page has one, whether or not there is more.
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
	after, err := number(q, name, 0, strictjson.MaxInteger)
	if err != nil {
		return err
	}
	limit, err := parseLimit(q)
	if err != nil {
		return err
	}
	if _, err := s.views.Rollout(r.Context(), id); err != nil {
		return err
	}
	events, err := s.views.RolloutEvents(r.Context(), id, after, limit)
	if err != nil {
		return err
	}
	list := api.List[api.LoggedEvent]{Items: events}
	if len(events) == limit {
		list.NextCursor = strconv.FormatInt(events[limit-1].LogSeq, 10)
	}
	return reply(w, list)
}

func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request, _ Identity) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPIDocument) // the peer has gone away, if this fails
	return nil
}
