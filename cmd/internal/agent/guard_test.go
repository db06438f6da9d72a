package agent

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

var fullGuard = firewall.Guard{Tunnel: true, Overlay: true, Containers: true}

// guardOf is the guard as it was last wanted.
func (r *rig) guardOf() (g firewall.Guard) {
	for _, rule := range r.firewall.wanted() {
		if found, ok := rule.(firewall.Guard); ok {
			g = found
		}
	}
	return g
}

// The guard follows leases: whom it lets in, by which links and ports.
func TestGuardFollowsLeases(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.cfg.Shield.Guard = fullGuard
	r.start(t)
	let := func(want ...string) {
		t.Helper()
		slices.Sort(want)
		eventually(t, "the guard lets in "+strings.Join(want, " "), func() bool { return slices.Equal(r.elements.let(), want) })
	}
	const ours, port = `links { "overlay.1" }'`, "ports { 8472 }'"
	first, second := record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12), record("10.5.74.0/24", "172.30.0.13", "host-gw", 0)
	natted := record("10.5.75.0/24", "203.0.113.9", "vxlan", 0x14)
	natted.Endpoints[0].Data = json.RawMessage(`{"VNI":1,"VtepMAC":"02:00:00:00:00:14","Source":"172.30.0.14"}`)
	bad := record("10.5.76.0/24", "172.30.0.15", "ipsec", 0)
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{"10.5.73.0-24": first, "10.5.74.0-24": second, "10.5.75.0-24": natted, "10.5.76.0-24": bad}))
	let(ours, port, `near { "eth0" }'`, "peers4 { 172.30.0.12 }'", "peers4 { 172.30.0.13 }'", "peers4 { 203.0.113.9 }'", "peers4 { 172.30.0.14 }'")
	want := fullGuard
	want.Ranges[0] = firewall.Range{Network: netip.MustParsePrefix("10.5.0.0/16"), Local: "10.5.72.0/24"}
	want.Uplinks, want.Bare = `"eth0"`, true
	if got := r.guardOf(); got != want {
		t.Errorf("guard %+v, want %+v", got, want)
	}

	moved := record("10.5.73.0/24", "172.30.0.66", "vxlan", 0x12)
	moved.Endpoints[0].Data = json.RawMessage(`{"VNI":9,"VtepMAC":"02:00:00:00:00:12"}`)
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{"10.5.73.0-24": moved, "10.5.74.0-24": nil, "10.5.75.0-24": nil}))
	let(ours, port, "peers4 { 172.30.0.66 }'", `links { "overlay.9" }'`)
}

// What is received by for a while after the network changed is let in as long.
func TestGuardOfWhatIsRetired(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		from, to string
		let      []string
	}{
		"another port": {vxlanConfig, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":4789}}`,
			[]string{`links { "overlay.1" }'`, `links { "overlay.p4789" }'`, "ports { 4789 }'", "ports { 8472 }'"}},
		"no tunnel any more": {vxlanConfig, hostGWConfig, []string{`links { "overlay.1" }'`, `near { "eth0" }'`, "ports { 8472 }'"}},
		"a tunnel from now":  {hostGWConfig, vxlanConfig, []string{`links { "overlay.1" }'`, `near { "eth0" }'`, "ports { 8472 }'"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, t.TempDir())
			r.cfg.Shield.Guard = fullGuard
			r.start(t)
			r.member.tell(news(t, tt.from, nil))
			eventually(t, "the host is ready", func() bool { return r.Status().Ready })
			r.member.tell(news(t, tt.to, nil))
			eventually(t, "the new config is in force", func() bool { return r.Status().Network == tt.to })
			if got := r.elements.let(); !slices.Equal(got, tt.let) {
				t.Errorf("let in: %q, want %q", got, tt.let)
			}
			r.locked(func() error {
				r.latest.Own.Record.Lease = r.planner.lease("", "")
				r.unannounced = false
				r.bury(time.Now().Add(retireAfter + time.Second))
				return nil
			})
			if got := r.elements.let(); slices.Contains(got, `near { "eth0" }'`) != (tt.to == hostGWConfig) || slices.Contains(got, `links { "overlay.1" }'`) != (tt.to == vxlanConfig) {
				t.Errorf("let in in the end: %q", got)
			}
		})
	}
}

// A vxlan link of somebody else's that hears the same port is left alone.
func TestGuardLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	host := testHost("172.30.0.11")
	local := netip.MustParseAddr("172.30.0.11")
	host.Present = []kernel.Existing{
		{Link: kernel.VXLAN{Name: "flannel.7", VNI: 7, Port: 8472, Local: local}},
		{Link: kernel.VXLAN{Name: "vx5", VNI: 5, Port: 8472, Local: local}, Foreign: "a master"},
		{Link: kernel.VXLAN{Name: "vx6", VNI: 6, Port: 4789, Local: local}},
		{Link: kernel.VXLAN{Name: "overlay.9", VNI: 9, Port: 8472, Local: local}},
	}
	network, err := subnet.ParseNetwork([]byte(vxlanConfig))
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlanner(network, host)
	if err != nil {
		t.Fatal(err)
	}
	// Subnets of before may overlap with those of now.
	g := p.guard(Shield{Guard: fullGuard}, []netip.Prefix{netip.MustParsePrefix("10.5.72.0/24"), netip.MustParsePrefix("10.5.72.0/22"), netip.MustParsePrefix("10.5.9.0/24")})
	if g.Others != "5, 7" || g.Ranges[0].Local != "10.5.9.0/24, 10.5.72.0/22" {
		t.Errorf("others %q, local %q", g.Others, g.Ranges[0].Local)
	}
}

// A guard that cannot be installed takes nothing from containers, and is said to be missing.
func TestGuardIsMissing(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.cfg.Shield.Guard = firewall.Guard{Tunnel: true}
	r.cfg.Unguarded = func() error { return errors.New("no nft") }
	r.start(t)
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "the host is ready, and says what is missing", func() bool {
		s := r.Status()
		return s.Ready && s.Degraded && slices.Contains(s.Problems, "no nft") && s.Guard.Missing == "no nft" && slices.Equal(s.Guard.Parts, []string{"tunnel"})
	})
}
