package rollout

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Kind says what an entry records. Kinds and the fields of their bodies are the format of the log on
// disk: they may be added to, never changed or taken away.
type Kind string

// What the control plane was told.
const (
	KindFleet     Kind = "fleet"     // FleetDeclared: the index moved on
	KindAdopt     Kind = "adopt"     // Adopted: a release is known now, or was signed again
	KindEvent     Kind = "event"     // HostEvent: a numbered event of a host, accepted or refused
	KindHeartbeat Kind = "heartbeat" // HostSeen: a heartbeat that said something new
	KindReject    Kind = "reject"    // Rejected: a host refused a dispatch, once for each attempt and reason
	KindToken     Kind = "token"     // TokenUsed: an enrollment token served a key
)

// What the planner decided. Those with a host name are about that host in the rollout.
const (
	KindOpen       Kind = "open"        // Opened
	KindPromote    Kind = "promote"     // Promoted: a wave opens
	KindHalt       Kind = "halt"        // Halted
	KindRollBack   Kind = "roll-back"   // RollingBack
	KindRolledBack Kind = "rolled-back" // RolledBack
	KindConverge   Kind = "converge"    // Converged: the rollout; with a host, one that was there already
	KindCancel     Kind = "cancel"      // Cancelled
	KindSupersede  Kind = "supersede"   // Superseded: the rollout; with a host, that host's part in it
	KindQuarantine Kind = "quarantine"  // Quarantined
	KindAllow      Kind = "allow"       // Allowed
	KindDispatch   Kind = "dispatch"    // Dispatched
	KindWithdraw   Kind = "withdraw"    // Withdrawn
	KindSkip       Kind = "skip"        // Skipped
	KindReturn     Kind = "return"      // Returned: a skipped or overdue host was heard
	KindOverdue    Kind = "overdue"     // Overdue
	KindStay       Kind = "stay"        // Stayed: a rollout that rolls back leaves a host where it is
)

// Entry is one entry of the log. Body is never nil in an entry that this package made.
type Entry struct {
	LogSeq     int64     // from 1, without gaps, given by the writer
	RecordedAt time.Time // UTC, by the control plane's clock
	RolloutID  string    // "" where the entry is about no rollout
	Hostname   string    // "" where the entry is about no host
	Body       Body
}

// Kind says what e records.
func (e Entry) Kind() Kind {
	if e.Body == nil {
		return ""
	}
	return e.Body.Kind()
}

// Body is what an entry of one kind says, by value: HostEvent, Adopted, Dispatched and so on.
type Body interface{ Kind() Kind }

// entryJSON is how an Entry is written down.
type entryJSON struct {
	LogSeq     int64          `json:"logSeq"`
	RecordedAt time.Time      `json:"recordedAt"`
	Kind       Kind           `json:"kind"`
	RolloutID  string         `json:"rolloutId,omitzero"`
	Hostname   string         `json:"hostname,omitzero"`
	Body       jsontext.Value `json:"body"`
}

// MarshalJSONTo implements json.MarshalerTo.
func (e Entry) MarshalJSONTo(enc *jsontext.Encoder) error {
	body, err := EncodeBody(e.Body)
	if err != nil {
		return err
	}
	return json.MarshalEncode(enc, entryJSON{e.LogSeq, e.RecordedAt, e.Kind(), e.RolloutID, e.Hostname, body})
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom. A kind that this version does not know is an
// error: a log is never folded in part. Fields it does not know are left out, so that the release
// before can still run on a log.
func (e *Entry) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	var raw entryJSON
	if err := json.UnmarshalDecode(dec, &raw); err != nil {
		return err
	}
	body, err := DecodeBody(raw.Kind, raw.Body)
	if err != nil {
		return err
	}
	*e = Entry{raw.LogSeq, raw.RecordedAt, raw.RolloutID, raw.Hostname, body}
	return nil
}

// EncodeBody returns a body as JSON, for stores that keep the rest of an entry in columns.
func EncodeBody(b Body) ([]byte, error) {
	if b == nil {
		return nil, errors.New("entry has no body")
	}
	data, err := json.Marshal(b, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encode the body of a %q entry: %w", b.Kind(), err)
	}
	return data, nil
}

// Encoder is EncodeBody for one goroutine that encodes many events: it reuses the memory that JSON needs
// to look at one. The zero Encoder is ready.
type Encoder struct{ event HostEvent }

// Body returns b as EncodeBody does.
func (c *Encoder) Body(b Body) ([]byte, error) {
	event, ok := b.(HostEvent)
	if !ok {
		return EncodeBody(b)
	}
	c.event = event
	data, err := json.Marshal(&c.event, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encode the body of a %q entry: %w", KindEvent, err)
	}
	return data, nil
}

// DecodeBody is the reverse of EncodeBody.
func DecodeBody(kind Kind, data []byte) (Body, error) {
	decode, ok := decoders[kind]
	if !ok {
		return nil, fmt.Errorf("log entry of kind %q is not known to this version", kind)
	}
	body, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("decode the body of a %q entry: %w", kind, err)
	}
	return body, nil
}

// decoders holds a decoder for the body of each kind.
var decoders = func() map[Kind]func([]byte) (Body, error) {
	m := map[Kind]func([]byte) (Body, error){}
	register[FleetDeclared](m)
	register[Adopted](m)
	register[HostEvent](m)
	register[HostSeen](m)
	register[Rejected](m)
	register[TokenUsed](m)
	register[Opened](m)
	register[Promoted](m)
	register[Halted](m)
	register[RollingBack](m)
	register[RolledBack](m)
	register[Converged](m)
	register[Cancelled](m)
	register[Superseded](m)
	register[Quarantined](m)
	register[Allowed](m)
	register[Dispatched](m)
	register[Withdrawn](m)
	register[Skipped](m)
	register[Returned](m)
	register[Overdue](m)
	register[Stayed](m)
	return m
}()

func register[T Body](m map[Kind]func([]byte) (Body, error)) {
	var zero T
	m[zero.Kind()] = func(data []byte) (Body, error) {
		var b T
		err := json.Unmarshal(data, &b)
		return b, err
	}
}
