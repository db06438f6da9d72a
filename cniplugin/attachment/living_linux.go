package attachment

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespaces are the network namespaces that exist on this host.
type Namespaces struct {
	ids       map[string]bool // as attachments name them
	addresses map[netip.Addr]bool
}

// Has says whether the attachment's namespace exists. Should it have been made since the others were looked for, it is
// found at its path. Docker says where a container will be before there is such a place: its link exists as long as its
// namespace does.
func (n Namespaces) Has(a Attachment) bool {
	return n.ids[a.NetnsID] || a.NetnsIsThere() || a.Caller == Docker && a.linkIsThere()
}

// linkIsThere says whether the host's end of the container's link exists.
func (a Attachment) linkIsThere() bool {
	if a.HostIfIndex == 0 {
		return false
	}
	link, err := netlink.LinkByIndex(a.HostIfIndex)
	return err == nil && link.Attrs().Name == a.HostIfName && strings.Contains(link.Attrs().Alias, a.ContainerID)
}

// HasAddress says whether a link in one of them has the address.
func (n Namespaces) HasAddress(a netip.Addr) bool { return n.addresses[a] }

// Living finds every network namespace that a process is in, holds open, or can see mounted. It looks twice, since
// one process may hand a namespace on to another while they are gone through.
func Living() (Namespaces, error) {
	if os.Geteuid() != 0 {
		return Namespaces{}, errors.New("only root sees all network namespaces")
	}
	var nsfs unix.Stat_t // the device that all namespaces are on
	if err := unix.Stat("/proc/self/ns/net", &nsfs); err != nil {
		return Namespaces{}, err
	}
	all := Namespaces{map[string]bool{}, map[netip.Addr]bool{}}
	for range 2 {
		s := search{found: all, nsfs: nsfs.Dev, seen: map[string]bool{}, failed: map[string]error{}, seenMounts: map[string]bool{}}
		if err := s.run(); err != nil {
			return Namespaces{}, err
		}
	}
	return all, nil
}

// search is one look for namespaces.
type search struct {
	found      Namespaces
	nsfs       uint64
	seen       map[string]bool  // by what the kernel calls the namespace, net:[<inode>]
	failed     map[string]error // of those that are there but could not be looked at, by any path so far
	seenMounts map[string]bool  // by what it calls the mount namespace
}

func (s *search) run() error {
	tasks, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		if name, err := os.Readlink(filepath.Join(task, "ns/net")); err == nil {
			s.note(name, filepath.Join(task, "ns/net"))
		}
		if name, err := os.Readlink(filepath.Join(task, "ns/mnt")); err == nil && !s.seenMounts[name] {
			s.seenMounts[name] = s.noteMounted(task)
		}
	}
	held, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	for _, path := range held {
		s.noteOpen(path)
	}
	for name, err := range s.failed { // it may be the one that matters
		return fmt.Errorf("network namespace %s: %w", name, err)
	}
	return nil
}

// note takes a namespace down. If the path leads nowhere any more, another may still lead to it.
func (s *search) note(name, path string) {
	if s.seen[name] {
		return
	}
	id, err := NetnsID(path)
	// A name that was unmounted since it was listed is an empty file until it is removed: no namespace, EINVAL.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return
	}
	if err != nil {
		s.failed[name] = err
		return
	}
	s.seen[name] = true
	delete(s.failed, name)
	s.found.ids[id] = true
	for _, address := range NetnsAddresses(path) {
		s.found.addresses[address] = true
	}
}

// noteMounted notes the network namespaces that are mounted where the task sees them. It says whether the task was there
// to the end.
func (s *search) noteMounted(task string) bool {
	data, err := os.ReadFile(filepath.Join(task, "mountinfo"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		// id, parent, device, root within the filesystem, mount point, …; proc(5)
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[3], "net:[") {
			s.note(fields[3], filepath.Join(task, "root", unescapeMount.Replace(fields[4])))
		}
	}
	_, err = os.Stat(filepath.Join(task, "root"))
	return err == nil
}

// noteOpen notes an open file if it is a network namespace. Its link will not tell, it shows the path that was opened.
func (s *search) noteOpen(path string) {
	var stat unix.Statx_t // which, other than stat, does not ask a file server that may be away
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &stat)
	if err != nil || unix.Mkdev(stat.Dev_major, stat.Dev_minor) != s.nsfs {
		return
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err == nil && kind == unix.CLONE_NEWNET {
		s.note(fmt.Sprintf("net:[%d]", stat.Ino), path)
	}
}

// unescapeMount is what mountinfo does to a path, the other way round.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// NetnsAddresses lists the addresses in a namespace that can be reached from elsewhere.
func NetnsAddresses(path string) []netip.Addr {
	found := []netip.Addr{}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return found
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return found
	}
	defer handle.Close()
	all, err := handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return found
	}
	for _, addr := range all {
		if ip, ok := netip.AddrFromSlice(addr.IP); ok && addr.Scope == unix.RT_SCOPE_UNIVERSE {
			found = append(found, ip.Unmap())
		}
	}
	return found
}
