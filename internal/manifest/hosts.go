package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/trust"
)

// Hosts is a parsed hosts.jsonl with its Merkle tree. It keeps the file's bytes and, for each line, the
// place where it ends and its host's name; lines are decoded when they are asked for. It does not change
// and may be used concurrently.
type Hosts struct {
	data  []byte
	ends  []uint32 // ends[i] is the offset of the LF of line i
	names []string
	tree  tree
	set   api.HostSet
}

// ParseHosts reads hosts.jsonl, which belongs to a manifest with so many waves and budgets, and refuses
// as malformed whatever breaks a rule of design/artifacts.md, naming the line. An empty file is a
// rollout without hosts. data must not change afterwards.
func ParseHosts(data []byte, waves, budgets int) (*Hosts, error) {
	if len(data) > api.MaxHosts {
		return nil, trust.Refuse(api.CodeTooLarge, "hosts.jsonl", "it is %d bytes; at most %d are allowed", len(data), api.MaxHosts)
	}
	n := bytes.Count(data, []byte{'\n'})
	h := &Hosts{data: data, ends: make([]uint32, 0, n), names: make([]string, 0, n), tree: newTree(n)}
	for start := 0; start < len(data); {
		length := bytes.IndexByte(data[start:], '\n')
		if length < 0 {
			return nil, refuseLine(len(h.ends), errors.New("does not end in LF"))
		}
		raw := data[start : start+length]
		line, err := decodeLine(raw)
		if err == nil {
			err = checkBounds(line, waves, budgets)
		}
		if err == nil && len(h.names) > 0 && h.names[len(h.names)-1] >= line.Hostname {
			err = fmt.Errorf("%s is not after %s", line.Hostname, h.names[len(h.names)-1])
		}
		if err != nil {
			return nil, refuseLine(len(h.ends), err)
		}
		h.ends = append(h.ends, uint32(start+length))
		h.names = append(h.names, line.Hostname)
		h.tree.append(raw)
		start += length + 1
	}
	h.set = api.HostSet{Size: int64(len(h.ends)), SHA256: trust.Digest(data), MerkleRoot: h.tree.root().String()}
	return h, nil
}

func refuseLine(i int, err error) error {
	return trust.Refuse(api.CodeMalformed, "hosts.jsonl", "line %d: %w", i+1, err)
}

// Len returns the number of hosts.
func (h *Hosts) Len() int { return len(h.ends) }

// Bytes returns the whole file.
func (h *Hosts) Bytes() []byte { return h.data }

// Raw returns line i, counted from 0, exactly as stored, without its LF.
func (h *Hosts) Raw(i int) []byte {
	start := 0
	if i > 0 {
		start = int(h.ends[i-1]) + 1
	}
	return h.data[start:h.ends[i]:h.ends[i]]
}

// Hostname returns the host of line i, which costs nothing.
func (h *Hosts) Hostname(i int) string { return h.names[i] }

// Line decodes line i.
func (h *Hosts) Line(i int) api.HostLine {
	line, err := readLine(h.Raw(i))
	if err != nil {
		// ParseHosts decoded these very bytes: whoever changed them broke its contract.
		panic(fmt.Sprintf("manifest: line %d of hosts.jsonl was changed after it was parsed: %v", i+1, err))
	}
	return line
}

// Find returns the index of hostname's line.
func (h *Hosts) Find(hostname string) (i int, found bool) {
	return slices.BinarySearch(h.names, hostname)
}

// Proof returns line i with its inclusion proof, as agents are given it.
func (h *Hosts) Proof(i int) api.HostProof {
	return api.HostProof{
		Index: int64(i),
		Size:  int64(h.Len()),
		Line:  string(h.Raw(i)),
		Proof: h.tree.proof(i),
	}
}

// Set returns what a manifest commits to.
func (h *Hosts) Set() api.HostSet { return h.set }
