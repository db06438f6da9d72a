package names

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// mostResolvers are asked, as libc does (resolv.conf(5)).
	mostResolvers = 3
	// shunned is how long a resolver that did not answer is asked after the others.
	shunned = 30 * time.Second
	// mostResolvConf bounds the file, in bytes.
	mostResolvConf = 64 << 10
)

// resolvers are the host's, as its resolv.conf names them at the moment.
type resolvers struct {
	path string

	mu     sync.Mutex
	seen   stamp
	all    []netip.Addr
	silent map[netip.Addr]time.Time // since when one did not answer
}

// stamp tells one state of a file from another.
type stamp struct {
	dev, ino uint64
	size     int64
	changed  syscall.Timespec
}

func newResolvers(path string) *resolvers {
	return &resolvers{path: path, silent: map[netip.Addr]time.Time{}}
}

// now are the resolvers, those that answer first, without some.
func (r *resolvers) now(without func(netip.Addr) bool) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var s syscall.Stat_t
	var current stamp
	if syscall.Stat(r.path, &s) == nil {
		current = stamp{s.Dev, s.Ino, s.Size, s.Ctim}
	}
	if current != r.seen {
		r.seen, r.all = current, readResolvConf(r.path)
		clear(r.silent)
	}
	all := slices.DeleteFunc(slices.Clone(r.all), without)
	slices.SortStableFunc(all, func(a, b netip.Addr) int { return r.shuns(a) - r.shuns(b) })
	return all
}

func (r *resolvers) shuns(a netip.Addr) int {
	if since, ok := r.silent[a]; ok && time.Since(since) < shunned {
		return 1
	}
	return 0
}

// answered takes note of whether a resolver did.
func (r *resolvers) answered(a netip.Addr, did bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if delete(r.silent, a); !did {
		r.silent[a] = time.Now()
	}
}

// readResolvConf reads the nameservers of a resolv.conf(5); none if it cannot be read.
func readResolvConf(path string) (all []netip.Addr) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	data := make([]byte, mostResolvConf)
	n, _ := f.Read(data)
	for lines := bufio.NewScanner(bytes.NewReader(data[:n])); lines.Scan() && len(all) < mostResolvers; {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !slices.Contains(all, a.Unmap()) {
			all = append(all, a.Unmap())
		}
	}
	return all
}
