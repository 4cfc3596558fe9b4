package server

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
)

// document is what the tests look at of openapi.json.
type document struct {
	OpenAPI string                          `json:"openapi"`
	Paths   map[string]map[string]operation `json:"paths"`

	Components struct {
		Schemas    map[string]schema `json:"schemas"`
		Responses  map[string]any    `json:"responses"`
		Parameters map[string]any    `json:"parameters"`
	} `json:"components"`
}

type operation struct {
	OperationID string               `json:"operationId"`
	Summary     string               `json:"summary"`
	Security    []map[string]any     `json:"security"`
	Parameters  []map[string]any     `json:"parameters"`
	Responses   map[string]described `json:"responses"`
}

type described struct {
	Ref         string `json:"$ref"`
	Description string `json:"description"`
}

type schema struct {
	Properties map[string]any `json:"properties"`
	Required   []string       `json:"required"`
	Enum       []string       `json:"enum"`
}

func openAPI(t *testing.T) (document, any) {
	t.Helper()
	var doc document
	var all any
	for _, v := range []any{&doc, &all} {
		if err := json.Unmarshal(openAPIDocument, v); err != nil {
			t.Fatal(err)
		}
	}
	return doc, all
}

func TestEveryRouteIsInTheOpenAPIDocument(t *testing.T) {
	doc, _ := openAPI(t)
	if !strings.HasPrefix(doc.OpenAPI, "3.1.") {
		t.Errorf("openapi %q", doc.OpenAPI)
	}
	paths := map[string]bool{}
	ids := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			paths[strings.ToUpper(method)+" "+path] = true
			if op.OperationID == "" || ids[op.OperationID] || op.Summary == "" {
				t.Errorf("%s %s: operationId %q is missing or not its own, or there is no summary", method, path, op.OperationID)
			}
			ids[op.OperationID] = true
			for status, r := range op.Responses {
				if r.Ref == "" && r.Description == "" {
					t.Errorf("%s %s: %s has no description", method, path, status)
				}
			}
		}
	}
	for _, r := range routes {
		name := r.method + " " + r.pattern
		op, ok := doc.Paths[r.pattern][strings.ToLower(r.method)]
		if !ok {
			t.Errorf("%s is not described", name)
			continue
		}
		delete(paths, name)
		if open := len(op.Security) == 1 && len(op.Security[0]) == 0; open != (r.access == anyone) {
			t.Errorf("%s: security is described as %v", name, op.Security)
		}
		for _, status := range []string{"400", "403", "429", "503", "default"} {
			if _, ok := op.Responses[status]; !ok {
				t.Errorf("%s: %s is not described", name, status)
			}
		}
	}
	for name := range paths {
		t.Errorf("%s is described and is not there", name)
	}
}

func TestTheOpenAPISchemasAreTheWireTypes(t *testing.T) {
	doc, _ := openAPI(t)
	for name, v := range map[string]any{
		"Problem": api.Problem{}, "Dispatch": api.Dispatch{}, "Rejection": api.Rejection{}, "EventBatch": api.EventBatch{},
		"RefusedEvent": api.RefusedEvent{}, "EventsAck": api.EventsAck{}, "Heartbeat": api.Heartbeat{},
		"HeartbeatReply": api.HeartbeatReply{}, "HostProof": api.HostProof{}, "Signature": api.Signature{}, "Envelope": api.Envelope{},
		"EnrollRequest": api.EnrollRequest{}, "RenewRequest": api.RenewRequest{}, "CertificateReply": api.CertificateReply{},
		"Failure": api.Failure{}, "ProbeStatus": api.ProbeStatus{}, "Host": api.Host{}, "GateVerdict": api.GateVerdict{}, "Why": api.Why{},
		"WaveStatus": api.WaveStatus{}, "Rollout": api.Rollout{}, "QuarantinedClosure": api.QuarantinedClosure{},
		"Channel": api.Channel{}, "HostList": api.List[api.Host]{}, "RolloutList": api.List[api.Rollout]{},
		"ChannelList": api.List[api.Channel]{}, "LoggedEventList": api.List[api.LoggedEvent]{},
	} {
		want := map[string]bool{} // by name: whether it is always there
		for i := range reflect.TypeOf(v).NumField() {
			f := reflect.TypeOf(v).Field(i)
			field, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			want[field] = !strings.Contains(options, "omit") && f.Tag.Get("strict") != "optional"
		}
		s, ok := doc.Components.Schemas[name]
		if !ok {
			t.Errorf("there is no schema %s", name)
		}
		for field, required := range want {
			if _, ok := s.Properties[field]; !ok {
				t.Errorf("%s has no property %s", name, field)
			}
			if slices.Contains(s.Required, field) != required {
				t.Errorf("%s.%s: required should be %v", name, field, required)
			}
		}
		for field := range s.Properties {
			if _, ok := want[field]; !ok {
				t.Errorf("%s.%s is not on the wire", name, field)
			}
		}
	}
	states := []string{string(api.Idle)}
	for _, state := range api.HostStates {
		states = append(states, string(state))
	}
	if got := doc.Components.Schemas["HostState"].Enum; !slices.Equal(got, states) {
		t.Errorf("HostState: %v", got)
	}
}

func TestEveryReferenceOfTheOpenAPIDocumentLeadsSomewhere(t *testing.T) {
	_, all := openAPI(t)
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok && lookUp(all, ref) == nil {
				t.Errorf("%s leads nowhere", ref)
			}
			for _, member := range v {
				walk(member)
			}
		case []any:
			for _, item := range v {
				walk(item)
			}
		}
	}
	walk(all)
}

func lookUp(v any, ref string) any {
	for part := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		object, _ := v.(map[string]any)
		v = object[part]
	}
	return v
}

func TestTheOpenAPIDocumentIsServed(t *testing.T) {
	f := start(t)
	if r := f.get(f.operator(), "/v1/openapi.json"); r.status != 200 || !strings.Contains(string(r.body), `"3.1.0"`) {
		t.Errorf("got %d", r.status)
	}
}
