package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/fleet"
	"nixfleet.dev/nixfleet/internal/strictjson"
)

// EncodeHosts returns hosts.jsonl: one line a host, in ascending order of host names as bytes. It does
// not change lines. What it writes is what ParseHosts accepts, if the lines keep the rules.
func EncodeHosts(lines []api.HostLine) ([]byte, error) {
	sorted := slices.Clone(lines)
	slices.SortFunc(sorted, func(a, b api.HostLine) int { return strings.Compare(a.Hostname, b.Hostname) })
	var out bytes.Buffer
	for _, line := range sorted {
		data, err := json.Marshal(line)
		if err != nil {
			return nil, fmt.Errorf("encoding the line of %s: %w", line.Hostname, err)
		}
		out.Write(data)
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

// decodeLine reads one line, without its LF, and checks what can be seen in it alone.
func decodeLine(raw []byte) (api.HostLine, error) {
	line, err := readLine(raw)
	if err != nil {
		return api.HostLine{}, err
	}
	return line, checkLine(line)
}

// readLine reads the shape of a line.
func readLine(raw []byte) (api.HostLine, error) {
	if len(raw) == 0 {
		return api.HostLine{}, errors.New("is blank")
	}
	if len(raw) > api.MaxLine {
		return api.HostLine{}, fmt.Errorf("is %d bytes; at most %d are allowed", len(raw), api.MaxLine)
	}
	if line, ok := scanLine(raw); ok {
		return line, nil
	}
	// A JSON decoder allows white space around the object; a line is the object and nothing else.
	if raw[0] != '{' || raw[len(raw)-1] != '}' {
		return api.HostLine{}, errors.New("is not one JSON object")
	}
	return strictjson.Decode[api.HostLine]("line", raw, api.MaxLine)
}

func checkLine(line api.HostLine) error {
	switch {
	case !fleet.ValidHostname(line.Hostname):
		return fmt.Errorf("hostname %.80q is no host name", line.Hostname)
	case !fleet.ValidClosure(line.Closure):
		return fmt.Errorf("closure %.80q is not the base name of a store path", line.Closure)
	case line.Wave < 0:
		return fmt.Errorf("wave is %d", line.Wave)
	}
	for i, before := range line.After {
		if !fleet.ValidHostname(before) || before == line.Hostname {
			return fmt.Errorf("after.%d is no host name, or the host itself", i)
		}
	}
	for i, budget := range line.Budgets {
		if budget < 0 {
			return fmt.Errorf("budgets.%d is %d", i, budget)
		}
	}
	if i := repeated(line.After); i >= 0 {
		return fmt.Errorf("after.%d is there twice", i)
	}
	if i := repeated(line.Budgets); i >= 0 {
		return fmt.Errorf("budgets.%d is there twice", i)
	}
	return nil
}

// checkBounds checks a line against the manifest that it belongs to.
func checkBounds(line api.HostLine, waves, budgets int) error {
	if line.Wave >= waves {
		return fmt.Errorf("wave is %d, of %d waves", line.Wave, waves)
	}
	for _, budget := range line.Budgets {
		if budget >= budgets {
			return fmt.Errorf("budget %d is named, of %d budgets", budget, budgets)
		}
	}
	return nil
}
