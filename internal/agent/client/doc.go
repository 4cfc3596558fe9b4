// Package client is how an agent talks to its control planes: one method an endpoint of design/wire.md,
// over HTTP/1.1 and TLS 1.3 with the host's own certificate.
//
// It trusts nothing that it is told. Every answer is read through a cap and within the request's own
// deadline, decoded strictly, never decompressed and never a redirect that is followed; what a control
// plane asks of the agent's patience (Retry-After) is clamped. Proxies of the environment are not used:
// what stands between a host and its control plane is a matter of the network, not of a variable.
//
// Several control planes are tried in turn, starting with the one that answered last. It does not retry
// beyond that, keeps no queue and decides nothing: the workers of internal/agent do.
package client
