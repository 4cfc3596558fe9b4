package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"nixfleet.dev/nixfleet/internal/clock"
)

// credentials are the CA, certificate and key files as they are now. They are read again when one of
// them changed (L14); where the new ones cannot be read, the last good ones stay in use.
type credentials struct {
	ca, cert, key string
	clock         clock.Clock
	logger        *slog.Logger

	mu     sync.Mutex
	seen   [3]fileState // of what is loaded
	warned [3]fileState // of what could not be
	loaded *tls.Config  // nil before the first load
}

// fileState tells one version of a file from the next. A file that is replaced has another inode, and
// one that is written in place another time or size.
type fileState struct {
	modified time.Time
	size     int64
	info     fs.FileInfo
}

func (s fileState) same(o fileState) bool {
	if s.info == nil || o.info == nil {
		return s.info == nil && o.info == nil
	}
	return s.modified.Equal(o.modified) && s.size == o.size && os.SameFile(s.info, o.info)
}

// config returns the TLS configuration of the files as they are now, and whether it is another one
// than the last time. It is shared and must not be changed.
func (c *credentials) config() (config *tls.Config, changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := [3]fileState{stat(c.ca), stat(c.cert), stat(c.key)}
	if c.loaded != nil && same(now, c.seen) {
		return c.loaded, false, nil
	}
	config, err = c.load()
	if err != nil && c.loaded == nil {
		return nil, false, err
	}
	if err != nil { // it is tried again each time: what is wrong may be this moment, and not the files
		if !same(now, c.warned) {
			c.logger.Warn("changed TLS files cannot be used; going on with the ones before", "err", err)
			c.warned = now
		}
		return c.loaded, false, nil
	}
	changed = c.loaded != nil
	c.seen, c.loaded = now, config
	return config, changed, nil
}

func same(a, b [3]fileState) bool { return a[0].same(b[0]) && a[1].same(b[1]) && a[2].same(b[2]) }

func stat(path string) fileState {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{modified: info.ModTime(), size: info.Size(), info: info}
}

// load reads the files. Without a certificate file it makes a configuration that shows none, which is
// what a host has before it is enrolled.
func (c *credentials) load() (*tls.Config, error) {
	config, err := c.anonymous()
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if errors.Is(err, fs.ErrNotExist) && (c.loaded == nil || len(c.loaded.Certificates) == 0) {
		return config, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's certificate %s and key %s: %w", c.cert, c.key, err)
	}
	config.Certificates = []tls.Certificate{pair}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	return config, nil
}

// anonymous returns a configuration that checks the control plane and shows no certificate.
func (c *credentials) anonymous() (*tls.Config, error) {
	pem, err := os.ReadFile(c.ca)
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the CA file: %s holds no certificate in PEM", c.ca)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    roots,
		NextProtos: []string{"http/1.1"},
		Time:       c.clock.Now,
	}, nil
}
