package probe

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nixfleet.dev/nixfleet/api"
)

func TestTheContractsExampleLoads(t *testing.T) {
	set, err := Load("testdata/health-checks.json")
	if err != nil || len(set.Probes) != 5 {
		t.Fatalf("%+v, %v", set, err)
	}
	if evidence := set.Probes[4]; evidence.Timeout.Std() != defaultTimeout {
		t.Errorf("evidence times out after %v", evidence.Timeout)
	}
}

func TestAnAbsentFileIsTheEmptySet(t *testing.T) {
	set, err := Load(filepath.Join(t.TempDir(), "etc", "health-checks.json"))
	if err != nil || len(set.Probes) != 0 {
		t.Errorf("%+v, %v", set, err)
	}
}

func TestAFileThatCannotBeReadIsAnError(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.json")
	if err := os.WriteFile(large, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(large, "health-checks.json") // not absent: its folder is no folder
	for _, path := range []string{dir, large, os.DevNull, below} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestHTTPExpects200UnlessItSaysOtherwise(t *testing.T) {
	set, err := Parse("f", []byte(`{"schemaVersion":1,"probes":[{"name":"a","kind":"http","mode":"enforce","interval":"15s","timeout":"3s","url":"http://h/"}]}`))
	if err != nil || set.Probes[0].ExpectStatus != 200 {
		t.Errorf("%+v, %v", set, err)
	}
}

func TestParseRefuses(t *testing.T) {
	with := func(field, value string) string {
		fields := map[string]string{"name": `"a"`, "kind": `"tcp"`, "mode": `"enforce"`, "interval": `"15s"`, "timeout": `"3s"`, "address": `"h:1"`}
		if value == "" {
			delete(fields, field)
		} else {
			fields[field] = value
		}
		var parts []string
		for name, v := range fields {
			parts = append(parts, fmt.Sprintf("%q:%s", name, v))
		}
		return `{"schemaVersion":1,"probes":[{` + strings.Join(parts, ",") + `}]}`
	}
	kind := func(k, more string) string {
		return `{"schemaVersion":1,"probes":[{"name":"a","kind":"` + k + `","mode":"enforce","interval":"15s","timeout":"3s"` + more + `}]}`
	}
	for name, test := range map[string]struct{ data, want string }{
		"no JSON":               {`{`, "f: "},
		"another version":       {`{"schemaVersion":2,"probes":[]}`, "schemaVersion"},
		"no probes":             {`{"schemaVersion":1}`, "probes: is missing"},
		"a duplicate key":       {`{"schemaVersion":1,"schemaVersion":1,"probes":[]}`, "is there twice"},
		"too many":              {`{"schemaVersion":1,"probes":[` + strings.TrimSuffix(strings.Repeat(`{"name":"a","kind":"tcp","mode":"enforce","interval":"1s"},`, 65), ",") + `]}`, "at most 64"},
		"two of one name":       {strings.Replace(with("name", `"a"`), "}]", `},{"name":"a","kind":"tcp","mode":"enforce","interval":"15s","timeout":"3s","address":"h:1"}]`, 1), "probes.1.name"},
		"no name":               {with("name", `""`), "probes.0.name"},
		"a long name":           {with("name", `"`+strings.Repeat("a", 129)+`"`), "probes.0.name"},
		"a name with a newline": {with("name", `"a\nb"`), "probes.0.name"},
		"no mode":               {with("mode", ""), "mode: is missing"},
		"an unknown mode":       {with("mode", `"Enforce"`), "probes.0.mode"},
		"an unknown kind":       {with("kind", `"grpc"`), "probes.0.kind"},
		"no interval":           {with("interval", ""), "interval: is missing"},
		"a hot loop":            {with("interval", `"0s"`), "probes.0.interval"},
		"an endless interval":   {with("interval", `"25h"`), "probes.0.interval"},
		"a negative interval":   {with("interval", `"-1s"`), "negative"},
		"no timeout":            {with("timeout", ""), "probes.0.timeout"},
		"a zero timeout":        {with("timeout", `"0s"`), "probes.0.timeout"},
		"a long timeout":        {with("timeout", `"11m"`), "probes.0.timeout"},
		"no address":            {with("address", ""), "probes.0.address"},
		"no port":               {with("address", `"localhost"`), "probes.0.address"},
		"port 0":                {with("address", `"localhost:0"`), "probes.0.address"},
		"no URL":                {kind("http", ""), "probes.0.url"},
		"a file URL":            {kind("http", `,"url":"file:///etc/passwd"`), "probes.0.url"},
		"a strange status":      {kind("http", `,"url":"http://h","expectStatus":20`), "probes.0.expectStatus"},
		"no command":            {kind("exec", ""), "probes.0.command"},
		"an empty command":      {kind("exec", `,"command":[""]`), "probes.0.command"},
		"a strange exit code":   {kind("exec", `,"command":["a"],"expectExitCode":256`), "probes.0.expectExitCode"},
		"no evidence":           {kind("evidence", ""), "probes.0.path"},
		"fewer than no units":   {kind("systemd", `,"maxFailedUnits":-1`), "probes.0.maxFailedUnits"},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := Parse("f", []byte(test.data))
			if err == nil || !strings.Contains(err.Error(), test.want) || len(set.Probes) > 0 {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
		})
	}
}

func TestParseListsEveryProblem(t *testing.T) {
	_, err := Parse("f", []byte(`{"schemaVersion":1,"probes":[{"name":"","kind":"tcp","mode":"x","interval":"1ms","timeout":"1h"}]}`))
	for _, field := range []string{"name", "mode", "interval", "timeout", "address"} {
		if err == nil || !strings.Contains(err.Error(), "probes.0."+field+": ") {
			t.Errorf("%s is not in: %v", field, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	data, err := os.ReadFile("testdata/health-checks.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := Parse("f", data)
		if err == nil && (len(set.Probes) > api.MaxProbes || set.SchemaVersion != 1) {
			t.Errorf("%+v", set)
		}
	})
}
