package manifest_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"math/bits"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
)

// The model: RFC 6962 §2.1 word for word, with no thought of speed.

func modelSplit(n int) int { return 1 << (bits.Len(uint(n-1)) - 1) } // the largest power of two below n

func modelRoot(leaves []string) []byte {
	switch len(leaves) {
	case 0:
		return hash("")
	case 1:
		return hash("\x00" + leaves[0])
	}
	k := modelSplit(len(leaves))
	return hash("\x01" + string(modelRoot(leaves[:k])) + string(modelRoot(leaves[k:])))
}

func modelPath(i int, leaves []string) [][]byte {
	if len(leaves) == 1 {
		return nil
	}
	k := modelSplit(len(leaves))
	if i < k {
		return append(modelPath(i, leaves[:k]), modelRoot(leaves[k:]))
	}
	return append(modelPath(i-k, leaves[k:]), modelRoot(leaves[:k]))
}

func hash(s string) []byte {
	sum := sha256.Sum256([]byte(s))
	return sum[:]
}

func TestTheModelIsThatOfCertificateTransparency(t *testing.T) {
	// The test vectors of the certificate-transparency project.
	var leaves []string
	for _, leaf := range []string{"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"} {
		data, err := hex.DecodeString(leaf)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, string(data))
	}
	const want = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
	if got := hex.EncodeToString(modelRoot(leaves)); got != want {
		t.Errorf("the root is %s, want %s", got, want)
	}
}

func TestAnyProofOfAnyTreeIsTheModelsAndVerifies(t *testing.T) {
	for n := range 131 {
		hosts := manifesttest.New(manifesttest.Options{Lines: manifesttest.Lines(n, 1, "1")}).Hosts
		leaves := strings.Split(strings.TrimSuffix(string(hosts.Bytes()), "\n"), "\n")[:n]
		set := hosts.Set()
		if want := base64.StdEncoding.EncodeToString(modelRoot(leaves)); set.MerkleRoot != want {
			t.Fatalf("%d leaves: the root is %s, want %s", n, set.MerkleRoot, want)
		}
		for i := range n {
			p := hosts.Proof(i)
			if err := manifest.VerifyProof(p, set); err != nil {
				t.Fatalf("leaf %d of %d: %v", i, n, err)
			}
			path := modelPath(i, leaves)
			if len(path) != len(p.Proof) {
				t.Fatalf("leaf %d of %d: a proof of %d hashes, want %d", i, n, len(p.Proof), len(path))
			}
			for level, want := range path {
				if p.Proof[level] != base64.StdEncoding.EncodeToString(want) {
					t.Fatalf("leaf %d of %d: hash %d is not the model's", i, n, level)
				}
			}
		}
	}
}

func TestAChangedBitAnywhereInAProofIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 300).Draw(t, "hosts")
		hosts := manifesttest.New(manifesttest.Options{Lines: manifesttest.Lines(n, 1, "1")}).Hosts
		i := rapid.IntRange(0, n-1).Draw(t, "line")
		p, set := hosts.Proof(i), hosts.Set()
		change(t, &p, &set)
		if err := manifest.VerifyProof(p, set); err == nil {
			t.Errorf("still verifies: %+v in %+v", p, set)
		}
	})
}

// change changes one bit, or a whole part, of what a proof is made of.
func change(t *rapid.T, p *api.HostProof, set *api.HostSet) {
	flip := func(s string) string {
		data := []byte(s)
		data[rapid.IntRange(0, len(data)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		return string(data)
	}
	parts := []string{"line", "index", "size", "set size", "root", "one hash more"}
	if len(p.Proof) > 0 {
		parts = append(parts, "hash", "one hash less")
	}
	if len(p.Proof) > 1 {
		parts = append(parts, "hashes swapped")
	}
	switch rapid.SampledFrom(parts).Draw(t, "part") {
	case "line":
		p.Line = flip(p.Line)
	case "index":
		p.Index ^= 1 << rapid.IntRange(0, 63).Draw(t, "bit")
	case "size":
		p.Size ^= 1 << rapid.IntRange(0, 63).Draw(t, "bit")
	case "set size":
		set.Size ^= 1 << rapid.IntRange(0, 63).Draw(t, "bit")
	case "root":
		set.MerkleRoot = flip(set.MerkleRoot)
	case "one hash more":
		p.Proof = append(p.Proof, set.MerkleRoot)
	case "hash":
		at := rapid.IntRange(0, len(p.Proof)-1).Draw(t, "hash")
		p.Proof[at] = flip(p.Proof[at])
	case "one hash less":
		p.Proof = p.Proof[:len(p.Proof)-1]
	case "hashes swapped":
		p.Proof[0], p.Proof[1] = p.Proof[1], p.Proof[0]
	}
}

func TestEveryBitOfOneProofCounts(t *testing.T) {
	hosts := manifesttest.New(manifesttest.Options{Lines: manifesttest.Lines(7, 1, "1")}).Hosts
	set := hosts.Set()
	try := func(what string, s *string, p *api.HostProof) {
		good := *s
		for bit := range len(good) * 8 {
			data := []byte(good)
			data[bit/8] ^= 1 << (bit % 8)
			*s = string(data)
			if err := manifest.VerifyProof(*p, set); err == nil {
				t.Errorf("%s: bit %d does not count", what, bit)
			}
		}
		*s = good
	}
	p := hosts.Proof(5)
	try("line", &p.Line, &p)
	for i := range p.Proof {
		try("hash", &p.Proof[i], &p)
	}
	try("root", &set.MerkleRoot, &p)
	if err := manifest.VerifyProof(p, set); err != nil {
		t.Errorf("the proof was not put back: %v", err)
	}
}

func TestProofsAreCapped(t *testing.T) {
	r := manifesttest.New(manifesttest.Options{})
	good := r.Proof(manifesttest.Hostname(1))
	for name, test := range map[string]struct {
		change func(p *api.HostProof)
		code   api.Code
		want   string
	}{
		"a long line":          {func(p *api.HostProof) { p.Line = strings.Repeat(" ", api.MaxLine+1) }, api.CodeTooLarge, "at most 16384"},
		"a long proof":         {func(p *api.HostProof) { p.Proof = make([]string, api.MaxProof+1) }, api.CodeTooLarge, "at most 64"},
		"another tree's size":  {func(p *api.HostProof) { p.Size++ }, api.CodeNotInManifest, "a tree of 4 lines, not of 3"},
		"a negative index":     {func(p *api.HostProof) { p.Index = -1 }, api.CodeNotInManifest, "line -1 of 3"},
		"an index past it":     {func(p *api.HostProof) { p.Index = 3 }, api.CodeNotInManifest, "line 3 of 3"},
		"a hash that is short": {func(p *api.HostProof) { p.Proof[0] = "AAAA" }, api.CodeNotInManifest, "hash 0 of the proof is 3 bytes, not 32"},
		"a hash that is not":   {func(p *api.HostProof) { p.Proof[0] = "!" }, api.CodeNotInManifest, "hash 0 of the proof is not"},
		"a tree inside":        {func(p *api.HostProof) { p.Line = "\x01" + p.Line }, api.CodeNotInManifest, "does not lead"},
	} {
		t.Run(name, func(t *testing.T) {
			p := good
			p.Proof = append([]string(nil), good.Proof...)
			test.change(&p)
			wantRefusal(t, manifest.VerifyProof(p, r.Manifest.HostSet), test.code, test.want)
		})
	}
}

func FuzzParseProof(f *testing.F) {
	r := manifesttest.New(manifesttest.Options{Hosts: 5})
	for i := range 5 {
		f.Add(encode(f, r.Hosts.Proof(i)))
	}
	lines := strings.Split(string(r.HostsFile), "\n")
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := manifest.ParseProof(data)
		if err != nil {
			return
		}
		if manifest.VerifyProof(p, r.Manifest.HostSet) == nil && lines[p.Index] != p.Line {
			t.Errorf("%q was proven to be line %d", p.Line, p.Index)
		}
	})
}
