package agent

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/subnet/leasecache"
)

// A start waits for the host's links, and looks again when they change: with what it remembers too.
func TestStartWaitsForTheUnderlay(t *testing.T) {
	t.Parallel()
	small := testHost("172.30.0.11")
	small.MTU = 100
	for name, bad := range map[string]struct {
		host Host
		err  error
		last leasecache.View
		says string
	}{
		"no link":               {err: errors.New("--iface eth9: no such link"), says: "--iface eth9: no such link"},
		"a link that is narrow": {host: small, says: "MTU"},
		"what it remembers": {
			err: errors.New("no IPv4 default route"), says: "no IPv4 default route",
			last: leasecache.View{Config: []byte(vxlanConfig), Last: record("10.5.72.0/24", "172.30.0.11", "vxlan", 0x11)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, t.TempDir())
			r.cfg.Last = bad.last
			good, looks := r.host, 0 // guarded by the agent's lock, which FindHost is called with
			r.host = func() (Host, error) { looks++; return bad.host, bad.err }
			looked := func(n int) func() bool {
				return func() bool { r.Agent.mu.Lock(); defer r.Agent.mu.Unlock(); return looks >= n }
			}
			r.start(t)
			r.member.tell(news(t, vxlanConfig, nil))
			eventually(t, "the problem is told", func() bool { return strings.Contains(r.Status().Stage, bad.says) })
			r.Agent.mu.Lock()
			before := looks
			r.Agent.mu.Unlock()
			r.kernel.underlay <- struct{}{}
			eventually(t, "it looks again", looked(before+1))
			if s := r.Status(); s.Ready || !strings.Contains(s.Stage, bad.says) || r.kernel.replaced != 0 || len(r.member.advertised) != 0 {
				t.Errorf("something was done, or not said: %+v", s)
			}
			r.Agent.mu.Lock()
			r.host = good
			r.Agent.mu.Unlock()
			r.kernel.underlay <- struct{}{}
			eventually(t, "ready", func() bool { s := r.Status(); return s.Ready && !s.Degraded })
		})
	}
}

// The addresses that peers know the host by are to stay, over a restart too.
func TestHostIsLookedForByItsAddresses(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.cfg.Last = leasecache.View{Last: record("10.5.72.0/24", "172.30.0.10", "vxlan", 0x11)}
	r.start(t)
	known := func(ip string) func() bool {
		return func() bool {
			r.Agent.mu.Lock()
			defer r.Agent.mu.Unlock()
			return slices.Equal(r.inUse, []netip.Addr{netip.MustParseAddr(ip)})
		}
	}
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "looked for by what the host remembers", known("172.30.0.10"))
	r.kernel.underlay <- struct{}{}
	eventually(t, "looked for by what it has", known("172.30.0.11"))
}
