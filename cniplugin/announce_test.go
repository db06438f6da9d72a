package main

import (
	"fmt"
	"testing"
)

// An address that comes round again, to another container and with another MAC, is reached by the first packet, though the
// host and its neighbours have the MAC of before in their caches.
func TestAddressComesRound(t *testing.T) {
	t.Parallel()
	const v4, v6 = "10.5.72.77", "fc00:7:0:4c::77"
	for _, tt := range []struct {
		name string
		macs [2]string // empty: the plugin's own choice
	}{
		{name: "MAC of the plugin"},
		{"MACs asked for", [2]string{"02:aa:00:00:00:01", "02:aa:00:00:00:02"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, dualLease)
			h.guard(t)
			neighbour := request{id: "neighbour", ifName: "eth0", netns: h.addNamespace(t, "neighbour")}
			h.mustAdd(t, neighbour)
			for i, mac := range tt.macs {
				asked := map[string]any{"ips": []string{v4, v6}}
				if mac != "" {
					asked["mac"] = mac
				}
				id := fmt.Sprint("c", i)
				r := request{id: id, ifName: "eth0", netns: h.addNamespace(t, id), more: map[string]any{"runtimeConfig": asked}}
				h.mustAdd(t, r)
				for _, from := range []string{h.ns, neighbour.netns} {
					for _, to := range []string{v4, v6} {
						mustRun(t, "nsenter", "--net="+from, "ping", "-n", "-c1", "-W2", to)
					}
				}
				h.mustCall(t, r.del())
			}
			h.mustCall(t, neighbour.del())
			h.wantClean(t)
		})
	}
}
