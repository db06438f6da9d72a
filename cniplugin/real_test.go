package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

const (
	v4Lease   = leaseText
	v6Lease   = "FLANNEL_IPV6_NETWORK=fc00:7::/48\nFLANNEL_IPV6_SUBNET=fc00:7:0:4c::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
	dualLease = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\n" + v6Lease
)

func TestAttach(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, lease string
		ips, routes []string
		mtu         string
		delegate    map[string]any
	}{
		{"IPv4", v4Lease, []string{"10.5.72.2/24"}, []string{"10.5.0.0/16 via 10.5.72.1", "default via 10.5.72.1"}, "1450", nil},
		{"IPv6", v6Lease, []string{"fc00:7:0:4c::2/64"},
			[]string{"fc00:7::/48 via fc00:7:0:4c::1", "default via fc00:7:0:4c::1"}, "1430", nil},
		{"dual stack", dualLease, []string{"10.5.72.2/24", "fc00:7:0:4c::2/64"},
			[]string{"10.5.0.0/16 via 10.5.72.1", "fc00:7::/48 via fc00:7:0:4c::1"}, "1430", nil},
		{"ptp", v4Lease, []string{"10.5.72.2/24"}, []string{"10.5.0.0/16 via 10.5.72.1"}, "1450", map[string]any{"type": "ptp"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, tt.lease)
			more := map[string]any{}
			if tt.delegate != nil {
				more["delegate"] = tt.delegate
			}
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: more}
			ips, result := h.mustAdd(t, r)
			if got := fmt.Sprint(ips); got != fmt.Sprint(tt.ips) {
				t.Errorf("addresses %s, want %s", got, tt.ips)
			}
			shown := ip(t, r.netns, "addr", "show", "eth0") +
				ip(t, r.netns, "-4", "route", "show") + ip(t, r.netns, "-6", "route", "show")
			for _, want := range append(append(tt.routes, tt.ips...), "mtu "+tt.mtu) {
				if !strings.Contains(shown, want) {
					t.Errorf("the container has no %q:\n%s", want, shown)
				}
			}
			for _, p := range ips {
				mustRun(t, "nsenter", "--net="+r.netns, "ping", "-c1", "-w5", gateway(p))
			}

			check := request{command: "CHECK", id: "c1", ifName: "eth0", netns: r.netns, more: map[string]any{"prevResult": result}}
			if tt.delegate != nil {
				check.more["delegate"] = tt.delegate
			}
			h.mustCall(t, check)
			ip(t, r.netns, "addr", "flush", "dev", "eth0", "scope", "global")
			if _, err := h.call(check); err == nil {
				t.Error("CHECK did not see that the addresses are gone")
			}
			r.command = "DEL"
			h.mustCall(t, r)
			h.wantClean(t)
		})
	}
}

// del is the DEL of what was added.
func (r request) del() request {
	r.command = "DEL"
	return r
}

func TestTwoInterfaces(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	first := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	second := first
	second.ifName = "net1"
	second.more = map[string]any{"delegate": map[string]any{}} // only one of them has the default route
	h.mustAdd(t, first)
	h.mustAdd(t, second)
	h.mustCall(t, first.del())
	if shown := ip(t, second.netns, "-4", "-o", "addr", "show"); !strings.Contains(shown, "net1") || strings.Contains(shown, "eth0") {
		t.Errorf("DEL of eth0 left: %s", shown)
	}
	h.mustCall(t, second.del())
	h.wantClean(t)
}

// A container of two networks, both of which are default gateways, leaves by the first; of a family that the first has not it leaves
// by the second.
func TestTwoNetworks(t *testing.T) {
	t.Parallel()
	for _, run := range []bool{false, true} {
		h := newHost(t, strings.ReplaceAll(v4Lease, "10.5.", "10.6."))
		first := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: map[string]any{"network": "blue"}}
		h.mustAdd(t, first)
		h.write(t, dualLease)
		second := first
		second.ifName, second.more = "net1", map[string]any{"name": h.network + "-2"}
		if run {
			second.more = reference(second.more)
		}
		h.mustAdd(t, second)
		_, result := h.mustAdd(t, second) // again
		for _, want := range []string{"-4 default via 10.6.72.1 dev eth0", "-6 default via fc00:7:0:4c::1 dev net1", "-4 10.5.0.0/16 via 10.5.72.1 dev net1"} {
			family, want, _ := strings.Cut(want, " ")
			shown := ip(t, first.netns, family, "route")
			if !strings.Contains(shown, want) || strings.Count(shown, "default") != 1 {
				t.Errorf("no %q, or more than one default route, in\n%s", want, shown)
			}
		}
		check := second
		check.command, check.more = "CHECK", map[string]any{"name": h.network + "-2", "prevResult": result}
		h.mustCall(t, check)
		h.mustCall(t, second.del())
		h.mustCall(t, first.del())
		h.wantClean(t)
	}
}

func TestRealAddAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	h.mustAdd(t, r)
	h.mustAdd(t, r)
	if got := h.reserved(t); len(got) != 1 {
		t.Errorf("addresses held: %v", got)
	}
	h.mustCall(t, r.del())
	h.wantClean(t)
}

// A failed ADD takes everything back; after a failed DEL the next one finishes.
func TestRealFailures(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	ip(t, r.netns, "link", "add", "eth0", "type", "veth", "peer", "in-the-way")
	if _, err := h.call(request{command: "ADD", id: r.id, ifName: r.ifName, netns: r.netns}); err == nil {
		t.Fatal("ADD of an interface that is there")
	}
	ip(t, r.netns, "link", "del", "eth0") // it was somebody's, and is there still
	h.wantClean(t)

	h.mustAdd(t, r)
	broken := filepath.Join(h.dir, "ipam/overlayd-10.5.72.0-24")
	if err := os.Rename(broken, broken+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.call(r.del()); err == nil {
		t.Fatal("DEL although host-local cannot work")
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(broken+".away", broken); err != nil {
		t.Fatal(err)
	}
	h.mustCall(t, r.del())
	h.wantClean(t)
}

func TestRealGC(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	var valid []types.GCAttachment
	for i, id := range []string{"kept", "gone", "dead"} {
		r := request{id: id, ifName: "eth0", netns: h.addNamespace(t, id)}
		h.mustAdd(t, r)
		if i == 0 {
			valid = append(valid, types.GCAttachment{ContainerID: id, IfName: "eth0"})
		}
	}
	mustRun(t, "ip", "netns", "del", h.network+"dead")
	h.mustCall(t, request{command: "STATUS"})
	h.mustCall(t, request{command: "GC", more: map[string]any{"cni.dev/valid-attachments": valid}})
	if got := h.reserved(t); !slices.Equal(got, []string{"10.5.72.2"}) {
		t.Errorf("addresses held: %v", got)
	}
	if links := ip(t, h.network+"gone", "-o", "link"); strings.Contains(links, "eth0") {
		t.Errorf("an interface without an address of its own is left: %s", links)
	}
	h.mustCall(t, request{command: "GC", more: map[string]any{"cni.dev/valid-attachments": []any{}}})
	h.wantClean(t)
}

// Hundred containers come and go, twenty at a time, and leave no trace.
func TestHundred(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	const workers, rounds = 20, 5
	var seen sync.Map
	errs := make(chan error, workers)
	for w := range workers {
		r := request{ifName: "eth0", netns: h.addNamespace(t, fmt.Sprint(w))}
		go func() {
			errs <- func() error {
				for round := range rounds {
					r.id = fmt.Sprintf("c%d-%d", w, round)
					ips, _, err := h.add(r)
					if err != nil {
						return err
					}
					for _, p := range ips {
						if other, taken := seen.LoadOrStore(p, r.id); taken {
							return fmt.Errorf("%s and %s have %v", r.id, other, p)
						}
					}
					for _, p := range ips {
						seen.Delete(p) // before another can get it
					}
					if _, err := h.call(r.del()); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range workers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	h.wantClean(t)
}
