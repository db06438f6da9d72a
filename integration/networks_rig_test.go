package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// severalNetworks is a wire with hosts on it, and networks beside the unnamed one, by name: NAME CIDR and flags of network create.
func severalNetworks(t testing.TB, hosts int, networks ...string) (*Lab, *Segment, []*Host) {
	t.Helper()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	all := lab.NewHosts(wire, hosts)
	for _, n := range networks {
		all[0].Overlayctl(append([]string{"network", "create"}, strings.Fields(n)...)...)
	}
	return lab, wire, all
}

// in is the host's part of a network: the file of its lease.
func (h *Host) subnetFileOf(network string) string {
	return filepath.Join(h.RunDir, network, "subnet.env")
}

// SetNetwork writes the CNI configuration of a network of a name, which is the configuration's name too.
func (h *Host) SetNetwork(network string) {
	h.t.Helper()
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": network,
		"plugins": []any{map[string]any{
			"type": "overlay", "network": network, "subnetFile": h.subnetFileOf(network), "delegate": map[string]any{"isDefaultGateway": true},
		}},
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(h.confs, "20-"+network+".conflist"), conf, 0o600)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// NewContainerIn makes a container in a network of a name.
func (h *Host) NewContainerIn(network string) *Container {
	h.t.Helper()
	h.SetNetwork(network)
	h.seq++
	c := &Container{Node: newNode(h.t, fmt.Sprintf("%s-c%d", h.Name, h.seq)), Host: h, conf: network}
	c.Attach()
	return c
}

// WaitNetwork waits until the host has a lease of a network, and a route to the subnets of count other hosts in it.
func (h *Host) WaitNetwork(network, cidr string, count int) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%s has a lease of %s", h.Name, network), func() error {
		_, err := os.Stat(h.subnetFileOf(network))
		return err
	})
	first, _, _ := strings.Cut(cidr, "0.0/")
	eventually(h.t, fmt.Sprintf("%s knows %d peers of %s", h.Name, count, network), func() error {
		n := 0
		routes := h.Exec("ip", "-4", "route", "show")
		for line := range strings.Lines(routes) {
			if strings.HasPrefix(line, first) && strings.Contains(line, " via ") {
				n++
			}
		}
		if n != count {
			return fmt.Errorf("%d routes below %s in\n%s", n, first, routes)
		}
		return nil
	})
}

// reaches says whether a packet gets from one container to another, at once.
func (c *Container) reaches(to *Container) bool {
	_, err := c.Try("ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", to.Addrs[0].String())
	return err == nil
}

// apart fails the test if one of two containers reaches the other.
func apart(t testing.TB, a, b *Container) {
	t.Helper()
	for _, way := range [][2]*Container{{a, b}, {b, a}} {
		if way[0].reaches(way[1]) {
			t.Errorf("%s reaches %s", way[0].Name, way[1].Name)
		}
	}
}
