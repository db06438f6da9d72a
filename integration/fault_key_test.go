package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// fakePeers is how many leases without a host are put: more than may leave together.
const fakePeers = 20

// fakeKey is the key of lease i, of 64, that no host can have: all lie in a network's first subnet, which is not leased.
func fakeKey(i int) string {
	v6 := netip.MustParsePrefix(fmt.Sprintf("fc00:5:0:0:%x00::/72", i))
	return subnetKey(fmt.Sprintf("10.5.0.%d/30", 4*i), v6.String())
}

// fakeValue is a lease's value as another host, of that number on the segment, writes it.
func fakeValue(number int) string {
	data := fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:00:00:00:00:%02x"}`, number)
	return fmt.Sprintf(`{"PublicIP":"172.30.1.%d","PublicIPv6":"fd00:30:1::%x","BackendType":"vxlan","BackendData":%s,"BackendV6Data":%s}`,
		number, number, data, data)
}

// putFakePeers makes leases that no host stands behind and waits until the hosts have them.
func (r *rig) putFakePeers(count int) {
	r.t.Helper()
	for i := range count {
		r.Put(fakeKey(i), fakeValue(200+i))
	}
	for _, h := range r.hosts {
		h.WaitPeers(count + len(r.hosts) - 1)
	}
}

// TestOwnKeyDeleted has somebody delete a host's lease: it is there again before anybody misses it.
func TestOwnKeyDeleted(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	before := r.Keys(subnetsPrefix)[keys[1]]
	measure(t, "a lease that was deleted is back", time.Second, func() {
		r.Delete(keys[1])
		eventually(t, "the key is back", func() error {
			if now := r.Keys(subnetsPrefix)[keys[1]]; now != before {
				return fmt.Errorf("it is %q", now)
			}
			return nil
		})
	})
	r.hosts[1].counted("lost")
	r.hosts[1].logs("the host's lease is lost: claiming it again")
	r.well(t, keys...)
}

// TestOwnValueOverwritten has values at a host's key that take the subnet from nobody: the host puts its own back.
func TestOwnValueOverwritten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	before := r.Keys(subnetsPrefix)[keys[1]]
	for name, value := range map[string]string{
		"garbage":                     "\x00garbage",
		"half a value":                before[:len(before)/2],
		"nothing":                     "",
		"null":                        "null",
		"flannel of the same address": before[:strings.Index(before, `,"HostID"`)] + "}",
	} {
		measure(t, name+" is put right", time.Second, func() {
			r.Put(keys[1], value)
			eventually(t, "the value is back", func() error {
				if now := r.Keys(subnetsPrefix)[keys[1]]; now != before {
					return fmt.Errorf("%s: it is %q", name, now)
				}
				return nil
			})
		})
	}
	r.well(t, keys...)
}

func vtepMAC(t testing.TB, h *Host) string {
	t.Helper()
	_, after, _ := strings.Cut(h.Exec("ip", "-o", "link", "show", "overlay.1"), "link/ether ")
	mac, _, _ := strings.Cut(after, " ")
	return mac
}

// TestAllPeersVanish deletes every key at once: no host loses a peer by it. Then one peer leaves, and is gone.
func TestAllPeersVanish(t *testing.T) {
	t.Parallel()
	for _, fake := range []int{0, fakePeers} {
		t.Run(fmt.Sprintf("%d peers", fake+1), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			keys := r.keys()
			r.putFakePeers(fake)
			r.etcd.ctl("del", "--prefix", subnetsPrefix)
			eventually(t, "the hosts have their leases again", func() error {
				if n := len(r.Keys(subnetsPrefix)); n != 2 {
					return fmt.Errorf("%d leases", n)
				}
				return nil
			})
			r.hosts[0].logs("peers vanished from etcd: keeping them for a while")
			r.hosts[0].counted("vanished")
			r.stream.Pass(3000) // three seconds
			for i, h := range r.hosts {
				h.waitWell()
				h.WaitPeers(fake + 1)
				if h.key() != keys[i] {
					t.Errorf("%s has %s, want %s as before", h.Name, h.key(), keys[i])
				}
			}
			r.stream.Stop()
		})
	}
}

// TestOnePeerLeaves has one peer of many leave: it is gone at once.
func TestOnePeerLeaves(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.putFakePeers(fakePeers)
	measure(t, "the route to one that left is gone", time.Second, func() {
		r.Delete(fakeKey(0))
		for _, h := range r.hosts {
			h.WaitPeers(fakePeers)
		}
	})
	r.stream.Stop()
}
