// Package source keeps the control plane up to date with its release repository (design/artifacts.md,
// "The release repository"; design/control-plane.md, Source).
//
// It polls the index, verifies it before it looks inside, fetches the objects that are not there yet,
// checks every digest, signature and binding, and hands the whole to the writer, or nothing of it: a
// release with anything wrong is refused loudly, and the last good one stays. What was accepted may not
// be gone back on, in the index, in revocations or in a channel's manifests; the record of that is the
// stored envelopes (records.go), which count only while the keys trusted now verify them. It also warns
// before a channel's signature ends.
//
// It rolls nothing out and serves nothing: that is internal/rollout's and package server's. Its caller is
// internal/controlplane.
package source
