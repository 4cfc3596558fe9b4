package source

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
)

// indexName is the only file of a repository that changes.
const indexName = "index.dsse.json"

// objectName is the path of an object in a repository.
func objectName(digest string) string { return path.Join("objects", digest) }

// fetcher reads files of a repository whole, at most limit bytes of them.
type fetcher interface {
	// fetch reads a file. For the index it may return errUnchanged, when it is as it was at the last
	// time that accept was called after a fetch.
	fetch(ctx context.Context, name string, limit int) ([]byte, error)
	// accept says that the index that was fetched last has been dealt with.
	accept()
}

var errUnchanged = errors.New("the index has not changed")

// newFetcher returns the fetcher for a file:// or https:// URL.
func newFetcher(repository, tokenFile string, transport http.RoundTripper, clk clock.Clock) (fetcher, error) {
	u, err := url.Parse(repository)
	if err != nil {
		return nil, errors.New("the repository's URL is malformed")
	}
	switch {
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("the repository's URL has more than a scheme, a host and a path")
	case u.Scheme == "file" && (u.Host == "" || u.Host == "localhost") && path.IsAbs(u.Path):
		return &fileFetcher{dir: u.Path}, nil
	case u.Scheme == "https" && u.Host != "":
		return newHTTPFetcher(u, tokenFile, transport, clk), nil
	}
	return nil, errors.New("the repository's URL is neither file:///… nor https://…")
}

// fileFetcher reads a directory.
type fileFetcher struct{ dir string }

func (f *fileFetcher) accept() {}

func (f *fileFetcher) fetch(_ context.Context, name string, limit int) ([]byte, error) {
	root, err := os.OpenRoot(f.dir)
	if err != nil {
		return nil, fmt.Errorf("opening the repository: %w", err)
	}
	defer root.Close()
	info, err := root.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: it is not a file", name)
	}
	file, err := root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	defer file.Close()
	return readAll(file, name, limit, info.Size())
}

// readAll reads all of r, which is about size bytes long and may be at most limit.
func readAll(r io.Reader, name string, limit int, size int64) ([]byte, error) {
	tooLarge := fmt.Errorf("reading %s: it is over %d bytes", name, limit)
	if size > int64(limit) {
		return nil, tooLarge
	}
	var b bytes.Buffer
	if size > 0 {
		b.Grow(int(size) + bytes.MinRead)
	}
	if _, err := b.ReadFrom(io.LimitReader(r, int64(limit)+1)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if b.Len() > limit {
		return nil, tooLarge
	}
	return b.Bytes(), nil
}

// How long a request to a repository may take: in all, for the header, and how little may come of the
// body in each stretch of time.
const (
	requestTimeout = 15 * time.Minute
	headerTimeout  = 30 * time.Second
	stretch        = 15 * time.Second
	leastStretch   = 64 << 10 // bytes
	maxToken       = 64 << 10
	maxRedirects   = 3
)

// httpFetcher reads from a static file server or an object store.
type httpFetcher struct {
	base      *url.URL
	tokenFile string
	client    *http.Client
	clock     clock.Clock

	etag, newETag string // of the index
}

func newHTTPFetcher(base *url.URL, tokenFile string, transport http.RoundTripper, clk clock.Clock) *httpFetcher {
	if transport == nil {
		transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: headerTimeout}).DialContext,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    headerTimeout,
			ResponseHeaderTimeout:  headerTimeout,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
		}
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if req.URL.Scheme != "https" || len(via) > maxRedirects {
			return errors.New("redirected too often, or away from https")
		}
		return nil
	}}
	return &httpFetcher{base: base, tokenFile: tokenFile, client: client, clock: clk}
}

func (f *httpFetcher) accept() { f.etag = f.newETag }

func (f *httpFetcher) fetch(ctx context.Context, name string, limit int) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := f.clock.AfterFunc(requestTimeout, func() { cancel(fmt.Errorf("it took over %s", requestTimeout)) })
	defer timer.Stop()
	req, err := f.request(ctx, name)
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetching %s: %w", name, cause(ctx, err))
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && req.Header.Get("If-None-Match") != "":
		return nil, errUnchanged
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("fetching %s: the server answered %d %s", name, resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	body := &metered{r: resp.Body}
	defer f.watch(body, cancel)()
	data, err := readAll(body, name, limit, resp.ContentLength)
	if err != nil {
		return nil, cause(ctx, err)
	}
	if name == indexName {
		f.newETag = resp.Header.Get("ETag")
	}
	return data, nil
}

// cause returns why ctx was ended from here, if it was, rather than what that led to.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (f *httpFetcher) request(ctx context.Context, name string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base.JoinPath(name).String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "nixfleet-control-plane")
	if f.tokenFile != "" {
		token, err := readToken(f.tokenFile)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if name == indexName && f.etag != "" {
		req.Header.Set("If-None-Match", f.etag)
	}
	return req, nil
}

// readToken reads the token each time, so that it can be replaced. What is in it is never shown.
func readToken(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("reading the repository's token: %w", err)
	}
	defer file.Close()
	data, err := readAll(file, name, maxToken, 0)
	if err != nil {
		return "", fmt.Errorf("reading the repository's token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("reading the repository's token: %s does not hold one", name)
	}
	return token, nil
}

// metered counts what is read through it.
type metered struct {
	r io.Reader
	n atomic.Int64
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n.Add(int64(n))
	return n, err
}

// watch ends a download of which too little comes, until the function it returns is called.
func (f *httpFetcher) watch(m *metered, cancel context.CancelCauseFunc) (stop func()) {
	ctx, end := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for before := int64(0); f.clock.Sleep(ctx, stretch) == nil; before = m.n.Load() {
			if m.n.Load()-before < leastStretch {
				cancel(fmt.Errorf("under %d KiB came within %s", leastStretch>>10, stretch))
				return
			}
		}
	}()
	return func() {
		end()
		<-done
	}
}
