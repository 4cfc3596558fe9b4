// Package server is the control plane's HTTPS side: TLS 1.3, who is asking, what one client may use up,
// and every endpoint of design/wire.md that there is.
//
// It authenticates every request, also on connections that were open before a certificate was revoked
// or the CA changed; it bounds what comes in (connections, handshakes, headers, bodies, requests at a
// time) and answers every error as a problem document. It decides nothing about rollouts: what hosts
// say goes to Core (internal/controlplane/writer), which answers once it is on disk, and what operators
// see comes from Views. Certificates are issued by internal/controlplane/enroll.
//
// # Parking
//
// A fleet is mostly agents that wait, so a parked poll costs little: on HTTP/1.1 the connection is taken
// from net/http while it waits, with its goroutine and buffers, and given back to net/http for the next
// request once the poll is answered (park.go). A peer that goes away while it is parked is noticed when
// the wait is over, or when it polls again; a dispatch is offered until it is acknowledged, so nothing
// is lost. On HTTP/2 a parked poll is an ordinary blocked handler.
//
// internal/controlplane is its only caller.
package server
