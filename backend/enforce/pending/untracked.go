package pending

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"slices"
)

// Untracked says that conntrack knows no connection with any of the addresses. As long as they are pending it will know none: what
// is dropped is not tracked. To read this list takes 0.3 ms where to dump it by netlink takes 10, for 262,144 buckets of which few
// have anything; but it is root's, and there where the kernel has CONFIG_NF_CONNTRACK_PROCFS.
func Untracked(addrs []netip.Addr) bool {
	list, err := os.Open("/proc/thread-self/net/nf_conntrack")
	if err != nil {
		return false
	}
	defer list.Close()
	var parties [][]byte
	for _, a := range addrs {
		parties = append(parties, []byte("="+a.StringExpanded()+" "))
	}
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		if slices.ContainsFunc(parties, func(p []byte) bool { return bytes.Contains(lines.Bytes(), p) }) {
			return false
		}
	}
	return lines.Err() == nil
}
