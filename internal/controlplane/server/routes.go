package server

import (
	"errors"
	"fmt"
	"net/http"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"nixfleet.dev/nixfleet/api"
)

// Who may call an endpoint.
type access int

const (
	anyone  access = iota // without a certificate too
	hosts                 // hosts alone
	people                // operators alone
	members               // both
)

// route is one endpoint. Its handler returns an error instead of writing one.
type route struct {
	method, pattern string
	access          access
	handle          func(s *Server, w http.ResponseWriter, r *http.Request, who Identity) error
}

// routes are all endpoints; openapi.json describes each, which a test holds.
var routes = []route{
	{"GET", "/v1/agent/dispatch", hosts, (*Server).dispatch},
	{"POST", "/v1/agent/rejections", hosts, (*Server).reject},
	{"POST", "/v1/agent/events", hosts, (*Server).events},
	{"POST", "/v1/agent/heartbeat", hosts, (*Server).heartbeat},
	{"POST", "/v1/agent/renew", hosts, (*Server).renew},
	{"POST", "/v1/enroll", anyone, (*Server).enroll},

	{"GET", "/v1/rollouts/{id}/manifest", members, (*Server).manifest},
	{"GET", "/v1/rollouts/{id}/hosts", people, (*Server).hostsFile},
	{"GET", "/v1/rollouts/{id}/hosts/{name}", members, (*Server).hostProof},

	{"GET", "/v1/hosts", people, (*Server).listHosts},
	{"GET", "/v1/hosts/{name}", people, (*Server).showHost},
	{"GET", "/v1/hosts/{name}/why", people, (*Server).why},
	{"GET", "/v1/channels", people, (*Server).listChannels},
	{"GET", "/v1/rollouts", people, (*Server).listRollouts},
	{"GET", "/v1/rollouts/{id}", people, (*Server).showRollout},
	{"GET", "/v1/rollouts/{id}/events", people, (*Server).rolloutEvents},
	{"GET", "/v1/openapi.json", members, (*Server).openAPI},
}

// handler routes requests. Paths and methods that are not there get problems like everything else.
func (s *Server) handler() http.Handler {
	byPattern := map[string]map[string]route{}
	for _, r := range routes {
		if byPattern[r.pattern] == nil {
			byPattern[r.pattern] = map[string]route{}
		}
		byPattern[r.pattern][r.method] = r
	}
	mux := http.NewServeMux()
	for pattern, methods := range byPattern {
		mux.Handle(pattern, s.serve(pattern, methods))
	}
	notFound := s.serve("", nil)
	mux.Handle("/", notFound)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect || r.URL.Path == "" || path.Clean(r.URL.Path) != r.URL.Path {
			notFound.ServeHTTP(w, r) // the mux would redirect
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// serve answers the requests of one pattern: it recovers panics, checks what all endpoints check, and
// turns errors into problems.
func (s *Server) serve(pattern string, methods map[string]route) http.Handler {
	var allowed []string
	for method := range methods {
		allowed = append(allowed, method)
	}
	slices.Sort(allowed)
	allow := strings.Join(allowed, ", ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started := s.clock.Now()
		rec := &recorder{ResponseWriter: w}
		rec.Header().Set(api.ProtocolHeader, api.ProtocolVersion)
		defer func() {
			if v := recover(); v != nil {
				s.panicked(rec, r, v)
			}
			if !rec.parked {
				s.metrics.request(pattern, rec.status, s.clock.Now().Sub(started))
			}
		}()
		if err := s.answer(rec, r, pattern, methods, allow); err != nil {
			s.fail(rec, r, err)
		}
	})
}

func (s *Server) answer(w *recorder, r *http.Request, pattern string, methods map[string]route, allow string) error {
	who, refused := s.authenticate(peerOf(r.Context()))
	if refused != nil {
		w.Header().Set("Connection", "close") // strangers get one request a connection
	}
	if err := s.setDeadlines(w, r); err != nil {
		return err
	}
	if pattern == "" {
		return Refuse(api.CodeNotFound, "there is no such endpoint")
	}
	if v := r.Header.Values(api.ProtocolHeader); len(v) != 1 || v[0] != api.ProtocolVersion {
		return Refuse(api.CodeUnsupportedProtocol, "requests carry the header %s: %s", api.ProtocolHeader, api.ProtocolVersion)
	}
	endpoint, ok := methods[r.Method]
	if !ok {
		p := Refuse(api.CodeMethodNotAllowed, "this endpoint has other methods: %s", allow)
		p.allow = allow
		return p
	}
	if p := admits(endpoint.access, who, refused); p != nil {
		return p
	}
	if p := s.limits.begin(who); p != nil {
		return p
	}
	defer s.limits.end(who)
	return endpoint.handle(s, w, r, who)
}

func admits(a access, who Identity, refused *Problem) *Problem {
	switch {
	case a == anyone:
		return nil
	case refused != nil:
		return refused
	case a == hosts && who.Role != Host:
		return Refuse(api.CodeWrongRole, "this endpoint is for hosts")
	case a == people && who.Role != Operator:
		return Refuse(api.CodeWrongRole, "this endpoint is for operators")
	}
	return nil
}

// fail writes err as a problem, if the response has not begun.
func (s *Server) fail(w *recorder, r *http.Request, err error) {
	p := asProblem(err)
	if p.Code == api.CodeInternal && r.Context().Err() == nil {
		s.log.Error("a request failed", "endpoint", r.Pattern, "err", err)
	}
	if w.status == 0 && !w.parked {
		p.write(w)
	}
}

func (s *Server) panicked(w *recorder, r *http.Request, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	s.log.Error("a request panicked", "endpoint", r.Pattern, "err", fmt.Sprint(v), "stack", string(debug.Stack()))
	if w.status == 0 && !w.parked {
		closing(Refuse(api.CodeInternal, "the control plane could not do this; its log says why")).write(w)
	}
}

// recorder remembers how a response began.
type recorder struct {
	http.ResponseWriter
	status int
	parked bool // the connection was taken over; its answer comes later
}

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
