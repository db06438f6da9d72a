package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// brokenGSO tells whether the kernel makes wrong datagrams of a large one where a driver has it do that: Linux 7.0 to 7.1.4 do
// (commits b10b446 and 78effd8; tailscale#19777). Whether a driver is concerned nobody can find out beforehand.
func brokenGSO() bool {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return false
	}
	var major, minor, patch int
	_, _ = fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d.%d", &major, &minor, &patch) // what it has not is 0
	return broken(major, minor, patch)
}

func broken(major, minor, patch int) bool {
	return major == 7 && (minor == 0 || minor == 1 && patch < 5)
}
