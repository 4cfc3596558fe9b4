package api

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// EventKind names what happened on a host.
type EventKind string

// Event kinds (design/wire.md).
const (
	DispatchAck         EventKind = "DispatchAck"
	ActivationStarted   EventKind = "ActivationStarted"
	ActivationProgress  EventKind = "ActivationProgress"
	ActivationCompleted EventKind = "ActivationCompleted"
	ActivationDeferred  EventKind = "ActivationDeferred"
	RebootStarted       EventKind = "RebootStarted"
	ActivationFailed    EventKind = "ActivationFailed"
	ProbesDeclared      EventKind = "ProbesDeclared"
	ProbeResult         EventKind = "ProbeResult"
	HealthFailed        EventKind = "HealthFailed"
	RollbackStarted     EventKind = "RollbackStarted"
	RollbackCompleted   EventKind = "RollbackCompleted"
	RollbackFailed      EventKind = "RollbackFailed"
	Converged           EventKind = "Converged"
)

// Phases of an activation or a rollback.
const (
	PhasePreflight  = "preflight"
	PhaseRealise    = "realise"
	PhaseSetProfile = "set-profile"
	PhaseSwitch     = "switch"
	PhaseConfirm    = "confirm"
)

// Causes of a rollback.
const (
	CauseHealth     = "health"
	CauseActivation = "activation"
	CauseConfirm    = "confirm"
	CauseRevert     = "revert"
	CauseUnstage    = "unstage"
)

// MethodNone is the method of an activation of a host that runs its target already.
const MethodNone = "none"

// MethodSwitch is the method of an activation that switches the host live.
const MethodSwitch = "switch"

// Probe results.
const (
	ProbePass = "pass"
	ProbeFail = "fail"
)

// Event is one numbered step of a host in a rollout. Which fields it has on the wire depends on its
// kind (eventFields); the others are zero. An event of a kind that this version does not know keeps
// its Seq, Kind and At, so that it can be refused without losing its number.
type Event struct {
	Seq  int64     `json:"seq"`
	Kind EventKind `json:"kind"`
	At   time.Time `json:"at"`

	Attempt         int       `json:"attempt"`
	Wave            int       `json:"wave"`
	PreviousClosure string    `json:"previousClosure"`
	TargetClosure   string    `json:"targetClosure"`
	SoakDueAt       time.Time `json:"soakDueAt"`
	EnqueuedAt      time.Time `json:"enqueuedAt"`
	ManifestSHA256  string    `json:"manifestSha256"`

	Method     string `json:"method"`
	Phase      string `json:"phase"`
	BytesDone  int64  `json:"bytesDone"`
	BytesTotal int64  `json:"bytesTotal"`

	ObservedClosure string   `json:"observedClosure"`
	ExitCode        int      `json:"exitCode"`
	FailedUnits     []string `json:"failedUnits"`
	RebootPending   []string `json:"rebootPending"`
	Components      []string `json:"components"`
	BootID          string   `json:"bootId"`

	Changed    bool   `json:"changed"`
	Reason     Code   `json:"reason"`
	StderrTail string `json:"stderrTail"`

	Probes        []DeclaredProbe  `json:"probes"`
	Probe         string           `json:"probe"`
	ProbeKind     string           `json:"probeKind"`
	Mode          string           `json:"mode"`
	Status        string           `json:"status"`
	FailureReason string           `json:"failureReason"`
	SubResults    []ProbeSubResult `json:"subResults"`

	FailingProbes []string        `json:"failingProbes"`
	SustainedFor  Duration        `json:"sustainedFor"`
	PolicyApplied OnHealthFailure `json:"policyApplied"`

	ToClosure string `json:"toClosure"`
	Cause     string `json:"cause"`
}

// DeclaredProbe is one probe of a closure's probe set.
type DeclaredProbe struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	Mode string `json:"mode"`
}

// ProbeSubResult is one part of a probe's result: one control of an evidence probe.
type ProbeSubResult struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Detail string `json:"detail" strict:"optional"`
}

// eventFields lists each kind's fields beside seq, kind and at, in wire order. A name that ends in ?
// may be left out when it is read.
var eventFields = map[EventKind]string{
	DispatchAck:         "attempt wave previousClosure targetClosure soakDueAt enqueuedAt manifestSha256",
	ActivationStarted:   "method",
	ActivationProgress:  "phase bytesDone? bytesTotal?",
	ActivationCompleted: "observedClosure exitCode? failedUnits? rebootPending?",
	ActivationDeferred:  "components?",
	RebootStarted:       "bootId",
	ActivationFailed:    "phase changed exitCode? reason stderrTail?",
	ProbesDeclared:      "probes",
	ProbeResult:         "probe probeKind mode status failureReason? subResults?",
	HealthFailed:        "failingProbes sustainedFor policyApplied",
	RollbackStarted:     "toClosure cause",
	RollbackCompleted:   "observedClosure exitCode? rebootPending? reason?",
	RollbackFailed:      "phase exitCode? reason stderrTail?",
	Converged:           "observedClosure",
}

type eventField struct {
	name     string
	index    int
	optional bool
	plain    bool // its kind says how it is written: it has no method for that
}

// eventCodec holds each kind's fields, the common three first.
var eventCodec = func() map[EventKind][]eventField {
	byName := map[string]eventField{}
	for i := range reflect.TypeFor[Event]().NumField() {
		field := reflect.TypeFor[Event]().Field(i)
		name := field.Tag.Get("json")
		byName[name] = eventField{name: name, index: i, plain: field.Type.NumMethod() == 0}
	}
	codec := map[EventKind][]eventField{}
	for kind, list := range eventFields {
		for name := range strings.FieldsSeq("seq kind at " + list) {
			name, optional := strings.CutSuffix(name, "?")
			field := byName[name]
			field.optional = optional
			codec[kind] = append(codec[kind], field)
		}
	}
	return codec
}()

var headerFields = []eventField{{name: "seq", index: 0, plain: true}, {name: "kind", index: 1, plain: true}, {name: "at", index: 2}}

func fieldsOf(kind EventKind) []eventField {
	if fields, ok := eventCodec[kind]; ok {
		return fields
	}
	return headerFields
}

// MarshalJSONTo implements json.MarshalerTo: it writes all fields of the event's kind and no others.
func (e *Event) MarshalJSONTo(enc *jsontext.Encoder) error {
	if err := enc.WriteToken(jsontext.BeginObject); err != nil {
		return err
	}
	v := reflect.ValueOf(e).Elem()
	for _, f := range fieldsOf(e.Kind) {
		if err := enc.WriteToken(jsontext.String(f.name)); err != nil {
			return err
		}
		if err := f.marshal(enc, v.Field(f.index)); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return enc.WriteToken(jsontext.EndObject)
}

// marshal writes a field. Events are most of what is encoded anywhere, and most of their fields are of
// the three plain kinds.
func (f eventField) marshal(enc *jsontext.Encoder, v reflect.Value) error {
	switch {
	case f.plain && v.Kind() == reflect.String:
		return enc.WriteToken(jsontext.String(v.String()))
	case f.plain && v.CanInt():
		return enc.WriteToken(jsontext.Int(v.Int()))
	case f.plain && v.Kind() == reflect.Bool:
		return enc.WriteToken(jsontext.Bool(v.Bool()))
	}
	return json.MarshalEncode(enc, v.Addr().Interface())
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom: a field of the event's kind that is missing or
// null is an error unless it may be left out, and one that is not of its kind is ignored.
func (e *Event) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	raw, err := dec.ReadValue()
	if err != nil {
		return err
	}
	var members map[string]jsontext.Value
	if raw.Kind() != '{' {
		return errors.New("event is not an object")
	}
	if err := json.Unmarshal(raw, &members, dec.Options()); err != nil {
		return err
	}
	*e = Event{}
	if err := e.set(members, headerFields, dec.Options()); err != nil {
		return err
	}
	return e.set(members, fieldsOf(e.Kind)[len(headerFields):], dec.Options())
}

func (e *Event) set(members map[string]jsontext.Value, fields []eventField, opts json.Options) error {
	v := reflect.ValueOf(e).Elem()
	for _, f := range fields {
		raw, ok := members[f.name]
		if !ok || raw.Kind() == 'n' {
			if f.optional {
				continue
			}
			return fmt.Errorf("event field %s is missing", f.name)
		}
		if err := json.Unmarshal(raw, v.Field(f.index).Addr().Interface(), opts); err != nil {
			return fmt.Errorf("event field %s: %w", f.name, err)
		}
	}
	return nil
}
