package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
)

// Owner is whose an address is in a pool, as host-local writes it.
type Owner struct {
	ContainerID, IfName string
}

func (o Owner) text() string { return o.ContainerID + disk.LineBreak + o.IfName }

// Reserve takes one address of a family for the attachment's owner, for a runtime that asks for addresses by themselves: the
// wanted one, or if that is not valid the next that is free. The prefix has the length of the pool's range.
func (a *Attachment) Reserve(ctx context.Context, v6 bool, wanted netip.Addr) (netip.Prefix, error) {
	for i, set := range a.pool.Ranges {
		if (set[0].Subnet.IP.To4() == nil) != v6 {
			continue
		}
		if wanted.IsValid() && !set.Contains(wanted.AsSlice()) {
			return netip.Prefix{}, fmt.Errorf("no address: %s is not of this host's subnet %s", wanted, set)
		}
		s, err := openStore(ctx, a.pool.DataDir, a.pool.Name)
		if err != nil {
			return netip.Prefix{}, err
		}
		defer s.Close()
		ip, err := allocator.NewIPAllocator(&set, s, i).Get(a.ID, a.IfName, wanted.AsSlice())
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("no address: %w", err)
		}
		return netip.ParsePrefix(ip.Address.String())
	}
	return netip.Prefix{}, fmt.Errorf("no address: the host's lease has no IPv%d subnet", map[bool]int{false: 4, true: 6}[v6])
}

// Pass makes an address of a pool another owner's, or nobody's if that is [Owner]{}, and says whether it is that now: it is not
// if it was neither of the two's before. It can be repeated.
func Pass(ctx context.Context, dir, pool string, addr netip.Addr, from, to Owner) (bool, error) {
	file := filepath.Join(dir, pool, addr.String())
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return to == Owner{}, nil // and there may be no such pool
	}
	s, err := openStore(ctx, dir, pool)
	if err != nil {
		return false, err
	}
	defer s.Close()
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return to == Owner{}, nil
	}
	if err != nil {
		return false, err
	}
	switch now := strings.TrimSpace(string(data)); {
	case to != Owner{} && now == to.text():
		return true, nil
	case now != from.text():
		return false, nil
	case to == Owner{}:
		return true, os.Remove(file)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return false, err
	}
	defer f.Close()
	// One write, of whatever length: a file that is empty, or half one owner's, would be nobody's. What surrounds the text is of no account.
	_, err = f.WriteAt([]byte(to.text()+strings.Repeat("\n", max(0, len(data)-len(to.text())))), 0)
	return err == nil, err
}
