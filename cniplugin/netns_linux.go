package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// netnsID tells which network namespace path leads to, and the boot it is of, or returns an error if there is none.
//
// A path alone does not: runtimes use /proc/<pid>/ns/net, and when that process is gone its pid can be another's,
// in the host's own namespace even, where a DEL of eth0 would take the host off its network.
func netnsID(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return "", fmt.Errorf("%s has no inode", path)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s/%d:%d", strings.TrimSpace(string(boot)), stat.Dev, stat.Ino), nil
}

// netnsNow returns the path under which the attachment's namespace can be entered now, given what the runtime says
// it is, which may be nothing; "" if it is gone. What is in any other namespace is not this attachment's.
func (a attachment) netnsNow(given string) string {
	if a.NetnsID == "" {
		return given // the attachment was reconstructed: there is nothing to compare with
	}
	for _, path := range []string{given, a.Netns} {
		if id, err := netnsID(path); err == nil && id == a.NetnsID {
			return path
		}
	}
	return ""
}
