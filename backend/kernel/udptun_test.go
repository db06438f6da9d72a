package kernel

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// tunMaker makes links for flannel's udp that carry nothing.
type tunMaker struct {
	*inProcess
	t  *testing.T
	ns netns.NsHandle
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
	r := startConfig(t, Config{Namespace: ns, UserSpace: tunMaker{newInProcess(t, ns), t, ns}})
	r.Replace("", byName(map[string][]Object{"self": {u}}))
	r.inStep()
	nstest.Sh(t, ns, "ip link delete "+u.Name)
	r.until("healed", func(s Status) bool {
		return s.Pending+len(s.Failed) == 0 && strings.Contains(nstest.Sh(t, ns, "ip -d link show"), "alias "+u.Alias())
	})
	r.stop() // before the test is over: it may be making the link yet
}
