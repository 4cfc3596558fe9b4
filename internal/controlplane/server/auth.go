package server

import (
	"crypto/x509"
	"sync"

	"nixfleet.dev/nixfleet/api"
)

// peer is who is at the other end of a connection. It does not change, but for the CA that its chain
// was last verified with.
type peer struct {
	id     Identity
	reason string // why a certificate is nobody's
	chain  []*x509.Certificate

	mu       sync.Mutex
	verified *loaded
}

func (s *Server) peer(chain []*x509.Certificate) *peer {
	p := &peer{chain: chain}
	if len(chain) == 0 {
		return p
	}
	id, err := Identify(chain[0], s.trustDomain)
	if err != nil {
		p.reason = "the certificate " + err.Error()
		return p
	}
	p.id = id
	return p
}

// authenticate says who p is as of now: its chain leads to the CA that is configured now, it has not
// run out and is not revoked. It is asked for every request and for every answer to a parked poll.
func (s *Server) authenticate(p *peer) (Identity, *Problem) {
	required := func(format string, args ...any) (Identity, *Problem) {
		return Identity{}, closing(Refuse(api.CodeCertificateRequired, format, args...))
	}
	now := s.clock.Now()
	switch {
	case len(p.chain) == 0:
		return required("this needs a client certificate of the fleet")
	case p.id.Role == Nobody:
		return required("%s", p.reason)
	case now.After(p.id.expires):
		return required("the certificate ended at %s", stamp(p.id.expires))
	case now.Before(p.id.issued):
		return required("the certificate begins at %s", stamp(p.id.issued))
	case s.revocations.Load().revoked(p.id):
		return Identity{}, closing(Refuse(api.CodeCertificateRevoked, "the certificate of %s, issued at %s, is revoked", p.id.Name, stamp(p.id.issued)))
	case !s.trusted(p):
		return required("the certificate does not lead to the fleet's CA")
	}
	return p.id, nil
}

// trusted verifies the chain once for each CA that comes to be configured.
func (s *Server) trusted(p *peer) bool {
	l := s.credentials.loaded.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verified != l {
		if l.verify(p.chain, s.clock.Now()) != nil {
			return false
		}
		p.verified = l
	}
	return true
}

// closing marks a problem as the last response of its connection.
func closing(p *Problem) *Problem {
	p.closing = true
	return p
}
