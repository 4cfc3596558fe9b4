package manifest

import (
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Adoption is everything that a control plane's decision to adopt a channel's release depends on.
type Adoption struct {
	Root    *trust.Root
	Channel string           // as the index names it
	Entry   api.IndexChannel // what the index says of it
	Now     time.Time

	Manifest []byte // the envelope
	Hosts    []byte // hosts.jsonl
	Fleet    []byte // the envelope of the fleet that the channel was released with

	// Last is the highest manifest adopted for the channel, verified again by VerifyStored under Root;
	// nil where there is none, or none that still verifies.
	Last *trust.Verified[api.Manifest]
	// Known is the payload that was adopted before under the same rollout id, nil where there is none.
	Known []byte
}

// Adopted is a release that a control plane may serve and roll out.
type Adopted struct {
	Manifest trust.Verified[api.Manifest]
	Hosts    *Hosts
	Fleet    trust.Verified[api.Fleet]
}

// CheckAdoption decides, by design/artifacts.md ("The control plane adopts a manifest when"), whether
// a control plane adopts a release; the first rule that is broken is the error. That objects have the
// digests that they are named by is for whoever fetched them to check.
func CheckAdoption(a Adoption) (Adopted, error) {
	id := a.Entry.RolloutID
	what := "manifest of " + id
	v, err := Verify(a.Root, id, a.Manifest, a.Now)
	if err != nil {
		return Adopted{}, err
	}
	m := v.Value()
	if m.Channel != a.Channel {
		return Adopted{}, trust.Refuse(api.CodeIdentityMismatch, what, "the index has it under channel %.80q", a.Channel)
	}
	if a.Last != nil {
		if err := checkAdvance(what, *a.Last, m); err != nil {
			return Adopted{}, err
		}
	}
	if a.Known != nil && !sameBut(a.Known, v.Payload(), "signedAt") {
		return Adopted{}, trust.Refuse(api.CodeIdentityMismatch, what, "it differs in more than signedAt from what was adopted before under that id")
	}
	hosts, err := checkHosts(what, m, a.Hosts)
	if err != nil {
		return Adopted{}, err
	}
	fleet, err := trust.VerifyFleet(a.Root, a.Fleet, a.Now)
	if err != nil {
		return Adopted{}, err
	}
	if digest := fleet.PayloadSHA256(); digest != m.FleetDigest {
		return Adopted{}, trust.Refuse(api.CodeIdentityMismatch, what, "fleetDigest is %s; the fleet beside it is %s", m.FleetDigest, digest)
	}
	return Adopted{Manifest: v, Hosts: hosts, Fleet: fleet}, nil
}

// checkHosts checks hosts.jsonl against what m commits to and against its own rules, the cheap digest
// first.
func checkHosts(what string, m api.Manifest, data []byte) (*Hosts, error) {
	if len(data) > api.MaxHosts {
		return nil, trust.Refuse(api.CodeTooLarge, "hosts.jsonl", "it is %d bytes; at most %d are allowed", len(data), api.MaxHosts)
	}
	if digest := trust.Digest(data); digest != m.HostSet.SHA256 {
		return nil, trust.Refuse(api.CodeIdentityMismatch, what, "hostSet.sha256 is %s; hosts.jsonl is %s", m.HostSet.SHA256, digest)
	}
	hosts, err := ParseHosts(data, len(m.Policy.Waves), len(m.DisruptionBudgets))
	if err != nil {
		return nil, err
	}
	switch got := hosts.Set(); {
	case got.Size != m.HostSet.Size:
		return nil, trust.Refuse(api.CodeIdentityMismatch, what, "hostSet.size is %d; hosts.jsonl has %d lines", m.HostSet.Size, got.Size)
	case got.MerkleRoot != m.HostSet.MerkleRoot:
		return nil, trust.Refuse(api.CodeIdentityMismatch, what, "hostSet.merkleRoot is %s; that of hosts.jsonl is %s", m.HostSet.MerkleRoot, got.MerkleRoot)
	}
	return hosts, nil
}

// sameBut says whether two JSON objects are the same but for one member of theirs, however they are
// laid out. Members that this version does not know count too.
func sameBut(a, b []byte, except string) bool {
	x, errX := membersBut(a, except)
	y, errY := membersBut(b, except)
	return errX == nil && errY == nil && x == y
}

func membersBut(data []byte, except string) (string, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(data, &members); err != nil {
		return "", err
	}
	delete(members, except)
	rest, err := json.Marshal(members)
	if err != nil {
		return "", err
	}
	value := jsontext.Value(rest)
	if err := value.Canonicalize(); err != nil {
		return "", err
	}
	return string(value), nil
}
