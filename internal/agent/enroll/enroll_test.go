package enroll_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/agent/client"
	"nixfleet.dev/nixfleet/internal/agent/enroll"
	"nixfleet.dev/nixfleet/internal/agent/standin"
	"nixfleet.dev/nixfleet/internal/clock"
)

const (
	enrollPath = "POST /v1/enroll"
	renewPath  = "POST /v1/agent/renew"
	life       = 30 * 24 * time.Hour
)

// rig is a host before its first certificate, and a control plane that issues them.
type rig struct {
	t       *testing.T
	dir     string
	ca      *standin.CA
	cp      *standin.ControlPlane
	options enroll.Options
}

func inBubble(t *testing.T, test func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		ca := standin.NewCA(t)
		r := &rig{t: t, dir: t.TempDir(), ca: ca, cp: standin.StartInMemory(t, ca)}
		standin.WriteFile(t, r.path("ca.pem"), ca.PEM)
		standin.WriteFile(t, r.path("token"), []byte(`{"payloadType":"token","payload":"e30=","signatures":[]}`))
		logger := slog.New(slog.NewTextHandler(t.Output(), nil))
		c, err := client.New(client.Options{
			ControlPlanes: []string{r.cp.URL}, CA: r.path("ca.pem"), Cert: r.path("host.pem"), Key: r.path("host.key"),
			Clock: clock.System{}, Logger: logger, Dial: r.cp.Dial,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		r.options = enroll.Options{
			Hostname: "web-01", Cert: r.path("host.pem"), Key: r.path("host.key"), Token: r.path("token"),
			ErrorBackoff: 5 * time.Second, ControlPlane: c, Clock: clock.System{}, Logger: logger, Random: func() float64 { return 0.5 },
		}
		r.cp.Handle(enrollPath, r.issue("web-01"))
		r.cp.Handle(renewPath, r.issue("web-01"))
		test(t, r)
	})
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// issue answers with a certificate for name, from now on.
func (r *rig) issue(name string) http.HandlerFunc { return r.issueFor(name, 0, life) }

// issueFor answers with a certificate for name that is good from and until so long after now.
func (r *rig) issueFor(name string, from, until time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		var asked api.RenewRequest
		if err := json.Unmarshal(standin.Of(req).Body, &asked); err != nil {
			r.t.Error(err)
		}
		block, _ := pem.Decode([]byte(asked.CSR))
		csr, err := x509.ParseCertificateRequest(block.Bytes)
		if err == nil {
			err = csr.CheckSignature()
		}
		if err != nil {
			r.t.Errorf("the CSR: %v", err)
			return
		}
		standin.JSON(w, api.CertificateReply{
			Certificate: string(r.ca.Host(name, csr.PublicKey, now().Add(from), now().Add(until))), NotAfter: now().Add(until),
		})
	}
}

func now() time.Time { return clock.System{}.Now() }

func (r *rig) certificate() *x509.Certificate {
	r.t.Helper()
	data, err := os.ReadFile(r.path("host.pem"))
	if err != nil {
		r.t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		r.t.Fatal(err)
	}
	return cert
}

func (r *rig) ensure() error {
	r.t.Helper()
	return enroll.New(r.options).Ensure(r.t.Context())
}

// start renews until the test ends.
func (r *rig) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- enroll.New(r.options).Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			r.t.Errorf("ended with %v", err)
		}
	})
}

func (r *rig) pass(d time.Duration) {
	clock.System{}.Sleep(context.Background(), d)
	synctest.Wait()
}

func TestAHostEnrolsOnceWithAKeyOfItsOwn(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		for range 2 {
			if err := r.ensure(); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(r.cp.Requests(enrollPath)); n != 1 {
			t.Errorf("%d requests", n)
		}
		info, err := os.Stat(r.path("host.key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key's mode is %v, %v", info.Mode(), err)
		}
		if uri := r.certificate().URIs[0].Path; uri != "/host/web-01" {
			t.Errorf("got the certificate of %s", uri)
		}
	})
}

func TestTheKeyIsKeptThroughRetries(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.cp.Handle(enrollPath, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
		done := make(chan error)
		go func() { done <- r.ensure() }()
		r.pass(time.Second)
		key, err := os.ReadFile(r.path("host.key"))
		if err != nil {
			t.Fatal(err)
		}
		r.pass(time.Minute)
		if n := len(r.cp.Requests(enrollPath)); n < 2 || n > 12 {
			t.Errorf("%d tries in a minute", n)
		}
		r.cp.Handle(enrollPath, r.issue("web-01"))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if after, _ := os.ReadFile(r.path("host.key")); string(after) != string(key) {
			t.Error("a retry made another key: a token that is bound to the first is lost")
		}
	})
}

func TestWhatCannotGetBetterEndsTheEnrollment(t *testing.T) {
	for name, spoil := range map[string]func(r *rig){
		"no token":        func(r *rig) { r.options.Token = "" },
		"no token's file": func(r *rig) { r.options.Token = r.path("none") },
		"a refused token": func(r *rig) {
			r.cp.Handle(enrollPath, func(w http.ResponseWriter, _ *http.Request) {
				standin.Problem(w, 403, api.CodeTokenInvalid, "it ended")
			})
		},
		"a certificate of another host": func(r *rig) { r.ca.WriteHost(r.dir, "web-02") },
		"a key that is none":            func(r *rig) { standin.WriteFile(r.t, r.path("host.key"), []byte("no key")) },
	} {
		inBubble(t, func(t *testing.T, r *rig) {
			spoil(r)
			begin := now()
			if err := r.ensure(); err == nil || now().Sub(begin) > time.Second {
				t.Errorf("%s: %v after %v", name, err, now().Sub(begin))
			}
		})
	}
}

func TestACertificateThatIsNotThisHostsIsNotTaken(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.cp.Handle(enrollPath, r.issue("web-02"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := enroll.New(r.options).Ensure(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(r.path("host.pem")); err == nil {
			t.Error("it was written")
		}
	})
}

func TestTheCertificateIsRenewedAfterHalfItsLifeByTheSameKey(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		if err := r.ensure(); err != nil {
			t.Fatal(err)
		}
		first := r.certificate()
		r.start()
		r.pass(life / 2)
		if n := len(r.cp.Requests(renewPath)); n != 0 {
			t.Fatalf("renewed %d times within half its life", n)
		}
		r.pass(life / 10) // the jitter is at most that
		renewals := r.cp.Requests(renewPath)
		second := r.certificate()
		if len(renewals) != 1 || renewals[0].Host != "web-01" || !second.NotAfter.After(first.NotAfter) {
			t.Fatalf("%d renewals; good until %v, then %v", len(renewals), first.NotAfter, second.NotAfter)
		}
		if string(first.RawSubjectPublicKeyInfo) != string(second.RawSubjectPublicKeyInfo) {
			t.Error("renewed with another key")
		}
		r.pass(3 * life)
		if n := len(r.cp.Requests(renewPath)); n < 5 || n > 7 {
			t.Errorf("%d renewals in three and a half lives", n)
		}
	})
}

func TestACertificateThatRanOutIsReplacedByTheToken(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		if err := r.ensure(); err != nil {
			t.Fatal(err)
		}
		r.pass(2 * life) // the host was off
		if err := r.ensure(); err != nil {
			t.Fatal(err)
		}
		if n := len(r.cp.Requests(enrollPath)); n != 2 || !r.certificate().NotAfter.After(now()) {
			t.Errorf("%d enrollments; good until %v", n, r.certificate().NotAfter)
		}
		// The same where it runs out while the agent runs, since nobody renews it.
		r.cp.Handle(renewPath, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
		r.pass(life - time.Hour)
		r.start()
		r.pass(2 * time.Hour)
		if !r.certificate().NotAfter.After(now()) {
			t.Error("it ran out under a running agent, which has a token")
		}
	})
}

func TestAControlPlaneThatIssuesNoneOrShortLivedOnesIsNotAskedInAHotLoop(t *testing.T) {
	for name, answer := range map[string]func(r *rig) http.HandlerFunc{
		"none": func(*rig) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				standin.Problem(w, 404, api.CodeNotFound, "there is no issuer")
			}
		},
		"of a minute": func(r *rig) http.HandlerFunc {
			return r.issueFor("web-01", -life, time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				if err := r.ensure(); err != nil {
					t.Fatal(err)
				}
				r.cp.Handle(renewPath, answer(r))
				r.start()
				r.pass(life * 6 / 10)
				before := len(r.cp.Requests(renewPath))
				r.pass(time.Hour)
				if n := len(r.cp.Requests(renewPath)) - before; n > 61 {
					t.Errorf("%d requests in an hour", n)
				}
			})
		})
	}
}

func TestTheWholeChainIsKeptAndNothingElse(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.cp.Handle(enrollPath, r.edited(func(leaf string) string { return "hello\n" + leaf + "\nbetween\n" + string(r.ca.PEM) + "bye\n" }))
		if err := r.ensure(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(r.path("host.pem"))
		if err != nil {
			t.Fatal(err)
		}
		leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.certificate().Raw})
		if want := string(leaf) + string(r.ca.PEM); string(got) != want {
			t.Errorf("kept:\n%s\nwant:\n%s", got, want)
		}
		info, err := os.Stat(r.path("host.pem"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("its mode is %v, %v", info.Mode(), err)
		}
	})
}

func TestAChainWithAnythingElseInItIsNotTaken(t *testing.T) {
	for name, extra := range map[string][]byte{
		"a key":                      pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}),
		"a certificate that is none": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}),
	} {
		inBubble(t, func(t *testing.T, r *rig) {
			r.cp.Handle(enrollPath, r.edited(func(leaf string) string { return leaf + string(extra) }))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := enroll.New(r.options).Ensure(ctx); err == nil {
				t.Errorf("%s was taken", name)
			}
		})
	}
}

// edited answers with a certificate for this host, edited.
func (r *rig) edited(edit func(leaf string) string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		recorder := httptest.NewRecorder()
		r.issue("web-01")(recorder, req)
		var reply api.CertificateReply
		if err := json.Unmarshal(recorder.Body.Bytes(), &reply); err != nil {
			r.t.Error(err)
		}
		reply.Certificate = edit(reply.Certificate)
		standin.JSON(w, reply)
	}
}

func TestAGoodCertificateIsNotGivenAwayForAWorseOne(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		if err := r.ensure(); err != nil {
			t.Fatal(err)
		}
		first := r.certificate()
		r.cp.Handle(renewPath, r.issueFor("web-01", 0, time.Minute))
		r.start()
		r.pass(life * 7 / 10)
		if got := r.certificate(); !got.Equal(first) {
			t.Errorf("it was replaced by one until %v", got.NotAfter)
		}
		if n := len(r.cp.Requests(renewPath)); n < 2 || n > 24*7 {
			t.Errorf("asked %d times", n)
		}
		r.cp.Handle(renewPath, r.issue("web-01"))
		r.pass(2 * time.Hour)
		if got := r.certificate(); !got.NotAfter.After(first.NotAfter) {
			t.Error("a better one is not taken")
		}
	})
}
