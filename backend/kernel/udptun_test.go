package kernel

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// tunMaker makes links for flannel's udp that carry nothing.
type tunMaker struct {
	*inProcess
	t  *testing.T
	ns netns.NsHandle

	peers *udpPeers
}

func newTunMaker(t *testing.T, ns netns.NsHandle) tunMaker {
	return tunMaker{newInProcess(t, ns), t, ns, &udpPeers{all: map[netip.Prefix]UDPPeer{}}}
}

// udpPeers are the peers of one link.
type udpPeers struct {
	mu    sync.Mutex
	all   map[netip.Prefix]UDPPeer
	asked int // how often for all of them
}

func (m tunMaker) SetUDPPeers(_ string, put, gone []UDPPeer) error {
	m.peers.mu.Lock()
	defer m.peers.mu.Unlock()
	for _, p := range put {
		m.peers.all[p.Subnet] = p
	}
	for _, p := range gone {
		delete(m.peers.all, p.Subnet)
	}
	return nil
}

func (m tunMaker) UDPPeers(string) ([]UDPPeer, error) {
	m.peers.mu.Lock()
	defer m.peers.mu.Unlock()
	m.peers.asked++
	return slices.Collect(maps.Values(m.peers.all)), nil
}

func (m tunMaker) UDP(u UDPTun) error {
	nstest.Sh(m.t, m.ns, fmt.Sprintf("ip tuntap add %[1]s mode tun; ip link set %[1]s alias '%[2]s'; ip link set %[1]s mtu %[3]d up", u.Name, u.Alias(), u.MTU))
	return nil
}

// A link for flannel's udp is asked for where it is missing: at first, and after somebody deleted it.
func TestUDPTunIsAskedFor(t *testing.T) {
	t.Parallel()
	ns := testHost(t)
	u := UDPTun{Name: UDPName, Local: netip.MustParseAddr("192.0.2.1"), Port: 8285, MTU: 1472}
	r := startConfig(t, Config{Namespace: ns, UserSpace: newTunMaker(t, ns)})
	r.Replace("", byName(map[string][]Object{"self": {u}}))
	r.inStep()
	nstest.Sh(t, ns, "ip link delete "+u.Name)
	r.until("healed", func(s Status) bool {
		return s.Pending+len(s.Failed) == 0 && strings.Contains(nstest.Sh(t, ns, "ip -d link show"), "alias "+u.Alias())
	})
	r.stop() // before the test is over: it may be making the link yet
}

// An audit finds the peers of flannel's udp that are there, and puts back what a process has lost.
func TestUDPPeersAudited(t *testing.T) {
	t.Parallel()
	ns := testHost(t)
	u := UDPTun{Name: UDPName, Local: netip.MustParseAddr("192.0.2.1"), Port: 8285, MTU: 1472}
	made := newTunMaker(t, ns)
	peers := made.peers
	r := startConfig(t, Config{Namespace: ns, AuditEvery: 100 * time.Millisecond, UserSpace: made})
	var objs []Object
	for i := range 3 {
		objs = append(objs, UDPPeer{Link: u.Name, Subnet: wgSubnet(i + 2), Host: netip.MustParseAddr("192.0.2.2")})
	}
	r.Replace("", byName(map[string][]Object{"self": {u}, "peers": objs}))
	r.inStep()
	audited := func() {
		peers.mu.Lock()
		before := peers.asked
		peers.mu.Unlock()
		eventually(t, time.Minute, "audited twice", func() bool {
			peers.mu.Lock()
			defer peers.mu.Unlock()
			return peers.asked > before+2
		})
	}
	audited()
	if healed := r.Status().Healed; len(healed) > 0 {
		t.Errorf("healed %v, and nothing was lost", healed)
	}
	peers.mu.Lock()
	delete(peers.all, wgSubnet(3))
	peers.mu.Unlock()
	r.healedTo(KindPeer, 1)
	r.stop() // before the test is over: it may be making the link yet
}
