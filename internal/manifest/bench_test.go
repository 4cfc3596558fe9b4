package manifest_test

import (
	"testing"

	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

func BenchmarkParseHosts(b *testing.B) {
	r := manifesttest.New(manifesttest.Options{Hosts: 100_000})
	b.SetBytes(int64(len(r.HostsFile)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := manifest.ParseHosts(r.HostsFile, 2, 0); err != nil {
			b.Fatal(err)
		}
	}
}
