package main

import (
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/cmd/internal/api"
)

// pinDir is where the unit has the programs of the fast path pinned for a daemon that may load none.
const pinDir = "/sys/fs/bpf/overlayd"

// pinned is where to take the programs from; empty: this process may load them.
func pinned() string {
	if may(unix.CAP_SYS_ADMIN) || may(unix.CAP_BPF) && may(unix.CAP_PERFMON) {
		return ""
	}
	return pinDir
}

// may says whether the process has a capability.
func may(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[capability/32].Effective>>(capability%32)&1 == 1
}

// loadFastPath loads and pins the programs, if they may be used, else removes them.
func (c *config) loadFastPath() error {
	if c.fastPath == api.FastPathOff {
		return fastpath.Remove(pinDir)
	}
	return fastpath.Load(pinDir)
}
