package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Key implements Object.
func (s Sysctl) Key() Key { return Key{name: s.Name} }

// Kind implements Object.
func (Sysctl) Kind() Kind { return KindSysctl }

func (s Sysctl) String() string { return fmt.Sprintf("sysctl -w %s=%s", s.Name, s.Value) }

// path is the file of the parameter. As sysctl(8) reads names: where the first separator is a dot, dots separate and
// a slash stands for a dot (net.ipv6.conf.overlay/1.accept_ra is of the link overlay.1); where it is a slash, slashes
// separate and dots are themselves.
func (s Sysctl) path() (string, error) {
	name := s.Name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("%q names no kernel parameter", s.Name)
	}
	return filepath.Join("/proc/sys", name), nil
}

// read is the value as the kernel shows it, with single blanks between its parts.
func (s Sysctl) read() (string, error) {
	path, err := s.path()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	return oneBlank(string(b)), err
}

func (s Sysctl) write() error {
	path, err := s.path()
	if err != nil {
		return err
	}
	// No O_CREATE: under /proc it turns "no such file" into a misleading "permission denied".
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(s.Value)
	return errors.Join(err, file.Close())
}

func oneBlank(s string) string { return strings.Join(strings.Fields(s), " ") }

// change is what a parameter was before we first wrote it, and what we wrote. It is given back with another, if it was
// written for the sake of that.
type change struct {
	found, wrote Sysctl
	with         string
}

// sysctls holds kernel parameters of one network namespace. It is for one goroutine.
type sysctls struct {
	ns      netns.NsHandle
	desired map[string]Sysctl
	changes map[string]change
}

func newSysctls(ns netns.NsHandle) *sysctls {
	return &sysctls{ns: ns, desired: map[string]Sysctl{}, changes: map[string]change{}}
}

// apply writes the desired parameters that differ, all it can, and gives those back that are no longer desired. Where
// there is no such parameter, for a link that does not exist say, the error is fs.ErrNotExist and names it.
func (c *sysctls) apply(_ context.Context, desired []Object) error {
	next := make(map[string]Sysctl, len(desired))
	for _, o := range desired {
		s, ok := o.(Sysctl)
		if !ok {
			return fmt.Errorf("%s is not a kernel parameter", o)
		}
		next[s.Name] = s
	}
	c.desired = next
	return rtnl.InNetns(c.ns, func() error {
		var errs []error
		for name, was := range c.changes {
			if _, ok := next[was.with]; !ok {
				errs = append(errs, c.restore(name))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(next)) {
			errs = append(errs, c.set(next[name]))
		}
		return errors.Join(errs...)
	})
}

func (c *sysctls) set(s Sysctl) error {
	now, err := s.read()
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", s.Name, err)
	}
	if now == oneBlank(s.Value) {
		return nil
	}
	if _, again := c.changes[s.Name]; s.Name == forwarding6 && s.Value == "1" && !again {
		if err := c.keepRouters(); err != nil {
			return err
		}
	}
	return c.change(s, now, s.Name)
}

// change writes a parameter that is now as it says, and remembers it.
func (c *sysctls) change(s Sysctl, now, with string) error {
	if err := s.write(); err != nil {
		return fmt.Errorf("sysctl %s: %w", s.Name, err)
	}
	found := Sysctl{Name: s.Name, Value: now}
	if before, ok := c.changes[s.Name]; ok {
		found = before.found
	}
	c.changes[s.Name] = change{found: found, wrote: s, with: with}
	return nil
}

// forwarding6 makes the host an IPv6 router.
const forwarding6 = "net.ipv6.conf.all.forwarding"

// keepRouters is for the moment before forwarding is turned on. A host that forwards hears router advertisements only
// where accept_ra is 2 (Documentation/networking/ip-sysctl.rst), and forgets the default routes that it has of them
// elsewhere. So every link that hears them goes on, and those that come later, for which default stands. What anybody
// says afterwards is his.
func (c *sysctls) keepRouters() error {
	links, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return fmt.Errorf("IPv6: %w", err)
	}
	var errs []error
	for _, link := range links { // all, which is among them, bears on none
		dir := "net/ipv6/conf/" + link.Name() + "/"
		forwards, err := Sysctl{Name: dir + "forwarding"}.read()
		accepts, otherErr := Sysctl{Name: dir + "accept_ra"}.read()
		if err == nil && otherErr == nil && forwards == "0" && accepts == "1" && link.Name() != "all" {
			errs = append(errs, c.change(Sysctl{Name: dir + "accept_ra", Value: "2"}, accepts, forwarding6))
		}
	}
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, fs.ErrNotExist) })...)
}

// prepareIPv6 lets a link of ours have IPv6 where it is to carry it, also on a host that has it off for new links, and
// has it hear no router: peers are none.
func prepareIPv6(ns netns.NsHandle, v Link) error {
	return rtnl.InNetns(ns, func() error {
		dir := "net/ipv6/conf/" + v.name() + "/"
		params := []Sysctl{{dir + "accept_ra", "0"}}
		if v.inner6() {
			params = append(params, Sysctl{dir + "disable_ipv6", "0"})
		}
		for _, s := range params {
			now, err := s.read()
			if err == nil && now != s.Value {
				err = s.write()
			}
			// Where they cannot be written, others have seen to them, or the addresses will say so.
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("sysctl %s: %w", s.Name, err)
			}
		}
		return nil
	})
}

// restore gives a parameter the value it had before we first wrote it, unless somebody has written it since.
func (c *sysctls) restore(name string) error {
	was := c.changes[name]
	now, err := was.wrote.read()
	if err == nil && now == oneBlank(was.wrote.Value) {
		err = was.found.write()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sysctl %s: %w", name, err)
	}
	delete(c.changes, name)
	return nil
}

// drifted names the desired parameters that have another value or are gone.
func (c *sysctls) drifted(context.Context) ([]string, error) {
	var names []string
	err := rtnl.InNetns(c.ns, func() error {
		for name, s := range c.desired {
			now, err := s.read()
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("sysctl %s: %w", name, err)
			}
			if err != nil || now != oneBlank(s.Value) {
				names = append(names, name)
			}
		}
		return nil
	})
	slices.Sort(names)
	return names, err
}

// remove gives back every parameter that this process has changed. Those that an earlier run changed stay: nobody
// knows what they were.
func (c *sysctls) remove(context.Context) error {
	clear(c.desired)
	return rtnl.InNetns(c.ns, func() error {
		var errs []error
		for name := range maps.Clone(c.changes) {
			errs = append(errs, c.restore(name))
		}
		return errors.Join(errs...)
	})
}
