// Package archtest holds the rules of how packages may import one another (docs/architecture.md), and
// a few habits that a compiler cannot: who may read the clock, who may end the process. It has only
// tests; they read the source with go/parser, so that the test cache notices every change.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "nixfleet.dev/nixfleet"

// pure packages decide; they do no I/O and read no clock. They import only one another and pureModules.
var pure = []string{
	"api", "internal/strictjson", "internal/fleet", "internal/manifest", "internal/trust",
	"internal/schedule", "internal/hoststate", "internal/rollout",
}

// pureModules are what pure packages may use beside the standard library.
var pureModules = []string{
	"github.com/go-json-experiment/json",
	"golang.org/x/mod/sumdb/tlog",
}

// impureStd is what no pure package imports: clocks cannot be denied by import, so calls are (below).
var impureStd = []string{
	"os", "os/exec", "os/signal", "io/ioutil", "net", "net/http", "net/url", "database/sql", "log",
	"log/slog", "math/rand", "math/rand/v2", "syscall", "path/filepath", "runtime", "sync", "context", "testing",
}

// mayNotImport says for a tree of packages which other trees it may not reach, directly or not.
var mayNotImport = map[string][]string{
	"api":                        {"internal"},
	"internal/agent":             {"internal/controlplane", "internal/release", "internal/cli", "internal/demo", "internal/rollout"},
	"internal/controlplane":      {"internal/agent", "internal/release", "internal/cli", "internal/demo"},
	"internal/release":           {"internal/agent", "internal/controlplane", "internal/cli", "internal/demo"},
	"cmd/nixfleet-agent":         {"internal/controlplane", "internal/release", "internal/cli", "internal/demo", "internal/rollout"},
	"cmd/nixfleet-control-plane": {"internal/agent", "internal/release", "internal/cli", "internal/demo"},
}

// agentModules are all that the agent links beside the standard library, each with its reason: it runs
// as root on every host. At most ten.
var agentModules = map[string]string{
	"github.com/go-json-experiment/json": "strict JSON: the standard library takes duplicate keys and bad UTF-8",
	"github.com/pelletier/go-toml/v2":    "agent.toml",
	"golang.org/x/mod":                   "Merkle proofs as the Go team's transparency logs check them",
}

type file struct {
	name    string
	syntax  *ast.File
	imports []string
	test    bool
}

// source is every Go file of the module, by the package folder relative to its root.
func source(t *testing.T) map[string][]file {
	t.Helper()
	root := filepath.Join("..", "..")
	packages := map[string][]file{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "tools") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		syntax, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return err
		}
		f := file{name: name, syntax: syntax, test: strings.HasSuffix(name, "_test.go")}
		for _, spec := range syntax.Imports {
			f.imports = append(f.imports, strings.Trim(spec.Path.Value, `"`))
		}
		rel, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		packages[filepath.ToSlash(rel)] = append(packages[filepath.ToSlash(rel)], f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

func under(pkg, tree string) bool { return pkg == tree || strings.HasPrefix(pkg, tree+"/") }

func std(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}

func TestPurePackagesStayPure(t *testing.T) {
	packages := source(t)
	for _, pkg := range pure {
		for _, f := range packages[pkg] {
			if f.test {
				continue
			}
			for _, imported := range f.imports {
				own, isOwn := strings.CutPrefix(imported, module+"/")
				switch {
				case isOwn && !slices.Contains(pure, own):
					t.Errorf("%s imports %s, which is not pure", f.name, own)
				case !isOwn && std(imported) && slices.Contains(impureStd, imported):
					t.Errorf("%s imports %s: a pure package decides and leaves I/O to its callers", f.name, imported)
				case !isOwn && !std(imported) && !slices.ContainsFunc(pureModules, func(m string) bool { return under(imported, m) }):
					t.Errorf("%s imports %s, which is not in pureModules", f.name, imported)
				}
			}
		}
	}
}

func TestImportsGoOneWay(t *testing.T) {
	packages := source(t)
	for pkg := range packages {
		reached := reach(packages, pkg)
		for tree, denied := range mayNotImport {
			if !under(pkg, tree) {
				continue
			}
			for _, other := range denied {
				for dep, via := range reached {
					if under(dep, other) {
						t.Errorf("%s reaches %s (by way of %s)", pkg, dep, via)
					}
				}
			}
		}
		for dep, via := range reached {
			if under(dep, "cmd") || (under(dep, "test") && !under(pkg, "test")) {
				t.Errorf("%s reaches %s (by way of %s)", pkg, dep, via)
			}
		}
	}
}

// reach returns the packages of the module that pkg links, each with the package that imports it.
func reach(packages map[string][]file, pkg string) map[string]string {
	reached := map[string]string{}
	queue := []string{pkg}
	for len(queue) > 0 {
		next := queue[0]
		queue = queue[1:]
		for _, f := range packages[next] {
			if f.test {
				continue
			}
			for _, imported := range f.imports {
				own, isOwn := strings.CutPrefix(imported, module+"/")
				if _, seen := reached[own]; isOwn && !seen {
					reached[own] = next
					queue = append(queue, own)
				}
			}
		}
	}
	return reached
}

func TestAgentLinksFewModules(t *testing.T) {
	source(t)
	for _, name := range []string{"go.mod", "go.sum"} {
		if _, err := os.ReadFile(filepath.Join("..", "..", name)); err != nil { // for the test cache
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/nixfleet-agent")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	linked := strings.Fields(string(out))
	slices.Sort(linked)
	linked = slices.Compact(linked)
	for _, m := range linked {
		if _, ok := agentModules[m]; !ok && m != module {
			t.Errorf("the agent links %s, which has no reason in agentModules", m)
		}
	}
	for m := range agentModules {
		if !slices.Contains(linked, m) {
			t.Errorf("the agent no longer links %s: take it off agentModules", m)
		}
	}
	if len(agentModules) > 10 {
		t.Errorf("the agent links %d modules; at most 10 are allowed", len(agentModules))
	}
}

// deniedCalls are calls that only the named trees may make, outside tests.
var deniedCalls = map[string][]string{
	"time.Now":     {"internal/clock"},
	"time.Since":   {"internal/clock"},
	"time.Until":   {"internal/clock"},
	"time.After":   {"internal/clock"},
	"time.Tick":    {"internal/clock"},
	"time.Sleep":   {},
	"os.Exit":      {"cmd"},
	"log.Fatal":    {},
	"log.Fatalf":   {},
	"slog.Default": {},
	"slog.Info":    {},
	"slog.Warn":    {},
	"slog.Error":   {},
}

func TestNobodyReadsTheClockOrEndsTheProcessBesidesItsOwner(t *testing.T) {
	for pkg, files := range source(t) {
		for _, f := range files {
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				selector, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := selector.X.(*ast.Ident)
				if !ok {
					return true
				}
				call := x.Name + "." + selector.Sel.Name
				owners, denied := deniedCalls[call]
				if !denied || f.test && call != "time.Sleep" || under(pkg, "test") && call != "time.Sleep" {
					return true
				}
				if !slices.ContainsFunc(owners, func(o string) bool { return under(pkg, o) }) {
					t.Errorf("%s uses %s", f.name, call)
				}
				return true
			})
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for pkg, files := range source(t) {
		if !slices.ContainsFunc(files, func(f file) bool { return f.syntax.Doc.Text() != "" }) {
			t.Errorf("%s has no package comment", pkg)
		}
	}
}

func TestFilesAreShort(t *testing.T) {
	const most = 500
	for _, files := range source(t) {
		for _, f := range files {
			data, err := os.ReadFile(f.name)
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Count(string(data), "\n"); lines > most {
				t.Errorf("%s has %d lines; at most %d", path.Clean(f.name), lines, most)
			}
		}
	}
}

func TestTheRulesThemselves(t *testing.T) {
	packages := source(t)
	for _, pkg := range pure {
		if len(packages[pkg]) == 0 {
			t.Errorf("pure lists %s, which is not there", pkg)
		}
	}
	if got := fmt.Sprint(std("net/http"), std("golang.org/x/mod"), under("api/x", "api"), under("apix", "api")); got != "true false true false" {
		t.Error(got)
	}
}
