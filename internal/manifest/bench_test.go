package manifest_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

// benchHosts is the fleet of performance.md's P6.
const benchHosts = 100_000

// benchHost is the host that is dispatched in it.
var benchHost = manifesttest.Hostname(benchHosts * 2 / 3)

// largeRelease returns a release of benchHosts that uses every field.
func largeRelease() manifesttest.Release {
	o := full()
	o.Lines = manifesttest.Lines(benchHosts, 2, "25.11.20261123.0a1b2c3")
	for i := range o.Lines[1:] {
		o.Lines[i+1].Budgets = []int{0, 1}
		o.Lines[i+1].After = []string{manifesttest.Hostname(0)}
	}
	return manifesttest.New(o)
}

// BenchmarkP6 is what a host pays to verify one dispatch in a fleet of 100,000: the manifest's envelope,
// its own line's proof, and every rule of both (target: 0.5 ms of CPU, 8 KB over the wire, 64 KB
// allocated). Beside it the bare alternative: one signed list of all hosts, verified and parsed with
// nothing else checked.
func BenchmarkP6(b *testing.B) {
	r := largeRelease()
	b.Run("dispatch", func(b *testing.B) {
		wire, verify := oneDispatch(b, r)
		measure(b, wire, verify)
	})
	b.Run("baseline", func(b *testing.B) {
		envelope, public := signedList(b, r)
		measure(b, len(envelope), func() error { return verifyList(envelope, public, benchHost) })
	})
}

// oneDispatch returns how many bytes a dispatch brings to a host, and what the host does with them.
func oneDispatch(t testing.TB, r manifesttest.Release) (wire int, verify func() error) {
	body := encode(t, r.Proof(benchHost))
	dispatch := r.Dispatch(benchHost)
	at := time.Date(2026, 11, 28, 2, 0, 0, 0, time.UTC) // a Saturday at three in Paris
	root := root()
	return len(r.Envelope) + len(body), func() error {
		proof, err := manifest.ParseProof(body)
		if err != nil {
			return err
		}
		accepted, err := manifest.Accept(manifest.Acceptance{
			Root: root, RolloutID: r.ID, Hostname: benchHost, Now: now.Add(hours(1)), Envelope: r.Envelope, Proof: proof,
		})
		if err != nil {
			return err
		}
		return manifest.CheckDispatch(accepted, dispatch, at)
	}
}

// measure reports what f costs beside its time: CPU of all threads, bytes over the wire, allocations.
func measure(b *testing.B, wire int, f func() error) {
	b.Helper()
	b.ReportAllocs()
	before := cpu(b)
	for b.Loop() {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(wire), "wire-B")
}

func cpu(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

type list struct {
	Hosts []api.HostLine `json:"hosts"`
}

func signedList(b *testing.B, r manifesttest.Release) ([]byte, ed25519.PublicKey) {
	var l list
	for i := range r.Hosts.Len() {
		l.Hosts = append(l.Hosts, r.Hosts.Line(i))
	}
	seed := sha256.Sum256([]byte("baseline"))
	key := ed25519.NewKeyFromSeed(seed[:])
	payload := encode(b, l)
	return encode(b, api.Envelope{
		PayloadType: api.PayloadRollout, Payload: base64Of(payload),
		Signatures: []api.Signature{{Sig: base64Of(ed25519.Sign(key, trust.PAE(api.PayloadRollout, payload)))}},
	}), key.Public().(ed25519.PublicKey)
}

func verifyList(envelope []byte, public ed25519.PublicKey, host string) error {
	var e api.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		return err
	}
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil {
		return err
	}
	sig, err := base64.StdEncoding.DecodeString(e.Signatures[0].Sig)
	if err != nil {
		return err
	}
	if !ed25519.Verify(public, trust.PAE(e.PayloadType, payload), sig) {
		return trust.Refuse(api.CodeSignatureInvalid, "list", "bad signature")
	}
	var l list
	if err := json.Unmarshal(payload, &l); err != nil {
		return err
	}
	for _, line := range l.Hosts {
		if line.Hostname == host {
			return nil
		}
	}
	return trust.Refuse(api.CodeNotInManifest, "list", "no such host")
}

func base64Of(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

// BenchmarkParseHosts is what a control plane pays to read a release of 100,000 hosts, tree included.
func BenchmarkParseHosts(b *testing.B) {
	file := largeRelease().HostsFile
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := manifest.ParseHosts(file, 2, 2); err != nil {
			b.Fatal(err)
		}
	}
}
