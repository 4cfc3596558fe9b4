package bootstrap

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/trust"
)

// InitOptions says what fleet to make.
type InitOptions struct {
	TrustDomain  string // of every SPIFFE id: "fleet.example"
	ControlPlane string // the URL by which hosts and operators reach the control plane
	Now          time.Time
}

// ErrNotEmpty is wrapped by the error of Init for a directory with something in it.
var ErrNotEmpty = errors.New("the directory is not empty")

// Init makes everything of a new fleet in dir, which must be missing or empty: private keys are for their
// owner's eyes alone. What it wrote works as it stands; configurations name files by their absolute paths.
// When it fails, what it had written is removed.
func Init(dir string, opts InitOptions) (layout Layout, err error) {
	if layout, err = At(dir); err != nil {
		return layout, err
	}
	server, err := opts.check(layout.Dir)
	if err != nil {
		return layout, err
	}
	layout.TrustDomain, layout.ControlPlane = opts.TrustDomain, opts.ControlPlane
	if err := claim(layout.Dir); err != nil {
		return layout, err
	}
	w := &writer{layout: layout, opts: opts, server: server}
	if err := w.everything(); err != nil {
		return layout, errors.Join(err, sweep(layout.Dir))
	}
	return layout, nil
}

// ErrOption is wrapped by errors of what was asked for, as opposed to of doing it.
var ErrOption = errors.New("that makes no sense")

// optionError is an ErrOption in its own words.
type optionError string

// Error implements error.
func (e optionError) Error() string { return string(e) }

// Unwrap makes errors.Is find ErrOption.
func (optionError) Unwrap() error { return ErrOption }

func badOption(format string, args ...any) error { return optionError(fmt.Sprintf(format, args...)) }

func (o InitOptions) check(dir string) (*url.URL, error) {
	if !fleet.ValidHostname(o.TrustDomain) {
		return nil, badOption("trust domain %q is not a name such as fleet.example", o.TrustDomain)
	}
	u, err := url.Parse(o.ControlPlane)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return nil, badOption("control plane %q is not a URL such as https://cp.fleet.example:8443", o.ControlPlane)
	}
	for _, r := range dir {
		if r == unicode.ReplacementChar || unicode.IsControl(r) {
			return nil, badOption("directory %q has a name that no configuration could hold", dir)
		}
	}
	return u, nil
}

// claim makes dir, or takes one that is empty.
func claim(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("making %s: %w", dir, err)
	}
	if err := os.Mkdir(dir, 0o700); err == nil || !errors.Is(err, fs.ErrExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("looking into %s: %w", dir, err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: %s", ErrNotEmpty, dir)
	}
	return os.Chmod(dir, 0o700)
}

// sweep empties dir, which was empty when Init began.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
	}
	return err
}

// writer writes the files of one fleet.
type writer struct {
	layout Layout
	opts   InitOptions
	server *url.URL
}

func (w *writer) everything() error {
	for _, step := range []func() error{w.folders, w.certificates, w.keys, w.example, w.configurations} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) folders() error {
	l := w.layout
	for _, dir := range []string{
		filepath.Dir(l.CACert), filepath.Dir(l.ReleaseKey), filepath.Dir(l.OperatorCert), l.ServerState,
		l.Host(ExampleHost).State,
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	return os.Mkdir(l.Repository, 0o755)
}

func (w *writer) certificates() error {
	l, now := w.layout, w.opts.Now
	root, err := newRoot(w.opts.TrustDomain, now)
	if err != nil {
		return err
	}
	issuer, err := newIssuer(root, w.opts.TrustDomain, now)
	if err != nil {
		return err
	}
	operator, err := root.IssueOperator("admin", now, OperatorLife)
	if err != nil {
		return err
	}
	server, err := root.IssueServer(serverNames(w.server), now, ServerLife)
	if err != nil {
		return err
	}
	return errors.Join(
		writeAuthority(l.CACert, l.CAKey, root),
		writeAuthority(l.IssuerCert, l.IssuerKey, issuer),
		writePublic(l.ClientCA, append(encodeCert(root.Cert.Raw), encodeCert(issuer.Cert.Raw)...)),
		WritePair(l.OperatorCert, l.OperatorKey, operator),
		WritePair(l.ServerCert, l.ServerKey, server),
	)
}

// serverNames returns what the control plane's certificate must say. This machine has several names for
// itself, and people use them all.
func serverNames(u *url.URL) []string {
	host := u.Hostname()
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		names := []string{"localhost", "127.0.0.1", "::1"}
		if ip != nil && host != "127.0.0.1" && host != "::1" {
			names = append(names, host)
		}
		return names
	}
	return []string{host}
}

// keys makes the release and the enrollment key, and trust.json, which says that they are trusted.
func (w *writer) keys() error {
	l, year := w.layout, w.opts.Now.Format("2006")
	releaseKey, err := newKey(l.ReleaseKey, "release-"+year)
	if err != nil {
		return err
	}
	enrollmentKey, err := newKey(l.EnrollmentKey, "enrollment-"+year)
	if err != nil {
		return err
	}
	trusted := api.Trust{
		SchemaVersion: api.SchemaVersion,
		Release:       api.TrustRelease{Threshold: 1, Keys: []api.TrustKey{releaseKey}},
		Enrollment:    api.TrustEnrollment{Keys: []api.TrustKey{enrollmentKey}},
	}
	data, err := json.Marshal(trusted, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return fmt.Errorf("encoding trust.json: %w", err)
	}
	if _, err := trust.ParseRoot(l.TrustFile, data); err != nil {
		return err
	}
	return writePublic(l.TrustFile, append(data, '\n'))
}

// newKey makes an Ed25519 key, writes it, and returns it as trust.json has it.
func newKey(path, name string) (api.TrustKey, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return api.TrustKey{}, fmt.Errorf("making a key: %w", err)
	}
	signer, err := trust.NewSigner(private)
	if err != nil {
		return api.TrustKey{}, err
	}
	text, err := encodeKey(crypto.Signer(private))
	if err != nil {
		return api.TrustKey{}, err
	}
	return api.TrustKey{Name: name, PublicKey: signer.Public().PEM()}, writePrivate(path, text)
}

func writeAuthority(certFile, keyFile string, a *Authority) error {
	key, err := encodeKey(a.Key)
	if err != nil {
		return err
	}
	return WritePair(certFile, keyFile, Issued{Cert: encodeCert(a.Cert.Raw), Key: key})
}

// WritePair writes a certificate and its key, which only the owner may read, as new files: neither may
// be there. Folders are made where they are missing. It writes both or none.
func WritePair(certFile, keyFile string, issued Issued) error {
	if err := WriteSecret(keyFile, issued.Key); err != nil {
		return err
	}
	err := os.MkdirAll(filepath.Dir(certFile), 0o700)
	if err == nil {
		err = writePublic(certFile, issued.Cert)
	}
	if err != nil {
		return errors.Join(err, os.Remove(keyFile))
	}
	return nil
}

// WriteSecret writes a new file that only its owner may read, whole or not at all, and makes its folder
// where that is missing.
func WriteSecret(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	return writePrivate(path, data)
}

func writePrivate(path string, data []byte) error { return writeNew(path, data, 0o600) }
func writePublic(path string, data []byte) error  { return writeNew(path, data, 0o644) }

func writeNew(path string, data []byte, mode fs.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already, and is not written over; move it away, or choose another name", path)
	}
	if err != nil {
		return fmt.Errorf("writing a new file: %w", err)
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(path))
	}
	return nil
}
