package integration

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

// TestAllocWithBIRD runs the configurations of docs/bgp.md: each host announces its subnet to its router, and containers reach
// each other within a rack and between two.
func TestAllocWithBIRD(t *testing.T) {
	t.Parallel()
	lab, racks, routers := newRacks(t)
	doc := readDocument(t, "bgp.md", inLab...)
	one := doc.block("# router of rack 1")
	// What is rack 1's becomes rack 2's, and the other way round.
	two := strings.NewReplacer("172.30.1.", "172.30.2.", "as 64512", "as 64513", "as 64513", "as 64512", "172.30.3.2", "172.30.3.1", "rack2", "rack1").Replace(one)
	a := startBird(routers[0], one)
	startBird(routers[1], two)
	hosts := []*Host{lab.NewHost(racks[0], 11), lab.NewHost(racks[0], 12), lab.NewHost(racks[1], 13)}
	for _, h := range hosts {
		h.Start()
	}
	for i, h := range hosts {
		h.WaitReady()
		conf := doc.block("# host in rack 1")
		if i == 2 {
			conf = strings.NewReplacer("172.30.1.", "172.30.2.", "64512", "64513").Replace(conf)
		}
		startBird(h.Node, strings.Replace(conf, fmt.Sprintf("router id 172.30.%d.11", 1+i/2), "router id "+h.Addrs[0].String(), 1))
	}
	spine := []string{}
	for _, r := range hops(t, hosts[2]) {
		dst, _, _ := strings.Cut(r, " via ")
		via := "172.30.3.2"
		if strings.Contains(dst, ":") {
			via = "fd00:30:3::2"
		}
		spine = append(spine, dst+" via "+via)
	}
	a.waitRoutes(append(hops(t, hosts[:2]...), spine...)...)
	// Where there is no container yet, the host says so, and sends the packet nowhere.
	out, err := routers[0].Try("ping", "-n", "-c", "1", "-W", "5", netip.MustParsePrefix(hosts[2].subnets()[0]).Addr().Next().String())
	if err == nil || !strings.Contains(out, "From 172.30.2.13") || !strings.Contains(out, "Host Unreachable") {
		t.Errorf("of an address that nobody has: %v, %s", err, out)
	}
	var containers []*Container
	for _, h := range hosts {
		containers = append(containers, h.NewContainer())
	}
	for _, from := range containers {
		for _, to := range containers {
			if from != to {
				reach(t, from, to, 1500)
			}
		}
	}
	allocIsSaid(t, lab, hosts[0])

	if out := hosts[0].Exec("ip", "route", "show", "proto", "111"); !strings.Contains(out, "unreachable") || strings.Count(out, "\n") != 1 {
		t.Errorf("routes of overlayd: %s", out)
	}
	if out, code := hosts[0].Once("--cleanup"); code == 0 {
		t.Errorf("cleanup beside a daemon: %s", out)
	}
}

// allocIsSaid looks at what tools say of a network whose routes are others'.
func allocIsSaid(t *testing.T, lab *Lab, h *Host) {
	t.Helper()
	for key, value := range lab.Keys(subnetsPrefix) {
		var lease struct{ BackendType string }
		if err := json.Unmarshal([]byte(value), &lease); err != nil || lease.BackendType != "alloc" {
			t.Errorf("%s: %s", key, value)
		}
	}
	if out := h.Overlayctl("--run-dir", h.RunDir, "status"); !strings.Contains(out, "2: 2 others") {
		t.Errorf("status: %s", out)
	}
	levels, texts, _ := h.doctor()
	for check, level := range levels {
		if level == "fail" && check != "etcd access" { // the laboratory's etcd is open
			t.Errorf("doctor: %s: %s", check, texts[check])
		}
	}
}

// TestAllocWithFRR has a host announce its subnet by FRR, as docs/bgp.md has it.
func TestAllocWithFRR(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("/usr/lib/frr/bgpd"); err != nil {
		t.Fatal("needs FRR: apt-get install frr")
	}
	lab, racks, routers := newRacks(t)
	doc := readDocument(t, "bgp.md", inLab...)
	r := startBird(routers[0], doc.block("# router of rack 1"))
	h := lab.NewHost(racks[0], 11)
	h.Start()
	h.WaitReady()
	startFRR(h.Node, doc.block("! host in rack 1"))
	r.waitRoutes(hops(t, h)...)
}
