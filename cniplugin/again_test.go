package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// macOf is the MAC of an interface.
func macOf(t *testing.T, ns, name string) string {
	t.Helper()
	var all []struct{ Address string }
	if err := json.Unmarshal([]byte(ip(t, ns, "-j", "link", "show", name)), &all); err != nil {
		t.Fatal(err)
	}
	return all[0].Address
}

// A second ADD, for Nomad comes with one after a CHECK that failed, and others after a later plugin that did: the container
// keeps its addresses and MAC, so that what other plugins made of them stays right.
func TestSecondAdd(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	first, _ := h.mustAdd(t, r)
	mac := macOf(t, r.netns, "eth0")
	for _, happens := range []func(){
		func() {},
		func() { ip(t, r.netns, "link", "del", "eth0") },
		func() { ip(t, r.netns, "link", "set", "eth0", "address", "02:aa:00:00:00:09") },
		func() { r.netns = h.addNamespace(t, "another") }, // the first namespace is still there
	} {
		happens()
		again, _ := h.mustAdd(t, r)
		if !slices.Equal(again, first) || macOf(t, r.netns, "eth0") != mac {
			t.Errorf("%v with %s, then %v with %s", first, mac, again, macOf(t, r.netns, "eth0"))
		}
		mustRun(t, "nsenter", "--net="+r.netns, "ping", "-n", "-c1", "-W2", gateway(again[0]))
	}
	if got := h.reserved(t); len(got) != 2 {
		t.Errorf("addresses held: %v", got)
	}
	if links := ip(t, h.network+"c1", "-o", "link"); strings.Contains(links, "eth0") {
		t.Errorf("two interfaces have the addresses: %s", links)
	}
	r.more = map[string]any{"runtimeConfig": map[string]any{"ips": []string{"10.5.72.99"}}}
	if other, _ := h.mustAdd(t, r); other[0].Addr().String() != "10.5.72.99" || other[1] != first[1] {
		t.Errorf("asked for 10.5.72.99, got %v", other)
	}
	h.write(t, otherDualLease)
	r.more = nil
	if other, _ := h.mustAdd(t, r); other[0].Addr().String() != "10.5.73.2" {
		t.Errorf("after another lease: %v", other)
	}
	h.mustCall(t, r.del())
	h.wantClean(t)
}

// So too where the delegate is named, and run: it is told what the container had.
func TestSecondAddOfNamedDelegate(t *testing.T) {
	t.Parallel()
	for kind, keepsMAC := range map[string]bool{"bridge": true, "macvlan": true, "ptp": false} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, dualLease)
			ip(t, h.ns, "link", "add", "uplink", "up", "type", "bridge")
			more := map[string]any{"delegate": map[string]any{"type": kind}}
			if kind == "macvlan" {
				more["delegate"] = map[string]any{"type": kind, "master": "uplink"}
			}
			r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1"), more: more}
			first, _ := h.mustAdd(t, r)
			mac := macOf(t, r.netns, "eth0")
			for _, happens := range []func(){
				func() {},
				func() { ip(t, r.netns, "link", "del", "eth0") },
				func() { r.netns = h.addNamespace(t, "another") },
			} {
				happens()
				again, _ := h.mustAdd(t, r)
				if !slices.Equal(again, first) || keepsMAC && macOf(t, r.netns, "eth0") != mac {
					t.Errorf("%v with %s, then %v with %s", first, mac, again, macOf(t, r.netns, "eth0"))
				}
			}
			asked := r
			asked.more = map[string]any{"runtimeConfig": map[string]any{"ips": []string{"10.5.72.99"}, "mac": "02:aa:00:00:00:09"}}
			for key, value := range more {
				asked.more[key] = value
			}
			if other, _ := h.mustAdd(t, asked); other[0].Addr().String() != "10.5.72.99" || other[1] != first[1] ||
				keepsMAC && macOf(t, r.netns, "eth0") != "02:aa:00:00:00:09" {
				t.Errorf("asked for 10.5.72.99, got %v with %s", other, macOf(t, r.netns, "eth0"))
			}
			if got := h.reserved(t); len(got) != 2 {
				t.Errorf("addresses held: %v", got)
			}
			h.write(t, otherDualLease)
			if other, _ := h.mustAdd(t, r); other[0].Addr().String() != "10.5.73.2" {
				t.Errorf("after another lease: %v", other)
			}
			h.mustCall(t, r.del())
			h.wantClean(t)
		})
	}
}

// A full pool has an address for who has one already.
func TestSecondAddInFullPool(t *testing.T) {
	t.Parallel()
	h := newHost(t, "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/30\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	h.mustAdd(t, r)
	h.mustAdd(t, r)
	h.mustCall(t, r.del())
	h.wantClean(t)
}

// Of several at once for one container each has its turn.
func TestAddsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	const n = 8
	answers := make(chan string, n)
	for range n {
		go func() {
			ips, _, err := h.add(r)
			answers <- fmt.Sprint(ips, err)
		}()
	}
	for range n {
		if got := <-answers; got != "[10.5.72.2/24 fc00:7:0:4c::2/64] <nil>" {
			t.Error(got)
		}
	}
	if got := h.reserved(t); len(got) != 2 {
		t.Errorf("addresses held: %v", got)
	}
	if links := ip(t, h.ns, "-o", "link", "show", "type", "veth"); strings.Count(links, "alias overlay c1 ") != 1 {
		t.Errorf("links: %s", links)
	}
	h.mustCall(t, r.del())
	h.wantClean(t)
}

// TestSecondAddKeepsLabels attaches a container anew whose labels somebody has changed: what they said counts.
func TestSecondAddKeepsLabels(t *testing.T) {
	t.Parallel()
	h := newHost(t, dualLease)
	r := request{id: "c", ifName: "eth0", netns: h.addNamespace(t, "c"), args: "LABELS=app:web,tier:front"}
	h.mustAdd(t, r)
	key := attachment.Key{Network: h.network, ContainerID: "c", IfName: "eth0"}
	look := func(f func(*attachment.Store, attachment.Attachment) error) {
		t.Helper()
		err := attachment.With(t.Context(), filepath.Join(h.dir, "state"), attachment.Shared, func(s *attachment.Store) error {
			a, err := s.Load(key)
			if err != nil {
				return err
			}
			return f(s, a)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	shop := "shop"
	look(func(s *attachment.Store, a attachment.Attachment) error {
		a.Relabelled = map[string]*string{"app": &shop, "tier": nil}
		return s.Save(a)
	})
	h.mustAdd(t, r)
	look(func(_ *attachment.Store, a attachment.Attachment) error {
		if want := map[string]string{"app": "shop"}; !maps.Equal(a.Endpoint.Labels, want) || len(a.Relabelled) != 2 {
			t.Errorf("labels %v of %v, want %v", a.Endpoint.Labels, a.Relabelled, want)
		}
		return nil
	})
}
