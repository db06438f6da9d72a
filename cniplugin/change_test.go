package main

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

const (
	otherV4Lease   = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.73.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
	otherDualLease = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.73.1/24\n" +
		"FLANNEL_IPV6_NETWORK=fc00:7::/48\nFLANNEL_IPV6_SUBNET=fc00:7:0:4d::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
)

// After another lease for the host new containers are of the new subnet, the bridge has no route to the old one, which
// may be another host's by now, and the old containers are left as they are.
func TestLeaseChanged(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, before, after string
		more                map[string]any
	}{
		{"in this process", dualLease, otherDualLease, nil},
		{"by the reference plugins", v4Lease, otherV4Lease, reference(nil)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, tt.before)
			old := request{id: "old", ifName: "eth0", netns: h.addNamespace(t, "old"), more: tt.more}
			oldIPs, _ := h.mustAdd(t, old)
			oldLook := ip(t, old.netns, "-o", "addr", "show", "eth0", "scope", "global")
			h.write(t, tt.after)

			fresh := request{id: "new", ifName: "eth0", netns: h.addNamespace(t, "new"), more: tt.more}
			for range 3 { // host-local goes on from the last address, and must not from one of the old range
				ips, _ := h.mustAdd(t, fresh)
				for i, p := range ips {
					if p.Masked() == oldIPs[i].Masked() {
						t.Errorf("%v is of the old subnet", p)
					}
					mustRun(t, "nsenter", "--net="+fresh.netns, "ping", "-c1", "-w2", gateway(p))
				}
				h.mustCall(t, fresh.del())
			}
			shown := ip(t, h.ns, "addr", "show", "cni0") + ip(t, h.ns, "-4", "route") + ip(t, h.ns, "-6", "route")
			for _, trace := range []string{"10.5.72.", "fc00:7:0:4c:"} {
				if strings.Contains(shown, trace) {
					t.Errorf("the host still leads %s to the bridge:\n%s", trace, shown)
				}
			}
			if now := ip(t, old.netns, "-o", "addr", "show", "eth0", "scope", "global"); now != oldLook {
				t.Errorf("the old container changed:\n%s%s", oldLook, now)
			}
			h.mustCall(t, old.del())
			h.wantClean(t)
		})
	}
}

func gateway(p netip.Prefix) string { return p.Masked().Addr().Next().String() }

// write replaces subnet.env.
func (h *host) write(t *testing.T, lease string) {
	t.Helper()
	if err := os.WriteFile(h.subnetFile(), []byte(lease), 0o600); err != nil {
		t.Fatal(err)
	}
}

// With forceAddress off the bridge keeps what it has, and says what is in the way.
func TestLeaseChangedNotForced(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	more := map[string]any{"delegate": map[string]any{"forceAddress": false}}
	old := request{id: "old", ifName: "eth0", netns: h.addNamespace(t, "old"), more: more}
	h.mustAdd(t, old)
	h.write(t, otherV4Lease)
	_, _, err := h.add(request{id: "new", ifName: "eth0", netns: h.addNamespace(t, "new"), more: more})
	wantError(t, err, codeDelegate, "bridge cni0: gateway: 10.5.73.1/24: the bridge has 10.5.72.1/24, and forceAddress is off")
	if shown := ip(t, h.ns, "-4", "-o", "addr", "show", "cni0"); strings.Count(shown, "\n") != 1 || !strings.Contains(shown, "10.5.72.1/24") {
		t.Errorf("the bridge has: %s", shown)
	}
	h.mustCall(t, old.del())
	h.wantClean(t)
}

// The first container made the bridge, whose IPv6 address the kernel tried for a second or two before it answered (DAD).
func TestFirstContainerHasIPv6Gateway(t *testing.T) {
	t.Parallel()
	h := newHost(t, v6Lease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	ips, _ := h.mustAdd(t, r)
	if shown := ip(t, h.ns, "addr", "show", "cni0", "scope", "global"); strings.Contains(shown, "tentative") {
		t.Errorf("the gateway does not answer yet: %s", shown)
	}
	mustRun(t, "nsenter", "--net="+r.netns, "ping", "-c1", "-W1", gateway(ips[0]))
}

// A bridge that lost its only port before it got an address has a MAC of zeros, which cannot be kept.
func TestBridgeWithoutMAC(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	for _, args := range []string{
		"link add cni0 type bridge", "link set cni0 up", "link add port type veth peer name other",
		"link set port master cni0", "link del port",
	} {
		ip(t, h.ns, strings.Fields(args)...)
	}
	if shown := ip(t, h.ns, "link", "show", "cni0"); !strings.Contains(shown, "00:00:00:00:00:00 brd") {
		t.Fatalf("the bridge has a MAC: %s", shown)
	}
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	h.mustAdd(t, r)
	h.mustCall(t, r.del())
	h.wantClean(t)
}

// A bridge that is in the way for another reason is named, and nothing is left.
func TestBadBridge(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	ip(t, h.ns, "link", "add", "cni0", "type", "veth", "peer", "cni1")
	netns := h.addNamespace(t, "c1")
	_, _, err := h.add(request{id: "c1", ifName: "eth0", netns: netns})
	wantError(t, err, codeDelegate, "bridge cni0: there is a link of this name which is no bridge, but of type veth")
	ip(t, h.ns, "link", "del", "cni0")
	for _, tt := range []struct{ name, args, text string }{
		{"address of another host", "IgnoreUnknown=1;IP=10.5.99.9", "10.5.99.9 not of this host's subnet"},
		{"the gateway", "IgnoreUnknown=1;IP=10.5.72.1", "gateway"},
		{"no address", "IgnoreUnknown=1;IP=x", "ipam"},
		{"no MAC", "MAC=x", "mac: address x"},
		{"unknown argument", "COLOUR=red", "COLOUR"},
	} {
		_, _, err := h.add(request{id: "c1", ifName: "eth0", netns: netns, args: tt.args})
		if err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.text)
		}
	}
	h.wantClean(t)
}

// A pool with no address left says so, and an address that is freed is given again.
func TestPoolIsFull(t *testing.T) {
	t.Parallel()
	h := newHost(t, "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/29\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
	var all []request
	for i := range 5 { // .2 to .6
		r := request{id: fmt.Sprint("c", i), ifName: "eth0", netns: h.addNamespace(t, fmt.Sprint(i))}
		h.mustAdd(t, r)
		all = append(all, r)
	}
	late := request{id: "late", ifName: "eth0", netns: h.addNamespace(t, "late")}
	_, _, err := h.add(late)
	wantError(t, err, codeDelegate, "no IP addresses available in range set: 10.5.72.1-10.5.72.6")
	h.mustCall(t, all[3].del())
	if ips, _ := h.mustAdd(t, late); ips[0].Addr().String() != "10.5.72.5" {
		t.Errorf("got %v", ips)
	}
	for _, r := range append(all, late) {
		h.mustCall(t, r.del())
	}
	h.wantClean(t)
}
