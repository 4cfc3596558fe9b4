// Package attack puts a hostile party in front of a real one, over real mTLS sockets: here a control
// plane that says what it likes, in front of the real agent with its real journal and its real detached
// switches (design/security.md, "The list it is tested against").
//
// What must hold is the same for every attack: the host stays on its closure, by its own links; the
// reason is told, by its code; nothing goes round in a hot loop; and a good dispatch afterwards works.
package attack

import (
	"flag"
	"os"
	"testing"

	"nixfleet.dev/nixfleet/internal/agent/activation/directory"
)

func TestMain(m *testing.M) {
	if directory.HelperMain(os.Args) {
		return
	}
	// The tests wait much more than they compute.
	flag.Parse()
	if err := flag.Set("test.parallel", "12"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}
