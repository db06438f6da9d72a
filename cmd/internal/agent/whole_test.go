package agent

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/subnet"
)

const overlayParams = " net/ipv4/conf/overlay.1/forwarding net/ipv4/conf/overlay.1/arp_ignore net/ipv6/conf/overlay.1/accept_ra net/ipv6/conf/overlay.1/disable_ipv6"

func TestWholesOfANetwork(t *testing.T) {
	t.Parallel()
	net := netip.MustParsePrefix("10.5.0.0/16")
	for name, tt := range map[string]struct {
		config string
		peers  bool   // may come by the uplink
		params string // beside forwarding
	}{
		"vxlan":         {vxlanConfig, false, overlayParams},
		"DirectRouting": {directConfig, true, overlayParams},
		"host-gw":       {hostGWConfig, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, t.TempDir())
			uplinks := []string{"eth0", "eth1"}
			r.host = func() (Host, error) {
				h := testHost("172.30.0.11")
				h.Uplinks = slices.Clone(uplinks)
				return h, nil
			}
			r.start(t)
			r.member.tell(news(t, tt.config, nil))
			eventually(t, "the host is ready", func() bool { return r.Status().Ready })
			want := []firewall.Rule{firewall.Accept{Network: net}, firewall.Uplink{Network: net, Link: "eth0", Peers: tt.peers}, firewall.Uplink{Network: net, Link: "eth1"}}
			if diff := cmp.Diff(want, r.firewall.wanted(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
			var params []string
			for _, p := range r.sysctls.wanted() {
				params = append(params, p.Name)
			}
			if got := strings.Join(params, " "); got != "net.ipv4.ip_forward"+tt.params {
				t.Errorf("parameters %q", got)
			}
			// Another default route is another uplink, though the underlay is as before.
			r.locked(func() error { uplinks = uplinks[:1]; return nil })
			r.kernel.underlay <- struct{}{}
			eventually(t, "eth1 is no uplink any more", func() bool { return slices.Equal(r.firewall.wanted(), want[:2]) })
		})
	}
}

// A host is ready once the firewall has been as it should be; what fails later is said, and takes nothing from those who
// are served.
func TestFirewallHoldsBackReadiness(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.firewall.applied = make(chan struct{})
	hangs := task.Status{Pending: true, Err: errors.New("iptables hangs: ended after 10s")}
	r.firewall.status = hangs
	r.start(t)
	peer := record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12)
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{peer.Key(): peer}))
	eventually(t, "the peer is planned", func() bool { return len(r.kernel.routes()) == 1 })
	eventually(t, "the host says what it waits for", func() bool { return r.Status().Stage == "programming the kernel, 1 objects to go" })
	s := r.Status()
	if s.Ready || !s.Degraded || s.Kernel.InStep || s.Kernel.Pending != 1 || !slices.Equal(s.Kernel.Failed, []string{"firewall: " + hangs.Err.Error()}) {
		t.Errorf("before the firewall is there: %+v", s)
	}
	close(r.firewall.applied)
	r.firewall.becomes(task.Status{Healed: 2})
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	if s = r.Status(); s.Degraded || !s.Kernel.InStep || !maps.Equal(s.Kernel.Healed, map[string]int{"firewall": 2}) || s.Kernel.Objects["firewall"] != 2 || s.Kernel.Objects["sysctl"] != 5 {
		t.Errorf("when the firewall is there: %+v", s)
	}
	r.firewall.becomes(hangs)
	eventually(t, "the host says so", func() bool { return r.Status().Degraded })
	r.kernel.changed <- struct{}{}
	r.locked(func() error { r.behind = r.behind.Add(-2 * patience); return nil })
	r.kernel.changed <- struct{}{}
	if s = r.Status(); !s.Ready || s.Kernel.InStep {
		t.Errorf("what fails later: %+v", s)
	}
}
