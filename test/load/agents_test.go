package load

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"nixfleet.dev/nixfleet/internal/controlplane/cptest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

// certificates are a CA and the certificates of n hosts, named as manifesttest does; dir has the
// server's files.
type certificates struct {
	ca    *cptest.CA
	dir   string
	hosts []tls.Certificate
}

func newCertificates(b *testing.B, n int) *certificates {
	b.Helper()
	c := &certificates{ca: cptest.NewCA(b), hosts: make([]tls.Certificate, n)}
	for i := range c.hosts {
		c.hosts[i] = c.ca.Host(manifesttest.Hostname(i))
	}
	c.fresh(b)
	return c
}

// fresh has the next server begin with an empty directory.
func (c *certificates) fresh(b *testing.B) {
	c.dir = b.TempDir()
	c.ca.WriteFiles(c.dir, c.ca.Server())
}

// agents returns how many agents there are to be: n, or what the environment says.
func agents(n int) int {
	if v, err := strconv.Atoi(os.Getenv("NIXFLEET_LOAD_AGENTS")); err == nil && v > 0 {
		return v
	}
	return n
}

// agent is one connection that polls. It has no goroutine of its own.
type agent struct {
	host string
	conn *tls.Conn
	in   *bufio.Reader
}

// connect makes a connection for each host and begins with each.
func connect(b *testing.B, c *certificates, addr string, begin func(*agent) error) []*agent {
	b.Helper()
	all := make([]*agent, len(c.hosts))
	each(b, len(all), 32, func(i int) error {
		a, err := dial(c, i, addr)
		if err != nil {
			return err
		}
		all[i] = a
		return begin(a)
	})
	return all
}

// park runs f with agents parked at a server of some kind, and ends both after it.
func park(b *testing.B, c *certificates, kind string, f func(p *process, all []*agent)) {
	b.Helper()
	p := launch(b, kind, c.dir)
	defer p.stop()
	all := connect(b, c, p.Addr, (*agent).poll)
	defer func() {
		for _, a := range all {
			a.conn.NetConn().Close()
		}
	}()
	p.awaitParked(len(all))
	f(p, all)
}

func dial(c *certificates, i int, addr string) (*agent, error) {
	conn, err := tls.Dial("tcp", addr, c.ca.ClientTLS(c.hosts[i]))
	if err != nil {
		return nil, err
	}
	return &agent{host: manifesttest.Hostname(i), conn: conn}, nil
}

func (a *agent) poll() error {
	_, err := io.WriteString(a.conn, "GET /v1/agent/dispatch?wait=60 HTTP/1.1\r\nHost: cp\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
	return err
}

// receive reads a response's body; the status must be one of those.
func (a *agent) receive(statuses ...int) (status int, body []byte, err error) {
	if a.in == nil {
		a.in = bufio.NewReaderSize(a.conn, 1<<10)
	}
	resp, err := http.ReadResponse(a.in, nil)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err == nil && !slices.Contains(statuses, resp.StatusCode) {
		err = fmt.Errorf("%s got %d %s", a.host, resp.StatusCode, body)
	}
	return resp.StatusCode, body, err
}

// dispatch reads polls' responses until there is a dispatch.
func (a *agent) dispatch() error {
	for {
		status, _, err := a.receive(200, 204)
		if err != nil || status == 200 {
			return err
		}
		if err := a.poll(); err != nil {
			return err
		}
	}
}

func (a *agent) post(path string, body []byte) ([]byte, error) {
	var request bytes.Buffer
	fmt.Fprintf(&request, "POST %s HTTP/1.1\r\nHost: cp\r\nX-Nixfleet-Protocol: 1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", path, len(body))
	request.Write(body)
	if _, err := a.conn.Write(request.Bytes()); err != nil {
		return nil, err
	}
	_, answer, err := a.receive(200, 204)
	return answer, err
}

// each calls f for 0 … n-1 with so many goroutines.
func each(b *testing.B, n, workers int, f func(i int) error) {
	b.Helper()
	next := make(chan int)
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	for i := range n {
		select {
		case next <- i:
		case err := <-errs:
			b.Fatal(err)
		}
	}
	close(next)
	wg.Wait()
	select {
	case err := <-errs:
		b.Fatal(err)
	default:
	}
}

// arrivals waits for a dispatch of each agent, and returns how long after began each came, sorted. go
// is called once all are waiting.
func arrivals(b *testing.B, all []*agent, trigger func() (began time.Time)) []time.Duration {
	b.Helper()
	at := make([]time.Time, len(all))
	errs := make(chan error, len(all))
	var waiting, done sync.WaitGroup
	waiting.Add(len(all))
	for i, a := range all {
		done.Go(func() {
			waiting.Done()
			if err := a.dispatch(); err != nil {
				errs <- err
			}
			at[i] = time.Now()
		})
	}
	waiting.Wait()
	began := trigger()
	done.Wait()
	select {
	case err := <-errs:
		b.Fatal(err)
	default:
	}
	took := make([]time.Duration, len(at))
	for i := range at {
		took[i] = at[i].Sub(began)
	}
	slices.Sort(took)
	return took
}

func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(int(float64(len(sorted))*q), len(sorted)-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
