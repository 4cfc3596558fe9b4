// Package enroll issues host certificates: the first one for an enrollment token, and the next one for
// the certificate before (design/artifacts.md, "Enrollment token"; design/wire.md, Certificates).
//
// Of a certificate request it takes the public key alone; the name is the token's, or that of the
// certificate that was shown. A token without a key of its own serves one key, which is on disk before
// the answer. It does not listen: package server is what calls it, internal/controlplane makes it.
package enroll
