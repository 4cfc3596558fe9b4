package strictjson

import (
	"errors"
	"strings"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/api"
)

type inner struct {
	Count int       `json:"count"`
	When  time.Time `json:"when" strict:"optional"`
}

type outer struct {
	Name  string           `json:"name"`
	Inner inner            `json:"inner" strict:"optional"`
	List  []inner          `json:"list,omitempty"`
	Map   map[string]inner `json:"map,omitempty"`
	Until *time.Time       `json:"until"`
}

func TestDecodeRefuses(t *testing.T) {
	for name, test := range map[string]struct{ in, want string }{
		"a missing field":     {`{"name":"a"}`, "until: is missing"},
		"a nested one":        {`{"name":"a","until":null,"list":[{}]}`, "list.0.count: is missing"},
		"one in a map":        {`{"name":"a","until":null,"map":{"k":{}}}`, "map.k.count: is missing"},
		"null":                {`{"name":null,"until":null}`, "name: is null"},
		"a duplicate key":     {`{"name":"a","name":"b","until":null}`, "name: is there twice"},
		"trailing bytes":      {`{"name":"a","until":null} {}`, "after the JSON value"},
		"bad UTF-8":           {"{\"name\":\"\xff\",\"until\":null}", "UTF-8"},
		"a huge integer":      {`{"name":"a","until":null,"inner":{"count":9007199254740992}}`, "inner.count: is not a whole number"},
		"a fraction":          {`{"name":"a","until":null,"inner":{"count":1.5}}`, "inner.count: is not a whole number"},
		"an exponent":         {`{"name":"a","until":null,"other":1e400}`, "other: is not a whole number"},
		"a time not in UTC":   {`{"name":"a","until":null,"inner":{"count":1,"when":"2026-01-01T00:00:00+01:00"}}`, "inner.when: is not a time in UTC"},
		"a wrong type":        {`{"name":1,"until":null}`, "name: "},
		"the wrong case":      {`{"Name":"a","until":null}`, "name: is missing"},
		"nothing":             {` `, "is empty"},
		"null for all of it":  {`null`, "is null"},
		"half a value":        {`{"name":"a"`, "ends in the middle"},
		"deep nesting":        {`{"name":"a","until":null,"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested"},
		"very deep nesting":   {strings.Repeat("[", 1<<19), "nested"},
		"something too large": {`{"name":"` + strings.Repeat("a", 1<<20) + `","until":null}`, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode[outer]("file.json", []byte(test.in), 1<<20)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "file.json: ") {
				t.Errorf("got %v, want file.json: …%s", err, test.want)
			}
			if len(err.Error()) > 400 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
	if _, err := Decode[outer]("f", make([]byte, 2<<20), 1<<20); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a large input gave %v, not ErrTooLarge", err)
	}
}

func TestDecodeIgnoresUnknownFields(t *testing.T) {
	v, err := Decode[outer]("f", []byte(`{"name":"a","until":null,"new":{"x":[1,"2",{"y":null}]}}`), 1<<20)
	if err != nil || v.Name != "a" {
		t.Errorf("got %+v, %v", v, err)
	}
}

func TestDecodeEventsInABatch(t *testing.T) {
	_, err := Decode[api.EventBatch]("request body", []byte(`{"hostname":"a","journalId":"j","rolloutId":"r","events":[
		{"seq":1,"kind":"Converged","at":"2026-11-23T08:00:00Z"}]}`), 1<<20)
	if err == nil || !strings.Contains(err.Error(), "observedClosure") || !strings.Contains(err.Error(), "events.0") {
		t.Errorf("a missing field of an event gave %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"a","until":null,"list":[{"count":1}]}`))
	f.Add([]byte(`{"schemaVersion":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Decode[outer]("f", data, 1<<16)
		_, _ = Decode[api.Fleet]("f", data, 1<<16)
		_, _ = Decode[api.EventBatch]("f", data, 1<<16)
	})
}
