package bootstrap

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"nixfleet.dev/nixfleet/internal/release"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Layout says where everything of a fleet is that Init made. Every path is absolute.
type Layout struct {
	Dir          string `json:"dir"`
	TrustDomain  string `json:"trustDomain"`
	ControlPlane string `json:"controlPlane"` // the URL

	TrustFile          string `json:"trustFile"`
	FleetFile          string `json:"fleetFile"`
	ControlPlaneConfig string `json:"controlPlaneConfig"`
	AgentConfig        string `json:"agentConfig"`    // of ExampleHost
	OperatorConfig     string `json:"operatorConfig"` // the operator's context
	ReleaseKey         string `json:"releaseKey"`
	EnrollmentKey      string `json:"enrollmentKey"`
	Repository         string `json:"repository"`

	CACert       string `json:"caCert"`
	CAKey        string `json:"caKey"`
	IssuerCert   string `json:"issuerCert"`
	IssuerKey    string `json:"issuerKey"`
	ClientCA     string `json:"clientCa"` // what a control plane checks client certificates by
	ServerCert   string `json:"serverCert"`
	ServerKey    string `json:"serverKey"`
	ServerState  string `json:"serverState"`
	OperatorCert string `json:"operatorCert"`
	OperatorKey  string `json:"operatorKey"`

	Store string `json:"store"` // of the example's closures, for the directory backend
}

// ExampleHost is the host of the fleet that Init declares.
const ExampleHost = "web-01"

// At returns the layout of a directory, whether or not anything is there.
func At(dir string) (Layout, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Layout{}, fmt.Errorf("finding %s: %w", dir, err)
	}
	in := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	return Layout{
		Dir:                dir,
		TrustFile:          in("trust.json"),
		FleetFile:          in("fleet.json"),
		ControlPlaneConfig: in("control-plane.toml"),
		AgentConfig:        in("agent.toml"),
		OperatorConfig:     in("config.toml"),
		ReleaseKey:         in("keys", "release.pem"),
		EnrollmentKey:      in("keys", "enrollment.pem"),
		Repository:         in("releases"),
		CACert:             in("ca", "ca.pem"),
		CAKey:              in("ca", "ca.key"),
		IssuerCert:         in("ca", "issuer.pem"),
		IssuerKey:          in("ca", "issuer.key"),
		ClientCA:           in("ca", "clients.pem"),
		ServerCert:         in("control-plane", "tls.pem"),
		ServerKey:          in("control-plane", "tls.key"),
		ServerState:        in("control-plane", "state"),
		OperatorCert:       in("operators", "admin.pem"),
		OperatorKey:        in("operators", "admin.key"),
		Store:              in("store"),
	}, nil
}

// Host returns where a host of the example keeps its own files.
func (l Layout) Host(name string) HostLayout {
	dir := filepath.Join(l.Dir, "hosts", name)
	return HostLayout{
		Name: name, Dir: dir,
		State:         filepath.Join(dir, "state"),
		Cert:          filepath.Join(dir, "tls.pem"),
		Key:           filepath.Join(dir, "tls.key"),
		Token:         filepath.Join(dir, "enrollment-token.json"),
		CurrentSystem: filepath.Join(dir, "current-system"),
		Profile:       filepath.Join(dir, "profile"),
	}
}

// HostLayout says where the files of one host are. Cert and Key are made when it enrols.
type HostLayout struct {
	Name, Dir, State, Cert, Key, Token, CurrentSystem, Profile string
}

// Root reads trust.json.
func (l Layout) Root() (*trust.Root, error) {
	data, err := os.ReadFile(l.TrustFile)
	if err != nil {
		return nil, fmt.Errorf("reading what is trusted: %w", err)
	}
	return trust.ParseRoot(l.TrustFile, data)
}

// Release returns the options of a job on the fleet's repository, signed with its release key.
func (l Layout) Release(now time.Time) (release.Options, error) {
	root, err := l.Root()
	if err != nil {
		return release.Options{}, err
	}
	signer, err := release.LoadKey(l.ReleaseKey)
	if err != nil {
		return release.Options{}, err
	}
	return release.Options{Repo: l.Repository, Root: root, Signers: []trust.Signer{signer}, Now: now}, nil
}

// MintToken mints an enrollment token of a host, good for an hour, and returns its envelope.
func (l Layout) MintToken(host string, now time.Time) ([]byte, error) {
	signer, err := release.LoadKey(l.EnrollmentKey)
	if err != nil {
		return nil, err
	}
	_, envelope, err := release.MintToken(release.TokenOptions{
		Hostname: host, Signer: signer, Now: now, Expires: release.DefaultTokenLife,
	})
	return envelope, err
}

// CA reads the fleet's root authority.
func (l Layout) CA() (*Authority, error) { return LoadAuthority(l.CACert, l.CAKey) }

// Issuer reads the authority that the control plane issues host certificates with.
func (l Layout) Issuer() (*Authority, error) { return LoadAuthority(l.IssuerCert, l.IssuerKey) }

// IssueHost writes a certificate and key of a host to where its agent keeps them, as if it had enrolled.
func (l Layout) IssueHost(name string, now time.Time) (HostLayout, error) {
	host := l.Host(name)
	issuer, err := l.Issuer()
	if err != nil {
		return host, err
	}
	issued, err := issuer.IssueHost(name, now, HostLife)
	if err != nil {
		return host, err
	}
	if err := os.MkdirAll(host.Dir, 0o700); err != nil {
		return host, fmt.Errorf("making the folder of %s: %w", name, err)
	}
	return host, WritePair(host.Cert, host.Key, issued)
}
