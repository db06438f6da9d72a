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

// ofAll tells whether the parameter is of no single link.
func (s Sysctl) ofAll() bool {
	path, _ := s.path()
	return !strings.Contains(path, "/conf/") || strings.Contains(path, "/conf/all/")
}

func oneBlank(s string) string { return strings.Join(strings.Fields(s), " ") }

// change is what a parameter was before we first wrote it, and what we wrote.
type change struct{ found, wrote Sysctl }

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
	return inNetns(c.ns, func() error {
		var errs []error
		for name := range c.changes {
			if _, ok := next[name]; !ok {
				errs = append(errs, c.restore(name))
			}
		}
		for _, s := range inOrder(next) {
			errs = append(errs, c.set(s))
		}
		return errors.Join(errs...)
	})
}

// inOrder puts parameters of single links before those of all. Forwarding turned on for all makes the kernel forget
// the default routes that it heard of on links whose accept_ra is not 2 (addrconf_fixup_forwarding in
// net/ipv6/addrconf.c).
func inOrder(params map[string]Sysctl) []Sysctl {
	return slices.SortedFunc(maps.Values(params), func(a, b Sysctl) int {
		if a.ofAll() != b.ofAll() {
			if b.ofAll() {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
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
	if err := s.write(); err != nil {
		return fmt.Errorf("sysctl %s: %w", s.Name, err)
	}
	found := Sysctl{Name: s.Name, Value: now}
	if before, ok := c.changes[s.Name]; ok {
		found = before.found
	}
	c.changes[s.Name] = change{found: found, wrote: s}
	return nil
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
	err := inNetns(c.ns, func() error {
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
	return inNetns(c.ns, func() error {
		var errs []error
		for name := range maps.Clone(c.changes) {
			errs = append(errs, c.restore(name))
		}
		return errors.Join(errs...)
	})
}
