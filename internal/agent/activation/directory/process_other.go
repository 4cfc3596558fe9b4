//go:build !linux

package directory

import (
	"os"
	"syscall"
)

// dieWithParent does nothing: only Linux has such a thing. The script of a helper that is killed goes
// on here, so kill switches by StopSwitch only.
func dieWithParent() *syscall.SysProcAttr { return nil }

// thisProcess returns the helper that runs this.
func thisProcess(name string) process { return process{Job: name, PID: os.Getpid()} }

// killSession kills the process group of a helper that is known to live, and says whether there was one.
func (p process) killSession(lives bool) bool {
	return lives && p.PID > 1 && syscall.Kill(-p.PID, syscall.SIGKILL) == nil
}
