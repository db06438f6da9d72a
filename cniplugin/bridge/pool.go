package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
)

// DefaultPools is host-local's directory of pools, one below it for each name.
const DefaultPools = "/var/lib/cni/networks"

// store is host-local's, under its lock from open to close.
type store struct {
	*disk.Store
	lock *os.File
}

// openStore opens a pool and waits for its lock until ctx ends, for which host-local's own way of locking has no means.
func openStore(ctx context.Context, dir, name string) (*store, error) {
	dir = cmp.Or(dir, DefaultPools)
	// Who may write in a directory that the operator chose must not have root wait, or make a file elsewhere.
	if info, err := os.Lstat(filepath.Join(dir, name, "lock")); err == nil && !info.Mode().IsRegular() {
		return nil, types.NewError(types.ErrIOFailure, fmt.Sprintf("ipam.dataDir: %s/%s/lock is not a file: remove it", dir, name), "")
	}
	inner, err := disk.New(name, dir)
	if err != nil {
		return nil, types.NewError(types.ErrIOFailure, fmt.Sprintf("ipam.dataDir: %v", err), "")
	}
	s := &store{Store: inner}
	if s.lock, err = os.Open(filepath.Join(dir, name, "lock")); err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	for {
		err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, s.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("ipam.dataDir: %s is locked by another plugin", s.lock.Name()), s.Close())
		case <-time.After(time.Millisecond):
		}
	}
}

// Lock does nothing: the store is locked as long as it is open.
func (s *store) Lock() error { return nil }

// Unlock does nothing; see Lock.
func (s *store) Unlock() error { return nil }

// Reserve takes an empty file for nobody's: under the lock only what was lost in a power loss, or by a kill, is empty, and no
// DEL would ever free it.
func (s *store) Reserve(id, ifName string, ip net.IP, rangeID string) (bool, error) {
	file := filepath.Join(filepath.Dir(s.lock.Name()), ip.String())
	if info, err := os.Lstat(file); err == nil && info.Size() == 0 {
		if err := os.Remove(file); err != nil {
			return false, err
		}
	}
	return s.Store.Reserve(id, ifName, ip, rangeID)
}

// GetByID finds nothing. host-local reads every reservation before it makes another, which with a thousand containers
// takes as long as all the rest, to refuse a container that has an address already. That the caller sees to: it
// detaches a container before it attaches it again.
func (s *store) GetByID(string, string) []net.IP { return nil }

// Close lets others use the pool.
func (s *store) Close() error { return errors.Join(s.lock.Close(), s.Store.Close()) }

// reserve takes an address of every range of the pool, and makes the result of it but for the interfaces.
func (a *Attachment) reserve(ctx context.Context) (*types100.Result, error) {
	s, err := openStore(ctx, a.pool.DataDir, a.pool.Name)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: a.pool.Routes, DNS: a.conf.DNS}
	var held []net.IP
	if a.Again {
		held = s.Store.GetByID(a.ID, a.IfName)
		if err := s.ReleaseByID(a.ID, a.IfName); err != nil { // to take them again, under the same lock
			return nil, err
		}
	}
	wanted := map[string]net.IP{} // asked for in one way or in two
	for _, ip := range a.pool.IPArgs {
		wanted[ip.String()] = ip
	}
	for i, set := range a.pool.Ranges {
		var chosen net.IP
		for text, ip := range wanted {
			if set.Contains(ip) {
				chosen = ip
				delete(wanted, text)
				break
			}
		}
		if i := slices.IndexFunc(held, set.Contains); chosen == nil && i >= 0 {
			chosen = held[i]
		}
		ip, err := allocator.NewIPAllocator(&set, s, i).Get(a.ID, a.IfName, chosen)
		if err != nil {
			return nil, fmt.Errorf("no address: %w", err)
		}
		ip.Interface = types100.Int(2) // the container's, of those in Add
		result.IPs = append(result.IPs, ip)
		if a.conf.DefaultGateway && !hasDefault(result.Routes, ip.Address.IP) {
			result.Routes = append(result.Routes, &types.Route{Dst: everything(ip.Address.IP), GW: ip.Gateway})
		}
	}
	if len(wanted) > 0 {
		return nil, fmt.Errorf("no address: %s not of this host's subnet",
			strings.Join(slices.Sorted(maps.Keys(wanted)), ", "))
	}
	return result, nil
}

// NoAddress says whether err is that the pool is full, or the address that was asked for is taken. host-local has no code for it.
func NoAddress(err error) bool {
	return err != nil && strings.Contains(err.Error(), "available in range set")
}

// everything is the destination of a default route in the family of ip.
func everything(ip net.IP) net.IPNet {
	if ip.To4() != nil {
		return net.IPNet{IP: net.IPv4zero, Mask: net.IPMask(net.IPv4zero)}
	}
	return net.IPNet{IP: net.IPv6zero, Mask: net.IPMask(net.IPv6zero)}
}

func hasDefault(routes []*types.Route, ip net.IP) bool {
	all := everything(ip)
	for _, r := range routes {
		if r.GW != nil && r.Dst.String() == all.String() {
			return true
		}
	}
	return false
}

// own says which files of the pool have the addresses of the container's result, and whether all of them are still its own.
// Nobody else's is looked at, which with a thousand containers takes as long as all the rest.
func (a *Attachment) own(s *store) (files []string, all bool) {
	result, err := a.prevResult()
	if err != nil {
		return nil, false
	}
	all = len(result.IPs) > 0
	for _, ip := range result.IPs {
		file := filepath.Join(filepath.Dir(s.lock.Name()), ip.Address.IP.String())
		owner, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(owner)) == a.ID+disk.LineBreak+a.IfName {
			files = append(files, file)
		} else {
			all = false
		}
	}
	return files, all
}

// release frees the container's addresses.
func (a *Attachment) release(ctx context.Context) error {
	s, err := openStore(ctx, a.pool.DataDir, a.pool.Name)
	if err != nil {
		return err
	}
	defer s.Close()
	files, all := a.own(s)
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	if all {
		return nil
	}
	return s.ReleaseByID(a.ID, a.IfName)
}
