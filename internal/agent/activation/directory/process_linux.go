package directory

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent has the kernel kill the script when its helper dies.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// thisProcess returns the helper that runs this.
func thisProcess(name string) process {
	return process{Job: name, PID: os.Getpid(), Start: startOf(os.Getpid()), BootID: bootID()}
}

func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // without one there is one boot
	return strings.TrimSpace(string(id))
}

// killSession kills every process of the helper's session, and says whether there was one. lives says
// that the helper is known to. Its number may be another's by now; but a number is not given out again
// while a session has it, so the session is the helper's if one process in it certainly is of the job.
func (p process) killSession(lives bool) bool {
	if p.PID <= 1 || p.BootID != bootID() {
		return false
	}
	members := sessionOf(p.PID)
	own := lives
	for _, pid := range members {
		own = own || pid == p.PID && startOf(pid) == p.Start || startedFor(pid, p.Job)
	}
	if !own {
		return false
	}
	for _, pid := range members {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone by now
	}
	return len(members) > 0
}

// sessionOf returns the processes of a session that are not dead yet.
func sessionOf(session int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var members []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat := statOf(pid)
		if len(stat) > 3 && stat[3] == strconv.Itoa(session) && stat[0] != "Z" && stat[0] != "X" {
			members = append(members, pid)
		}
	}
	return members
}

// statOf returns the fields of /proc/<pid>/stat from the state, its third, on. The second is the name
// in brackets, which may contain anything.
func statOf(pid int) []string {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
}

// startOf returns when a process was started, in the kernel's own unit.
func startOf(pid int) string {
	if stat := statOf(pid); len(stat) > 19 {
		return stat[19]
	}
	return ""
}

// startedFor says whether a process has the job in the environment that it was started with.
func startedFor(pid int, name string) bool {
	env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	return err == nil && bytes.Contains(append([]byte{0}, env...), []byte("\x00"+jobVariable+"="+name+"\x00"))
}
