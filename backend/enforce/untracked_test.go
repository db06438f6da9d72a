package enforce

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/backend/enforce/pending"
	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/policy/compile"
)

// With whom there are connections is known, whoever opened them, and also behind a port of the host's.
func TestUntracked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nstest.Sh(t, s.host, `nft -f - <<'end'
table inet nat {
	chain prerouting {
		type nat hook prerouting priority dstnat;
		ip daddr 10.5.1.1 tcp dport 8090 dnat ip to 10.5.1.2:80
		ip6 daddr fd00:5:0:1::1 udp dport 8090 dnat ip6 to [fd00:5:0:1::2]:80
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr 10.5.1.3 masquerade
	}
}
end`)
	bridged(t, s, compile.Change{})
	untracked := func(a netip.Addr) (yes bool) {
		inNS(t, s.host, func() error { yes = pending.Untracked([]netip.Addr{ip("10.5.1.77"), a}); return nil })
		return yes
	}
	for _, a := range []netip.Addr{a4, a6, b4, b6} {
		if !untracked(a) {
			t.Errorf("%v has connections from the start", a)
		}
	}
	for _, one := range []struct {
		probe
		of netip.Addr
	}{
		{probe{s.peer, "tcp 10.5.1.1 8090", true}, a4}, {probe{s.peer, "udp fd00:5:0:1::1 8090", true}, a6},
		{probe{s.b, "udp 10.5.2.2 80", true}, b4}, {probe{s.b, "icmp fd00:5:0:2::2", true}, b6},
	} {
		probes(t, "open", []probe{one.probe})
		if untracked(one.of) {
			t.Errorf("%s: no connection of %v is known", one.network, one.of)
		}
	}
}

// Whether a bridge shows its traffic is asked of the kernel: others can take it away.
func TestBridgeIsShownAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	table := bridged(t, s, compile.Change{})
	for _, off := range []bool{false, true} {
		if off {
			nstest.Sh(t, s.host, "ip link set br0 type bridge nf_call_iptables 0")
		}
		if shown, err := table.Bridge("br0", true); err != nil || shown.Begun != off {
			t.Errorf("taken away %t: begun %t, %v", off, shown, err)
		}
	}
}
