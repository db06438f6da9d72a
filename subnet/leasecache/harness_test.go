package leasecache

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/subnet"
)

const (
	host = "host-a"
	nic  = "52:54:00:00:00:01"
	raw  = "{ \"Network\": \"10.0.0.0/8\",\n \"Backend\": {\"Type\": \"vxlan\"} }\n"
)

var noon = time.Date(2026, 8, 12, 12, 0, 0, 0, time.UTC)

// clock is a clock that stands still until it is set.
type clock struct {
	mu sync.Mutex
	m  Moment
}

func newClock() *clock {
	return &clock{m: Moment{Boot: "boot-1", Up: 100 * time.Second, Wall: noon, Trusted: true}}
}

func (c *clock) now() Moment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m
}

func (c *clock) set(change func(*Moment)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.m)
}

func (c *clock) pass(d time.Duration) {
	c.set(func(m *Moment) { m.Up += d; m.Wall = m.Wall.Add(d) })
}

// record is the i-th host's lease as it was written at a revision.
func record(i int, revision int64) *subnet.Record {
	p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
	if i >= 1<<16 {
		panic("too many hosts")
	}
	return &subnet.Record{
		Lease: subnet.Lease{
			HostID: fmt.Sprintf("abcdefghijklmnopqrst%06d", i), Host: fmt.Sprintf("host-%d.example.net", i), Backend: "vxlan",
			Endpoints: []subnet.Endpoint{{
				Subnet:   p,
				PublicIP: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}),
				Data:     []byte(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:%02x:%02x","Port":8472}`, byte(i>>8), byte(i))),
			}},
		},
		CreateRevision: int64(i + 1), ModRevision: revision, LeaseID: int64(i) + 1<<40,
	}
}

func records(n int) map[string]*subnet.Record {
	all := make(map[string]*subnet.Record, n)
	for i := range n {
		r := record(i+1, int64(i+1))
		all[r.Key()] = r
	}
	return all
}

// open opens a cache that is written when the test says so.
func open(t testing.TB, dir string, c *clock) (*Cache, View) {
	t.Helper()
	cache, v := Open(dir, host, c.now)
	t.Cleanup(func() {
		cache.disk.Lock()
		defer cache.disk.Unlock()
		cache.close()
	})
	return cache, v
}

func flush(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.flush(false); err != nil {
		t.Fatal(err)
	}
}

// keys lists what a view knows of the peers, as key@revision.
func keys(v View) []string {
	list := []string{}
	for _, r := range v.Peers {
		list = append(list, fmt.Sprintf("%s@%d", r.Key(), r.ModRevision))
	}
	slices.Sort(list)
	return list
}

func sorted(peers []*subnet.Record) []*subnet.Record {
	return slices.SortedFunc(slices.Values(peers), func(a, b *subnet.Record) int { return cmp.Compare(a.Key(), b.Key()) })
}

func values(m map[string]*subnet.Record) []*subnet.Record {
	return sorted(slices.Collect(maps.Values(m)))
}

// smallDisk makes a filesystem of a size like "256k" that is mounted nowhere, and returns a path to it.
func smallDisk(t *testing.T, size string) (dir string, readOnly func(bool)) {
	t.Helper()
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal("fsopen: ", err)
	}
	defer unix.Close(fs)
	for _, err := range []error{unix.FsconfigSetString(fs, "size", size), unix.FsconfigCreate(fs)} {
		if err != nil {
			t.Fatal("fsconfig: ", err)
		}
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal("fsmount: ", err)
	}
	t.Cleanup(func() { unix.Close(mount) })
	return fmt.Sprintf("/proc/self/fd/%d", mount), func(on bool) {
		t.Helper()
		attr := &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
		if on {
			attr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		}
		if err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, attr); err != nil {
			t.Fatal("mount_setattr: ", err)
		}
	}
}

// fill takes all the room that a filesystem has left, and returns how to give it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(page)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// eventually waits for what another goroutine or process does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}
