package source

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
)

func TestOnlyFileAndHTTPSURLsAreTaken(t *testing.T) {
	for _, good := range []string{"file:///srv/releases", "file://localhost/srv", "https://example.org/releases", "https://example.org:8443"} {
		if err := CheckURL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "/srv/releases", "http://example.org", "file://host/srv", "file:srv", "https://", "https://user:secret@example.org",
		"https://example.org/?a=b", "https://example.org/#a", "ftp://example.org", "https://[", "file:///srv?x"} {
		if err := CheckURL(bad); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// web is a release repository behind HTTPS.
func web(t *testing.T, tokenFile string, handle http.HandlerFunc) *httpFetcher {
	t.Helper()
	server := httptest.NewTLSServer(handle)
	t.Cleanup(server.Close)
	f, err := newFetcher(server.URL+"/releases/", tokenFile, server.Client().Transport, clock.System{})
	must(t, err)
	return f.(*httpFetcher)
}

func TestTheIndexIsAskedForByItsEntityTag(t *testing.T) {
	asked := make(chan string, 10)
	f := web(t, "", func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path + " " + r.Header.Get("If-None-Match")
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, "index")
	})
	expect := func(name, asks, gets string) {
		t.Helper()
		data, err := f.fetch(t.Context(), name, 100)
		if got := <-asked; got != asks || string(data) != gets || (gets == "") != (err == errUnchanged) {
			t.Errorf("asked %q, got %q, %v", got, data, err)
		}
	}
	expect(indexName, "/releases/index.dsse.json ", "index")
	expect(indexName, "/releases/index.dsse.json ", "index") // the first was not accepted
	f.accept()
	expect(indexName, `/releases/index.dsse.json "1"`, "")
	expect(objectName("ab"), "/releases/objects/ab ", "index")
}

func TestTheTokenIsReadAnewAndNeverShown(t *testing.T) {
	name := filepath.Join(t.TempDir(), "token")
	got := ""
	f := web(t, name, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Authorization") })
	for _, token := range []string{"first", "second"} {
		must(t, os.WriteFile(name, []byte(token+"\n"), 0o600))
		if _, err := f.fetch(t.Context(), "x", 1); err != nil || got != "Bearer "+token {
			t.Errorf("sent %q, %v", got, err)
		}
	}
	for _, bad := range []string{"", "two secrets", "a\nsecret\n"} {
		must(t, os.WriteFile(name, []byte(bad), 0o600))
		if _, err := f.fetch(t.Context(), "x", 1); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestBadAnswersAreErrors(t *testing.T) {
	redirects := 0
	for name, handle := range map[string]http.HandlerFunc{
		"404":             func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) },
		"500":             func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"304 out of turn": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) },
		"206":             func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206) },
		"too large":       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 101)) },
		"endless":         func(w http.ResponseWriter, _ *http.Request) { flood(w) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "50")
			_, _ = w.Write([]byte("x"))
		},
		"away from https": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		},
		"round in circles": func(w http.ResponseWriter, r *http.Request) {
			redirects++
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		},
	} {
		if data, err := web(t, "", handle).fetch(t.Context(), indexName, 100); err == nil {
			t.Errorf("%s: got %d bytes", name, len(data))
		}
	}
	if redirects > maxRedirects+1 {
		t.Errorf("followed %d redirects", redirects)
	}
}

func flood(w io.Writer) {
	for {
		if _, err := w.Write(make([]byte, 1<<16)); err != nil {
			return
		}
	}
}

// pipeTransport answers every request with what is written into a pipe, at that pace.
type pipeTransport struct{ body *io.PipeReader }

func (p pipeTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	context.AfterFunc(req.Context(), func() { p.body.CloseWithError(req.Context().Err()) })
	return &http.Response{StatusCode: 200, Body: p.body, ContentLength: -1, Header: http.Header{}}, nil
}

func download(t *testing.T, piece int, every time.Duration) error {
	t.Helper()
	r, w := io.Pipe()
	f, err := newFetcher("https://example.org", "", pipeTransport{r}, clock.System{})
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		for (clock.System{}).Sleep(ctx, every) == nil {
			if _, err := w.Write(make([]byte, piece)); err != nil {
				return
			}
		}
	}()
	_, err = f.fetch(ctx, "objects/x", 1<<30)
	return err
}

func TestASlowDownloadIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := download(t, 1, time.Second)
		if err == nil || !strings.Contains(err.Error(), "came within") || time.Since(began) > 2*stretch {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

func TestADownloadThatNeverEndsIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := download(t, 8<<10, time.Second)
		if err == nil || !strings.Contains(err.Error(), "it took over") || time.Since(began) != requestTimeout {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}
