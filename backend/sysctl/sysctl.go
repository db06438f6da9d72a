// Package sysctl holds kernel parameters of a network namespace, and gives them back.
package sysctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// Param is a kernel parameter and its value, named like net.ipv4.ip_forward; net/ipv4/conf/overlay.1/forwarding where a part
// of the name has dots.
type Param struct {
	Name, Value string
	Optional    bool // where it is not there, or may not be written, nothing depends on it
}

// Forwarding6 makes the host an IPv6 router, Forwarding4 an IPv4 one.
const (
	Forwarding4 = "net.ipv4.ip_forward"
	Forwarding6 = "net.ipv6.conf.all.forwarding"
)

// Overlay are the parameters of an overlay link, whose neighbours are all known: it forwards the IPv4 packets that come in by
// it (of IPv6 no link has a say in that: forwarding of all counts, ip6_forward in net/ipv6/ip6_output.c), answers nobody who
// asks for an address, hears no router, and takes no address of its own. One that carries IPv4 alone knows no IPv6.
func Overlay(link string, inner6 bool) []Param {
	four, six := "net/ipv4/conf/"+link+"/", "net/ipv6/conf/"+link+"/"
	params := []Param{{four + "forwarding", "1", false}, {four + "arp_ignore", "8", true}, {six + "accept_ra", "0", true}}
	if inner6 {
		// In this order, or a link that is up takes an address of its own.
		return append(params, Param{six + "addr_gen_mode", "1", true}, Param{six + "disable_ipv6", "0", true})
	}
	return append(params, Param{six + "disable_ipv6", "1", true})
}

func (s Param) String() string { return fmt.Sprintf("sysctl -w %s=%s", s.Name, s.Value) }

// path is the file of the parameter. As sysctl(8) reads names: where the first separator is a dot, dots separate and
// a slash stands for a dot (net.ipv6.conf.overlay/1.accept_ra is of the link overlay.1); where it is a slash, slashes
// separate and dots are themselves.
func (s Param) path() (string, error) {
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
func (s Param) read() (string, error) {
	path, err := s.path()
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	return oneBlank(string(b)), err
}

func (s Param) write() error {
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
	found, wrote Param
	with         string
}

// Config is what holds parameters is made of.
type Config struct {
	Namespace  netns.NsHandle // zero: the current one. It must stay open until Run returns
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
	Begin      <-chan struct{}       // closed when parameters may be touched; nil: at once
}

// New returns the task that writes the wanted parameters that differ, all it can, and gives those back that are no longer
// wanted. It listens to the kernel from now on, which tells of forwarding (RTM_NEWNETCONF); other parameters are looked at
// now and then. Those that an earlier run changed stay: nobody knows what they were.
func New(cfg Config) (*task.Task[Param], error) {
	c := newSysctls(cfg.Namespace)
	conn, err := rtnl.Dial(c.ns, rtnl.AnswersSize, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF)
	if err != nil {
		return nil, fmt.Errorf("sysctl: %w", err)
	}
	return task.New(task.Config[Param]{
		Kind: "sysctl", Apply: c.apply, Log: cfg.Log, Registerer: cfg.Registerer, Begin: cfg.Begin,
		Listen: func(ctx context.Context, nudge func()) error {
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			for ctx.Err() == nil {
				if err := conn.Listen(&sync.Mutex{}, nudges(nudge)); err != nil && ctx.Err() == nil {
					return fmt.Errorf("receive notifications: %w", err)
				}
			}
			return nil
		},
	})
}

// nudges is a listener to whom all changes are one.
type nudges func()

func (n nudges) Hear(unix.NlMsghdr, []byte) { n() }
func (n nudges) Lose()                      { n() }

// sysctls are the parameters of one network namespace. It is for one goroutine.
type sysctls struct {
	ns      netns.NsHandle
	changes map[string]change
	absent  map[string]bool // parameters of links that were not there
}

func newSysctls(ns netns.NsHandle) *sysctls {
	return &sysctls{ns: ns, changes: map[string]change{}, absent: map[string]bool{}}
}

// apply brings the parameters there, and tells how many had another value. Those of a link that is not there come with it;
// where there is no other such parameter, the error is fs.ErrNotExist and names it.
func (c *sysctls) apply(_ context.Context, want []Param) (changed int, err error) {
	next := make(map[string]Param, len(want))
	for _, s := range want {
		next[s.Name] = s
	}
	err = rtnl.InNetns(c.ns, func() error {
		var errs []error
		for name, was := range c.changes {
			if _, ok := next[was.with]; !ok {
				errs = append(errs, c.restore(name))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(next)) {
			wrote, err := c.set(next[name])
			if next[name].Optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS)) {
				err = nil
			}
			if wrote && !c.absent[name] {
				changed++
			}
			c.absent[name] = next[name].linkMissing()
			if !c.absent[name] {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	return changed, err
}

// linkMissing tells whether s is of a link that is not there.
func (s Param) linkMissing() bool {
	path, err := s.path()
	dir := filepath.Dir(path)
	if err != nil || filepath.Base(filepath.Dir(dir)) != "conf" {
		return false
	}
	_, err = os.Stat(dir)
	_, familyErr := os.Stat(filepath.Dir(dir))
	return errors.Is(err, fs.ErrNotExist) && familyErr == nil
}

func (c *sysctls) set(s Param) (wrote bool, err error) {
	now, err := s.read()
	if err != nil {
		return false, fmt.Errorf("sysctl %s: %w", s.Name, err)
	}
	if now == oneBlank(s.Value) {
		return false, nil
	}
	if _, again := c.changes[s.Name]; s.Name == Forwarding6 && s.Value == "1" && !again {
		if err := c.keepRouters(); err != nil {
			return false, err
		}
	}
	err = c.change(s, now, s.Name)
	return err == nil, err
}

// change writes a parameter that is now as it says, and remembers it.
func (c *sysctls) change(s Param, now, with string) error {
	if err := s.write(); err != nil {
		return fmt.Errorf("sysctl %s: %w", s.Name, err)
	}
	found := Param{Name: s.Name, Value: now}
	if before, ok := c.changes[s.Name]; ok {
		found = before.found
	}
	c.changes[s.Name] = change{found: found, wrote: s, with: with}
	return nil
}

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
		forwards, err := Param{Name: dir + "forwarding"}.read()
		accepts, otherErr := Param{Name: dir + "accept_ra"}.read()
		if err == nil && otherErr == nil && forwards == "0" && accepts == "1" && link.Name() != "all" {
			errs = append(errs, c.change(Param{Name: dir + "accept_ra", Value: "2"}, accepts, Forwarding6))
		}
	}
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, fs.ErrNotExist) })...)
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

// Put writes the parameters that have another value. It is for what nobody gives back.
func Put(ns netns.NsHandle, params ...Param) error {
	return rtnl.InNetns(ns, func() error {
		for _, s := range params {
			now, err := s.read()
			if err == nil && now != oneBlank(s.Value) {
				err = s.write()
			}
			if err != nil {
				return fmt.Errorf("sysctl %s: %w", s.Name, err)
			}
		}
		return nil
	})
}
