package manifest_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"nixfleet.dev/nixfleet/api"
	"nixfleet.dev/nixfleet/internal/manifest"
	"nixfleet.dev/nixfleet/internal/manifest/manifesttest"
	"nixfleet.dev/nixfleet/internal/trust"
)

var aClosure = manifesttest.Closure("a", "1")

func TestHostsAreWhatWasEncoded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := drawLines(t, 0, 40)
		shuffled := rapid.Permutation(lines).Draw(t, "order")
		data, err := manifest.EncodeHosts(shuffled)
		if err != nil {
			t.Fatal(err)
		}
		hosts, err := manifest.ParseHosts(data, 5, 3)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if hosts.Len() != len(lines) || hosts.Set().Size != int64(len(lines)) || hosts.Set().SHA256 != trust.Digest(data) {
			t.Fatalf("%d lines, set %+v, of %d", hosts.Len(), hosts.Set(), len(lines))
		}
		for i, want := range lines { // drawn in ascending order
			if diff := cmp.Diff(want, hosts.Line(i)); diff != "" {
				t.Error(diff)
			}
			if at, found := hosts.Find(want.Hostname); !found || at != i || hosts.Hostname(i) != want.Hostname {
				t.Errorf("%s is at %d, found %v; want %d", want.Hostname, at, found, i)
			}
		}
		if _, found := hosts.Find("no-such-host"); found {
			t.Error("found a host that is not there")
		}
	})
}

// drawLines draws lines of different hosts, in ascending order.
func drawLines(t *rapid.T, least, most int) []api.HostLine {
	n := rapid.IntRange(least, most).Draw(t, "hosts")
	lines := make([]api.HostLine, n)
	for i := range lines {
		line := api.HostLine{
			Hostname: manifesttest.Hostname(i * 3),
			Wave:     rapid.IntRange(0, 4).Draw(t, "wave"),
			Closure:  manifesttest.Closure(manifesttest.Hostname(i), rapid.StringMatching(`[0-9A-Za-z.+_?=-]{1,20}`).Draw(t, "version")),
		}
		for j := range rapid.IntRange(0, 2).Draw(t, "after") {
			line.After = append(line.After, manifesttest.Hostname(i*3+j+1))
		}
		for j := range rapid.IntRange(0, 3).Draw(t, "budgets") {
			line.Budgets = append(line.Budgets, j)
		}
		lines[i] = line
	}
	return lines
}

func TestHostsAreRefused(t *testing.T) {
	line := func(host string) string { return `{"hostname":"` + host + `","wave":0,"closure":"` + aClosure + `"}` }
	with := func(fields string) string { return strings.Replace(line("a"), "}", fields+"}", 1) + "\n" }
	wave := func(wave string) string { return strings.Replace(line("a"), `"wave":0`, `"wave":`+wave, 1) + "\n" }
	for name, test := range map[string]struct{ data, want string }{
		"no LF at the end":        {line("a"), "line 1: does not end in LF"},
		"no LF after the second":  {line("a") + "\n" + line("b"), "line 2: does not end in LF"},
		"a blank line":            {line("a") + "\n\n" + line("b") + "\n", "line 2: is blank"},
		"only a blank line":       {"\n", "line 1: is blank"},
		"CRLF":                    {line("a") + "\r\n", "line 1: is not one JSON object"},
		"white space before":      {" " + line("a") + "\n", "line 1: is not one JSON object"},
		"two objects on a line":   {line("a") + line("b") + "\n", "line 1: "},
		"an array":                {"[" + line("a") + "]\n", "line 1: is not one JSON object"},
		"descending":              {line("b") + "\n" + line("a") + "\n", "line 2: a is not after b"},
		"a host twice":            {line("a") + "\n" + line("a") + "\n", "line 2: a is not after a"},
		"by number, not by bytes": {line("a2") + "\n" + line("a10") + "\n", "line 2: a10 is not after a2"},
		"half a line":             {line("a")[:30] + "}\n", "line 1: "},
		"a line that is too long": {with(`,"x":"` + strings.Repeat("x", api.MaxLine) + `"`), "at most 16384"},
		"a key twice":             {with(`,"wave":0`), "there twice"},
		"bad UTF-8":               {with(",\"x\":\"\xff\""), "UTF-8"},
		"no host name":            {strings.Replace(line("a"), `"a"`, `""`, 1) + "\n", "is no host name"},
		"an upper-case host":      {line("Web") + "\n", "is no host name"},
		"a path for a host":       {line("../a") + "\n", "is no host name"},
		"a long host name":        {line(strings.Repeat("a.", 127)+"a") + "\n", "is no host name"},
		"a host in escapes twice": {line("a") + "\n" + line(`\u0061`) + "\n", "line 2: a is not after a"},
		"a path for a closure":    {strings.Replace(line("a"), aClosure, "/nix/store/"+aClosure, 1) + "\n", "is not the base name"},
		"no closure":              {strings.Replace(line("a"), aClosure, "", 1) + "\n", "is not the base name"},
		"a wave that is not":      {wave("2"), "wave is 2, of 2 waves"},
		"a negative wave":         {wave("-1"), "wave is -1"},
		"half a wave":             {wave("0.5"), "wave"},
		"a wave with a zero":      {wave("01"), "line 1: "},
		"a huge wave":             {wave("9007199254740992"), "wave"},
		"a null wave":             {wave("null"), "null"},
		"no wave":                 {strings.Replace(line("a"), `"wave":0,`, "", 1) + "\n", "wave: is missing"},
		"a budget that is not":    {with(`,"budgets":[1]`), "budget 1 is named, of 1 budgets"},
		"a negative budget":       {with(`,"budgets":[-1]`), "budgets.0 is -1"},
		"a budget twice":          {with(`,"budgets":[0,0]`), "budgets.1 is there twice"},
		"after itself":            {with(`,"after":["a"]`), "after.0 is no host name, or the host itself"},
		"after nobody":            {with(`,"after":["b",""]`), "after.1 is no host name"},
		"after one twice":         {with(`,"after":["b","b"]`), "after.1 is there twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := manifest.ParseHosts([]byte(test.data), 2, 1)
			wantRefusal(t, err, api.CodeMalformed, test.want)
		})
	}
	_, err := manifest.ParseHosts(make([]byte, api.MaxHosts+1), 2, 1)
	wantRefusal(t, err, api.CodeTooLarge, "hosts.jsonl")
}

func TestHostsOfAnyLayoutAreReadAndKeptAsTheyAre(t *testing.T) {
	data := []byte(`{ "wave" : 1, "news":{"x":[1]}, "closure":"` + aClosure + `", "hostname":"\u0061", "after":[] }` + "\n")
	hosts, err := manifest.ParseHosts(data, 2, 0)
	if err != nil {
		t.Fatal(err)
	}
	if line := hosts.Line(0); line.Hostname != "a" || line.Wave != 1 || line.Closure != aClosure {
		t.Errorf("got %+v", line)
	}
	if p := hosts.Proof(0); p.Line+"\n" != string(data) || string(hosts.Bytes()) != string(data) {
		t.Errorf("the line is given as %s", p.Line)
	}
}

func TestNoHostsAreAnEmptyTree(t *testing.T) {
	hosts, err := manifest.ParseHosts(nil, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	const emptyTree = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" // SHA-256 of nothing, RFC 6962 §2.1
	if set := hosts.Set(); set.Size != 0 || set.MerkleRoot != emptyTree {
		t.Errorf("got %+v", set)
	}
	wantRefusal(t, manifest.VerifyProof(api.HostProof{}, hosts.Set()), api.CodeNotInManifest, "line 0 of 0")
}

func FuzzParseHosts(f *testing.F) {
	f.Add(manifesttest.New(manifesttest.Options{Hosts: 3}).HostsFile)
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"hostname":"a","wave":0,"closure":"` + aClosure + `","after":["b"],"budgets":[0,1]}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		hosts, err := manifest.ParseHosts(data, 2, 2)
		if err != nil {
			if trust.CodeOf(err) == "" {
				t.Errorf("%v is no refusal", err)
			}
			return
		}
		lines := make([]api.HostLine, hosts.Len())
		for i := range lines {
			lines[i] = hosts.Line(i)
			if err := manifest.VerifyProof(hosts.Proof(i), hosts.Set()); err != nil {
				t.Errorf("the proof of line %d: %v", i, err)
			}
		}
		again, err := manifest.EncodeHosts(lines)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.ParseHosts(again, 2, 2); err != nil {
			t.Errorf("what was read cannot be read again: %v\n%s", err, again)
		}
	})
}
