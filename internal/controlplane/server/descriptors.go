package server

import "golang.org/x/sys/unix"

// connectionsByDescriptors is how many connections this process may hold, with some descriptors left
// for the database and everything else.
func connectionsByDescriptors() int {
	const reserve = 512
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil || limit.Cur > defaultConnections+reserve {
		return defaultConnections
	}
	return max(int(limit.Cur)-reserve, reserve)
}
