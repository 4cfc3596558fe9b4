package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// cacheRequests is how many questions a cache is asked at once.
	cacheRequests = 16
	// cacheTimeout is how long a cache has for an answer.
	cacheTimeout = 30 * time.Second
	// narinfoHash is the length of the part of a closure's name that a cache knows it by.
	narinfoHash = 32
)

// CacheError is the error of a release with closures that the required cache does not have.
type CacheError struct {
	Cache   string
	Missing []string // closures, sorted
}

// Error implements error.
func (e *CacheError) Error() string {
	return fmt.Sprintf("not published: %s does not have %d of the closures:\n  %s", e.Cache, len(e.Missing), strings.Join(e.Missing, "\n  "))
}

// requireCached asks a binary cache for the narinfo of each closure. That a cache has a closure says
// nothing of its signature, which agents check.
func requireCached(ctx context.Context, client *http.Client, cache string, closures []string) error {
	base, err := url.Parse(cache)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || base.RawQuery != "" || base.User != nil {
		return fmt.Errorf("%q is not the URL of a binary cache: use http:// or https://, without parameters", cache)
	}
	if client == nil {
		client = http.DefaultClient
	}
	closures = slices.Compact(slices.Sorted(slices.Values(closures)))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := &cacheQuestions{client: client, base: base}
	queue := make(chan string)
	var workers sync.WaitGroup
	for range min(cacheRequests, len(closures)) {
		workers.Go(func() {
			for closure := range queue {
				if q.ask(ctx, closure) != nil {
					cancel() // the others would fail alike
				}
			}
		})
	}
	for _, closure := range closures {
		queue <- closure
	}
	close(queue)
	workers.Wait()
	if q.err != nil {
		return fmt.Errorf("asking %s: %w", base.Redacted(), q.err)
	}
	if len(q.missing) > 0 {
		slices.Sort(q.missing)
		return &CacheError{Cache: base.Redacted(), Missing: q.missing}
	}
	return nil
}

type cacheQuestions struct {
	client *http.Client
	base   *url.URL

	mu      sync.Mutex
	missing []string
	err     error // the first that is no answer
}

func (q *cacheQuestions) ask(ctx context.Context, closure string) error {
	there, err := q.has(ctx, closure)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err != nil {
		if q.err == nil {
			q.err = err
		}
		return err
	}
	if !there {
		q.missing = append(q.missing, closure)
	}
	return nil
}

func (q *cacheQuestions) has(ctx context.Context, closure string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, cacheTimeout)
	defer cancel()
	target := q.base.JoinPath(closure[:narinfoHash] + ".narinfo")
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, target.String(), nil)
	if err != nil {
		return false, err
	}
	response, err := q.client.Do(request)
	if err != nil {
		return false, err
	}
	_, err = io.CopyN(io.Discard, response.Body, 4096)
	if err = errors.Join(ignoreEOF(err), response.Body.Close()); err != nil {
		return false, err
	}
	switch response.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound, http.StatusForbidden: // an object store says 403 where it may not list
		return false, nil
	}
	return false, fmt.Errorf("%s: %s", target.Redacted(), response.Status)
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
