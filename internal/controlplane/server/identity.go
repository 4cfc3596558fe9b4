package server

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
)

// Role is what a certificate lets its holder be.
type Role int

// Roles. A certificate that is nobody's gives none.
const (
	Nobody Role = iota
	Host
	Operator
)

// Identity is who is asking: the one SPIFFE id of a client certificate (design/wire.md, Transport).
type Identity struct {
	Role Role
	Name string // the hostname, or the operator's name

	issued  time.Time // the certificate's notBefore
	expires time.Time
}

var operatorName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

// Identify reads the identity out of a client certificate. It looks at the certificate alone: that its
// chain leads to the fleet's CA, its validity and revocation are checked elsewhere. A certificate of
// another shape is nobody's, and the error says why.
func Identify(cert *x509.Certificate, trustDomain string) (Identity, error) {
	id := Identity{issued: cert.NotBefore, expires: cert.NotAfter}
	if cert.IsCA {
		return Identity{}, errors.New("is a CA's")
	}
	if len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth || len(cert.UnknownExtKeyUsage) > 0 {
		return Identity{}, errors.New("is not for clientAuth and nothing else")
	}
	uri, err := onlyURI(cert)
	if err != nil {
		return Identity{}, err
	}
	path, ok := strings.CutPrefix(uri, "spiffe://"+trustDomain+"/")
	if !ok {
		return Identity{}, fmt.Errorf("is of another trust domain than %s", trustDomain)
	}
	role, name, _ := strings.Cut(path, "/")
	switch {
	case role == "host" && fleet.ValidHostname(name):
		id.Role, id.Name = Host, name
	case role == "operator" && operatorName.MatchString(name):
		id.Role, id.Name = Operator, name
	default:
		return Identity{}, errors.New("names neither a host nor an operator")
	}
	return id, nil
}

var (
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	errOneURI         = errors.New("has not exactly one subject alternative name, a URI")
)

// onlyURI returns the one name of the subject alternative name extension. It reads the extension
// itself, since crypto/x509 drops the kinds of names that it does not know.
func onlyURI(cert *x509.Certificate) (string, error) {
	const tagURI = 6
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) > 0 || len(names) != 1 {
			return "", errOneURI
		}
		if names[0].Class != asn1.ClassContextSpecific || names[0].Tag != tagURI {
			return "", errOneURI
		}
		return string(names[0].Bytes), nil
	}
	return "", errOneURI
}

// Revocations are the certificates that are no longer good: those of a host or an operator that were
// issued before a time. A nil one revokes nothing. It may be used concurrently.
type Revocations struct{ hosts, operators map[string]time.Time }

// NewRevocations indexes a list; where a name is on it twice the later time counts.
func NewRevocations(list api.Revocations) *Revocations {
	r := &Revocations{hosts: map[string]time.Time{}, operators: map[string]time.Time{}}
	for _, h := range list.Hosts {
		r.hosts[h.Hostname] = later(r.hosts[h.Hostname], h.CertificatesIssuedBefore)
	}
	for _, o := range list.Operators {
		r.operators[o.Name] = later(r.operators[o.Name], o.CertificatesIssuedBefore)
	}
	return r
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// HostCutoff returns the time before which certificates of host are revoked, or the zero time.
func (r *Revocations) HostCutoff(host string) time.Time {
	if r == nil {
		return time.Time{}
	}
	return r.hosts[host]
}

func (r *Revocations) revoked(id Identity) bool {
	if r == nil {
		return false
	}
	cutoff := r.hosts[id.Name]
	if id.Role == Operator {
		cutoff = r.operators[id.Name]
	}
	return id.issued.Before(cutoff)
}
