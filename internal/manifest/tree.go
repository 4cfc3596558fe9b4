package manifest

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/trust"
)

// tree is a Merkle tree of RFC 6962 §2.1 over SHA-256: all its hashes, in tlog's order of storage.
type tree struct {
	size   int64
	hashes []tlog.Hash
}

// newTree returns an empty tree with room for n leaves.
func newTree(n int) tree {
	return tree{hashes: make([]tlog.Hash, 0, tlog.StoredHashCount(int64(n)))}
}

// append adds a leaf, and above it every subtree that it completes.
func (t *tree) append(leaf []byte) {
	h := tlog.RecordHash(leaf)
	n := t.size
	t.hashes = append(t.hashes, h)
	for level := 0; n&1 == 1; level++ {
		h = tlog.NodeHash(t.hashes[tlog.StoredHashIndex(level, n-1)], h)
		t.hashes = append(t.hashes, h)
		n >>= 1
	}
	t.size++
}

// ReadHashes implements tlog.HashReader.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		out[i] = t.hashes[at]
	}
	return out, nil
}

// root returns the hash of the whole tree.
func (t *tree) root() tlog.Hash {
	h, err := tlog.TreeHash(t.size, t)
	if err != nil {
		panic(fmt.Sprintf("manifest: root of a tree in memory: %v", err)) // ReadHashes does not fail
	}
	return h
}

// proof returns the inclusion proof of leaf i, which must be in the tree.
func (t *tree) proof(i int) []string {
	hashes, err := tlog.ProveRecord(t.size, int64(i), t)
	if err != nil {
		panic(fmt.Sprintf("manifest: proof of leaf %d of %d: %v", i, t.size, err))
	}
	out := make([]string, len(hashes))
	for i, h := range hashes {
		out[i] = h.String()
	}
	return out
}

// VerifyProof checks that p.Line is line p.Index of the hosts.jsonl that set commits to, and refuses it
// as not-in-manifest otherwise. It says nothing about what the line holds.
func VerifyProof(p api.HostProof, set api.HostSet) error {
	const what = "host line"
	root, err := parseHash(set.MerkleRoot)
	if err != nil {
		return trust.Refuse(api.CodeMalformed, "manifest", "hostSet.merkleRoot %v", err)
	}
	switch {
	case len(p.Line) > api.MaxLine:
		return trust.Refuse(api.CodeTooLarge, what, "it is %d bytes; at most %d are allowed", len(p.Line), api.MaxLine)
	case len(p.Proof) > api.MaxProof:
		return trust.Refuse(api.CodeTooLarge, what, "the proof has %d hashes; at most %d are allowed", len(p.Proof), api.MaxProof)
	case p.Size != set.Size:
		return trust.Refuse(api.CodeNotInManifest, what, "the proof is of a tree of %d lines, not of %d", p.Size, set.Size)
	case p.Index < 0 || p.Index >= p.Size:
		return trust.Refuse(api.CodeNotInManifest, what, "the proof is of line %d of %d", p.Index, p.Size)
	}
	proof := make(tlog.RecordProof, len(p.Proof))
	for i, text := range p.Proof {
		if proof[i], err = parseHash(text); err != nil {
			return trust.Refuse(api.CodeNotInManifest, what, "hash %d of the proof %v", i, err)
		}
	}
	if err := tlog.CheckRecord(proof, p.Size, root, p.Index, tlog.RecordHash([]byte(p.Line))); err != nil {
		return trust.Refuse(api.CodeNotInManifest, what, "the proof does not lead from the line to the manifest's merkleRoot")
	}
	return nil
}

// parseHash decodes a hash as artifacts spell it.
func parseHash(s string) (h tlog.Hash, err error) {
	data, err := trust.DecodeBase64(s)
	if err != nil {
		return h, err
	}
	if len(data) != len(h) {
		return h, fmt.Errorf("is %d bytes, not %d", len(data), len(h))
	}
	return tlog.Hash(data), nil
}
