package fleet

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// Parse decodes a fleet strictly; what names it in errors. It checks the shape and the schema version,
// not the meaning: see Load.
func Parse(what string, data []byte) (*api.Fleet, error) {
	f, err := strictjson.Decode[api.Fleet](what, data, api.MaxFleet)
	version := f.SchemaVersion
	if err != nil { // the fields of another version may be others
		v, other := strictjson.Decode[struct {
			SchemaVersion int `json:"schemaVersion"`
		}](what, data, api.MaxFleet)
		if other != nil || v.SchemaVersion == api.SchemaVersion {
			return nil, err
		}
		version = v.SchemaVersion
	}
	if version != api.SchemaVersion {
		return nil, &strictjson.Error{What: what, Field: "schemaVersion",
			Reason: fmt.Sprintf("is %d; this nixfleet reads version %d", version, api.SchemaVersion)}
	}
	return &f, nil
}

// Load parses and validates a fleet that someone declared. The error is a Problems where the fleet was
// read but is not right, and then lists everything that is wrong. Warnings are for a person to read:
// what Validate warns of, and fields that nothing reads, since those are misspelt more often than new.
// Each amend may change what was read before it is validated.
func Load(what string, data []byte, amend ...func(*api.Fleet)) (f *api.Fleet, warnings []string, err error) {
	f, err = Parse(what, data)
	if err != nil {
		return nil, nil, err
	}
	for _, change := range amend {
		change(f)
	}
	written := &reader{dec: jsontext.NewDecoder(bytes.NewReader(data))}
	if err := written.value(reflect.TypeFor[api.Fleet]()); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", what, err)
	}
	problems, warnings := Validate(f)
	problems = merge(written.problems, problems)
	warnings = append(written.unknown, warnings...)
	if len(problems) > 0 {
		return nil, warnings, Problems(problems)
	}
	return f, warnings, nil
}

// merge puts what the text of a fleet showed before what its values show, each field's problem once.
func merge(first, second []Problem) []Problem {
	seen := map[string]bool{}
	for _, p := range first {
		seen[p.Field] = true
	}
	for _, p := range second {
		if !seen[p.Field] {
			first = append(first, p)
		}
	}
	return first
}

// reader walks the text of a fleet beside its Go type for what decoding loses: fields that nothing
// reads, and the keys of a selector whose values say nothing ("all": false, "channel": "").
type reader struct {
	dec      *jsontext.Decoder
	path     []string
	unknown  []string
	problems []Problem
}

var selectorType = reflect.TypeFor[api.Selector]()

func (r *reader) value(t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case r.dec.PeekKind() == '{' && t.Kind() == reflect.Struct:
		return r.object(t)
	case r.dec.PeekKind() == '{' && t.Kind() == reflect.Map:
		return r.members(func(string) error { return r.value(t.Elem()) })
	case r.dec.PeekKind() == '[' && t.Kind() == reflect.Slice:
		return r.elements(t.Elem())
	}
	return r.dec.SkipValue()
}

func (r *reader) object(t reflect.Type) error {
	fields := fieldTypes(t)
	var keys []string
	err := r.members(func(key string) error {
		keys = append(keys, key)
		if field, known := fields[key]; known {
			return r.value(field)
		}
		if t != selectorType {
			r.unknown = append(r.unknown, r.field()+": is no field that nixfleet knows, and is ignored")
		}
		return r.dec.SkipValue()
	})
	if err == nil && t == selectorType && len(keys) != 1 {
		r.problems = append(r.problems, Problem{r.field(), countedKeys(keys)})
	}
	return err
}

// members calls visit, which reads the value, for each key of an object.
func (r *reader) members(visit func(key string) error) error {
	if _, err := r.dec.ReadToken(); err != nil {
		return err
	}
	for r.dec.PeekKind() != '}' {
		key, err := r.dec.ReadToken()
		if err != nil {
			return err
		}
		name := key.String()
		r.path = append(r.path, name)
		if err := visit(name); err != nil {
			return err
		}
		r.path = r.path[:len(r.path)-1]
	}
	_, err := r.dec.ReadToken()
	return err
}

func (r *reader) elements(elem reflect.Type) error {
	if _, err := r.dec.ReadToken(); err != nil {
		return err
	}
	for i := 0; r.dec.PeekKind() != ']'; i++ {
		r.path = append(r.path, strconv.Itoa(i))
		if err := r.value(elem); err != nil {
			return err
		}
		r.path = r.path[:len(r.path)-1]
	}
	_, err := r.dec.ReadToken()
	return err
}

func (r *reader) field() string { return fieldPath(r.path...) }

func fieldTypes(t reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type, t.NumField())
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		fields[name] = t.Field(i).Type
	}
	return fields
}
