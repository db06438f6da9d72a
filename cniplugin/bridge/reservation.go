package bridge

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
	"golang.org/x/sys/unix"
)

// YoungReservation is the age below which an address that nobody has is not taken for a leak: a plugin may be about to
// give it to a container. What is from before the host started is never young.
const YoungReservation = 10 * time.Minute

// Reservation is a file of host-local: an address, and whose it is.
type Reservation struct {
	Address             netip.Addr
	ContainerID, IfName string // empty if a power loss has taken what stood there
	Young               bool   // so that a plugin may be about to give it to a container

	path string
}

// reservations reads a pool. One that does not exist is empty.
func reservations(dir, pool string) ([]Reservation, error) {
	entries, err := os.ReadDir(filepath.Join(dir, pool))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var uptime unix.Sysinfo_t
	if err := unix.Sysinfo(&uptime); err != nil {
		return nil, err
	}
	recent := min(YoungReservation, time.Duration(uptime.Uptime)*time.Second)
	var found []Reservation
	for _, e := range entries {
		address, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // the lock, or which address was given last
		}
		path := filepath.Join(dir, pool, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		id, ifName, _ := strings.Cut(strings.TrimSpace(string(data)), disk.LineBreak)
		found = append(found, Reservation{address, id, ifName, time.Since(info.ModTime()) < recent, path})
	}
	return found, nil
}

// Pools names those that there are in dir.
func Pools(dir string) []string {
	var names []string
	entries, _ := os.ReadDir(dir) // there may be none
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// Free frees the reservations of a pool for which leaked, which is asked under the pool's lock, and returns them. With dryRun
// it changes nothing.
func Free(ctx context.Context, dir, pool string, dryRun bool, leaked func(Reservation) bool) ([]Reservation, error) {
	if _, err := os.Stat(filepath.Join(dir, pool)); err != nil {
		return nil, nil // it has never given an address
	}
	s, err := openStore(ctx, dir, pool)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	all, err := reservations(dir, pool)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(r Reservation) bool { return !leaked(r) })
	for i, r := range all {
		if dryRun {
			break
		}
		if err := os.Remove(r.path); err != nil {
			return all[:i], err
		}
	}
	return all, nil
}

// Release frees what a container's interface has, in all of the pools.
func Release(ctx context.Context, dir string, pools []string, containerID, ifName string) error {
	for _, pool := range pools {
		s, err := openStore(ctx, dir, pool)
		if err != nil {
			return err
		}
		if err := errors.Join(s.ReleaseByID(containerID, ifName), s.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Held lists what a container's interface has, in all of the pools.
func Held(dir string, pools []string, containerID, ifName string) ([]netip.Addr, error) {
	var found []netip.Addr
	for _, pool := range pools {
		all, err := reservations(dir, pool)
		if err != nil {
			return nil, err
		}
		for _, r := range all {
			if r.ContainerID == containerID && r.IfName == ifName {
				found = append(found, r.Address)
			}
		}
	}
	return found, nil
}

// Move moves the reservations of addresses in subnets from one pool into another. An address that is held in both stays
// in both, since it is two containers'. A pool that is left empty is removed.
func Move(ctx context.Context, dir, from, to string, subnets []netip.Prefix) error {
	if _, err := os.Lstat(filepath.Join(dir, from)); err != nil || from == to {
		return nil // the usual case
	}
	old, err := openStore(ctx, dir, from)
	if err != nil {
		return err
	}
	defer old.Close()
	target, err := openStore(ctx, dir, to)
	if err != nil {
		return err
	}
	defer target.Close()
	all, err := reservations(dir, from)
	if err != nil {
		return err
	}
	left := 0
	for _, r := range all {
		moved := filepath.Join(dir, to, filepath.Base(r.path))
		if !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Masked().Contains(r.Address) }) {
			left++
			continue
		}
		if err := os.Link(r.path, moved); errors.Is(err, fs.ErrExist) && !sameFile(r.path, moved) {
			left++
			continue
		} else if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.Remove(r.path); err != nil {
			return err
		}
	}
	if left == 0 {
		removePool(filepath.Join(dir, from))
	}
	return nil
}

// removePool removes what host-local has made, and the directory if there is nothing else in it.
func removePool(dir string) {
	last, _ := filepath.Glob(filepath.Join(dir, "last_reserved_ip.*")) // the pattern is good
	for _, path := range append(last, filepath.Join(dir, "lock"), dir) {
		_ = os.Remove(path) // what stays is in nobody's way
	}
}

// sameFile says whether a move was interrupted between its two steps.
func sameFile(a, b string) bool {
	first, err := os.Lstat(a)
	second, other := os.Lstat(b)
	return err == nil && other == nil && os.SameFile(first, second)
}
