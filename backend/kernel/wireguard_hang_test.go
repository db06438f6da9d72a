package kernel

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// A process of a link that hangs is waited for once, and not once for each peer: all else goes on.
func TestWireGuardProcessHangs(t *testing.T) {
	t.Parallel()
	a, _ := pair(t)
	h := startWG(t, a, wgLink())
	h.inStepWith(h.self(1)...)
	if h.users.devices[h.link.Name] == nil {
		return // the kernel carries it
	}
	h.users.hangUp(h.link.Name)
	hangs, err := net.Listen("unix", "/run/wireguard/"+h.link.Name+".sock")
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	objs := append(h.self(1), Unreachable{Dst: netip.MustParsePrefix("203.0.113.0/24")})
	for i := range 8 {
		objs = append(objs, h.peer(2+i, newSecret(), "192.0.2.2:51820"))
	}
	h.Replace("", byName(map[string][]Object{"self": objs}))
	eventually(t, 3*wgPatience, "there a route", func() bool { return strings.Contains(routes(t, a), "203.0.113.0/24") })
}

func routes(t *testing.T, ns netns.NsHandle) string {
	t.Helper()
	return nstest.Sh(t, ns, "ip route show")
}

// inStepWith waits until the host has objects, and no others.
func (h *wgHost) inStepWith(objs ...Object) {
	h.t.Helper()
	h.Replace("", byName(map[string][]Object{"self": objs}))
	h.until("in step", func(s Status) bool { return s.InStep })
	time.Sleep(10 * time.Millisecond)
}
