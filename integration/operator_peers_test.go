package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// peerProbe is what overlayctl peers says of a peer.
type peerProbe struct {
	Host, Subnet, Path, Probed, Error string
	Sent, Received                    int
	AvgMS                             float64
}

// peers runs overlayctl peers on the host, and tells whether it exits with 0.
func (h *Host) peers() ([]peerProbe, error) {
	h.t.Helper()
	out, failed := h.TryOverlayctl("peers", "--run-dir", h.RunDir, "--interval", "20ms", "-o", "json")
	var found []peerProbe
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		h.t.Fatalf("overlayctl peers: %v, %v in %q", failed, err, out)
	}
	return found, failed
}

// TestPeers probes peers of every path, and one that is gone.
func TestPeers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, backend string
		far           bool
		paths         []string
	}{
		{"vxlan", `{"Type":"vxlan"}`, true, []string{"vxlan", "vxlan"}},
		{"DirectRouting", `{"Type":"vxlan","DirectRouting":true}`, true, []string{"direct", "vxlan"}},
		{"host-gw", `{"Type":"host-gw"}`, false, []string{"host-gw"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			lab, near := newWire(t, Stack{V4: true, V6: true}, test.backend)
			hosts := lab.NewHosts(near, 2)
			if test.far {
				far := lab.NewSegment(2)
				lab.NewRouter(near, far)
				hosts = append(hosts, lab.NewHost(far, 13))
			}
			startAll(t, hosts)
			var found []peerProbe
			eventually(t, "all peers answer", func() (err error) { // the router's own IPv6 addresses take a second
				found, err = hosts[0].peers()
				for _, p := range found {
					if p.Received < p.Sent {
						err = fmt.Errorf("%+v", p)
					}
				}
				return err
			})
			if len(found) != 2*len(test.paths) {
				t.Fatalf("%d rows for %d peers of two families: %+v", len(found), len(test.paths), found)
			}
			paths := map[string]string{}
			for _, p := range found {
				if p.Sent != 5 || p.Received != 5 || p.AvgMS <= 0 {
					t.Errorf("%+v, want all answered", p)
				}
				paths[p.Host] = p.Path
			}
			for i, want := range test.paths {
				if got := paths[hosts[1+i].Name]; got != want {
					t.Errorf("path to %s is %q, want %q", hosts[1+i].Name, got, want)
				}
			}

			hosts[1].Exec("ip", "link", "set", "eth0", "down")
			found, err := hosts[0].peers()
			if err == nil {
				t.Error("a peer does not answer, and overlayctl peers exits with 0")
			}
			for _, p := range found {
				if gone := p.Host == hosts[1].Name; gone != (p.Received == 0) {
					t.Errorf("%+v, want that only %s is silent", p, hosts[1].Name)
				}
			}
		})
	}
}

// TestPeersOfContainersOnly has a firewall drop what containers send, and not what the host does.
func TestPeersOfContainersOnly(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(backend.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, Stack{V4: true, V6: true}, backend.Config)
			hosts := lab.NewHosts(wire, 2)
			startAll(t, hosts)
			hosts[0].NewContainer()
			hosts[1].NewContainer() // for its bridge, which host-gw's is asked at
			eventually(t, "all peers answer", func() error {
				_, err := hosts[0].peers()
				return err
			})
			hosts[0].Exec("nft", "add table inet site; add chain inet site fw { type filter hook forward priority 0; policy drop; }")
			links := hosts[0].Exec("ip", "-br", "link")
			found, err := hosts[0].peers()
			if err == nil || len(found) != 2 {
				t.Fatalf("containers are cut off, and overlayctl peers exits with 0: %+v", found)
			}
			for _, p := range found {
				if p.Received != 5 || !strings.Contains(p.Error, "containers here do not reach it: dropped in inet site fw: policy drop") {
					t.Errorf("%+v, want it answered to the host only", p)
				}
			}
			if levels, texts, _ := hosts[0].doctor(); levels["containers"] != "fail" || levels["peers"] != "ok" {
				t.Errorf("doctor says %s: %s", levels["containers"], texts["containers"])
			}
			if left := hosts[0].Exec("ip", "-br", "link"); left != links {
				t.Errorf("links are left:\n%s", left)
			}
		})
	}
}

// TestOperatorWithoutRights has overlayctl do without capabilities what needs some: one line says so.
func TestOperatorWithoutRights(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	hosts := lab.NewHosts(wire, 2)
	startAll(t, hosts)
	h := hosts[0]
	asNobody := []string{"setpriv", "--bounding-set=-all", "--inh-caps=-all", bin("overlayctl"), "--config=/dev/null",
		"--etcd-endpoints=" + lab.endpoint(), "--run-dir=" + h.RunDir}
	out, err := h.Try(append(asNobody, "peers")...)
	if err == nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, "probes need root (CAP_NET_RAW)") {
		t.Errorf("peers: %v, %q", err, out)
	}
	out, _ = h.Try(append(asNobody, "doctor", "-o", "json")...)
	var found []struct{ Check, Level, Text string }
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("doctor: %v in %q", err, out)
	}
	for _, f := range found {
		if f.Check == "peers" && (f.Level != "skip" || !strings.Contains(f.Text, "operation not permitted")) {
			t.Errorf("doctor on peers: %+v, want it skipped for lack of rights", f)
		}
		if f.Level == "fail" && f.Check != "etcd access" { // the lab's etcd is plaintext
			t.Errorf("doctor takes a lack of rights for an illness: %+v", f)
		}
	}
	if out, err := h.Try(append(asNobody, "status")...); err != nil {
		t.Errorf("status: %v, %q", err, out)
	}
}
