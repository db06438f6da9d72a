package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// blueV4 is the range of a second network.
const blueV4 = "10.6.0.0/16"

// putNetwork makes a named network as overlayctl network create does.
func (l *Lab) putNetwork(name, config string) {
	l.t.Helper()
	l.Put("/coreos.com/network/"+name+"/config", config)
	l.Put("/coreos.com/network/overlayd/networks/"+name, "{}")
}

// dropNetwork deletes it, as overlayctl network delete does.
func (l *Lab) dropNetwork(name string) {
	l.t.Helper()
	l.Delete("/coreos.com/network/overlayd/networks/" + name)
	for key := range l.Keys("/coreos.com/network/" + name + "/") {
		l.Delete(key)
	}
}

// vxlanOf is the config of a network of vxlan.
func vxlanOf(network string, vni int) string {
	return fmt.Sprintf(`{"Network":%q,"Backend":{"Type":"vxlan","VNI":%d}}`, network, vni)
}

// named is what the daemon says of a named network.
func (h *Host) named(name string) (hostNetwork, error) {
	s, err := h.status()
	if err != nil {
		return hostNetwork{}, err
	}
	i := slices.IndexFunc(s.Networks, func(n hostNetwork) bool { return n.Name == name })
	if i < 0 {
		return hostNetwork{}, fmt.Errorf("%s is not in network %s: %s", h.Name, name, s.Stage)
	}
	return s.Networks[i], nil
}

// waitNamed waits until a host is ready in a network, and has so many peers there.
func (h *Host) waitNamed(name string, peers int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%s is in network %s with %d peers", h.Name, name, peers), func() error {
		n, err := h.named(name)
		if err == nil && (!n.Ready || len(n.Peers) != peers || !n.Kernel.InStep) {
			text, _ := json.Marshal(n)
			err = fmt.Errorf("%s", text)
		}
		return err
	})
}

// in has the next containers of the host attached to a named network, by a bridge of its own; "" is the unnamed one.
func (h *Host) in(name string) {
	h.t.Helper()
	if name == "" {
		h.SetDelegate(map[string]any{"isDefaultGateway": true})
		return
	}
	conf := h.PluginConf(map[string]any{"isDefaultGateway": true, "bridge": "ov-" + name})
	conf["network"], conf["subnetFile"] = name, filepath.Join(h.RunDir, name, "subnet.env")
	h.SetConf(map[string]any{"cniVersion": "1.1.0", "name": "overlay", "plugins": []any{conf}})
}

// pings says whether a container reaches another: one of three tries is enough.
func (c *Container) pings(to *Container) bool {
	_, err := c.Try("ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", to.Addrs[0].String())
	return err == nil
}

// wantReach wants that containers reach each other, or that none does, soon or at once.
func wantReach(t *testing.T, from, to []*Container, reach, soon bool) {
	t.Helper()
	for _, x := range from {
		for _, y := range to {
			if x == y {
				continue
			}
			ok := func() error {
				if got := x.pings(y); got != reach {
					return fmt.Errorf("%s (%s) reaches %s (%s): %t, want %t", x.Name, x.Addrs[0], y.Name, y.Addrs[0], got, reach)
				}
				return nil
			}
			if soon {
				eventually(t, "networks are apart, or not", ok)
			} else if err := ok(); err != nil {
				t.Error(err)
			}
		}
	}
}

// Two hosts in two networks, and one in the first alone: each network is whole, and apart from the other; what is peered reaches it.
func TestSeveralNetworks(t *testing.T) {
	t.Parallel()
	l, s := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	l.putNetwork("blue", vxlanOf(blueV4, 7))
	hosts := l.NewHosts(s, 3)
	a, b, c := hosts[0], hosts[1], hosts[2]
	a.Start("--networks=blue")
	b.Start("--networks=all")
	c.Start()
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(2)
	}
	a.waitNamed("blue", 1)
	b.waitNamed("blue", 1)
	if status, text, err := a.Get("http://127.0.0.1:9417/metrics"); err != nil || status != 200 ||
		!strings.Contains(text, "\noverlayd_peers 2\n") || !strings.Contains(text, "\noverlayd_peers{network=\"blue\"} 1\n") {
		t.Errorf("metrics: status %d, %v:\n%s", status, err, text)
	}
	var plain, blue []*Container
	for _, h := range hosts {
		plain = append(plain, h.NewContainer())
	}
	for _, h := range hosts[:2] {
		h.in("blue")
		blue = append(blue, h.NewContainer())
	}
	wantReach(t, plain, plain, true, false)
	wantReach(t, blue, blue, true, false)
	if s, err := a.status(); err != nil || s.FastPath.Off == "" && s.FastPath.Containers > 1 { // it serves the unnamed network alone
		t.Errorf("the fast path carries packets of %d containers, of two of which one is blue's: %v", s.FastPath.Containers, err)
	}
	if ip := blue[0].Addrs[0]; !netip.MustParsePrefix(blueV4).Contains(ip) {
		t.Fatalf("a container of blue has %s", ip)
	}
	apart := func(soon bool) {
		t.Helper()
		wantReach(t, plain, blue, false, soon)
		wantReach(t, blue, plain, false, soon)
	}
	apart(false)

	l.Put("/coreos.com/network/overlayd/peered/blue,default", "{}")
	wantReach(t, plain[:2], blue, true, true)
	wantReach(t, blue, plain, true, true) // also on the host that is in one only: it is begun where both are
	wantReach(t, plain[2:], blue, false, false)
	l.Delete("/coreos.com/network/overlayd/peered/blue,default")
	apart(true)

	// Who is killed between leaves both as they are, and takes both up again.
	links := func(h *Host) string {
		return h.Exec("sh", "-c", "ip -d link show type vxlan | grep -o 'overlay[^:@]*:\\|vxlan id [0-9]*'")
	}
	before := links(a)
	a.Daemon.Stop(syscall.SIGKILL)
	wantReach(t, blue, blue, true, false)
	apart(false)
	a.Start("--networks=blue")
	a.WaitReady()
	a.waitNamed("blue", 1)
	if after := links(a); after != before || !strings.Contains(before, "vxlan id 7") {
		t.Errorf("links before %q, after %q", before, after)
	}
	wantReach(t, blue, blue, true, false)
	wantReach(t, plain, plain, true, false)
	apart(false)

	// A network that is deleted while containers run takes nothing of the other.
	l.dropNetwork("blue")
	eventually(t, "blue is gone from b", func() error {
		out := b.Exec("ip", "-d", "link", "show", "type", "vxlan")
		if strings.Contains(out, "vxlan id 7 ") || strings.Contains(b.Exec("ip", "route"), "10.6.0.0/16") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	wantReach(t, plain, plain, true, false)
	apart(false)
	wantReach(t, blue, blue, false, false)
}

// Each network's policies meet its own containers alone, though both networks have a namespace of the same name.
func TestPoliciesOfSeveralNetworks(t *testing.T) {
	t.Parallel()
	l, s := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	l.putNetwork("blue", vxlanOf(blueV4, 7))
	hosts := l.NewHosts(s, 2)
	for _, h := range hosts {
		h.Start("--networks=blue")
	}
	var plain, blue []*Container
	add := func() {
		for _, h := range hosts {
			h.in("")
			plain = append(plain, h.NewContainer())
			h.in("blue")
			blue = append(blue, h.NewContainer())
		}
	}
	for _, h := range hosts {
		h.WaitReady()
		h.waitNamed("blue", 1)
	}
	add()
	file := filepath.Join(t.TempDir(), "deny.yaml")
	const deny = `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"deny","namespace":"default"},
"spec":{"podSelector":{},"policyTypes":["Ingress"]}}`
	if err := os.WriteFile(file, []byte(deny), 0o600); err != nil {
		t.Fatal(err)
	}
	wantReach(t, blue, blue, true, false)
	wantReach(t, plain, plain, true, false)
	hosts[0].Overlayctl("-N", "blue", "policy", "apply", "-f", file)
	wantReach(t, blue, blue, false, true)
	wantReach(t, plain, plain, true, false)
	add() // those that come now wait for no policies of the other network
	wantReach(t, blue, blue, false, true)
	wantReach(t, plain, plain, true, true)

	hosts[0].Overlayctl("policy", "apply", "-f", file)
	wantReach(t, plain, plain, false, true)
	hosts[0].Overlayctl("-N", "blue", "policy", "delete", "deny", "-n", "default")
	wantReach(t, blue, blue, true, true)
	wantReach(t, plain, plain, false, false)
	hosts[0].Daemon.Stop(syscall.SIGKILL)
	wantReach(t, plain, plain, false, false)
	hosts[0].Start("--networks=blue")
	hosts[0].WaitReady()
	wantReach(t, plain, plain, false, false)
	wantReach(t, blue, blue, true, false)
	hosts[0].Overlayctl("policy", "delete", "deny", "-n", "default")
	wantReach(t, plain, plain, true, true)
	for _, h := range hosts {
		eventually(t, "no table is left", func() error {
			if out := h.Exec("nft", "list", "tables"); strings.Contains(out, "overlayd_p") {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	}
}
