package main

import (
	"fmt"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"
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

// What a container sends to all costs the host as much as the bridge has ports: where the network has no IPv6 an ADD tells the
// neighbours of the address, once, and of nothing else.
func TestNeighboursHearOneFrame(t *testing.T) {
	t.Parallel()
	h := newHost(t, v4Lease)
	neighbour := request{id: "neighbour", ifName: "eth0", netns: h.addNamespace(t, "neighbour")}
	h.mustAdd(t, neighbour)
	fd := -1
	if err := ns.WithNetNSPath(neighbour.netns, func(ns.NetNS) (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0300) // ETH_P_ALL
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	r := request{id: "c1", ifName: "eth0", netns: h.addNamespace(t, "c1")}
	ips, _ := h.mustAdd(t, r)
	mustRun(t, "nsenter", "--net="+r.netns, "ping", "-n", "-c1", "-W2", "10.5.72.2")
	if heeds := mustRun(t, "nsenter", "--net="+r.netns, "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"); heeds != "0\n" {
		t.Errorf("accept_ra is %s", heeds)
	}
	var heard []string
	frame := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(fd, frame, unix.MSG_DONTWAIT)
		if err != nil {
			break // there is no more
		}
		// From the container, but the question who has the neighbour's address and the ping itself.
		if n < 42 || fmt.Sprintf("%x", frame[6:12]) != fmt.Sprintf("0aff%x", ips[0].Addr().AsSlice()) || frame[41] == 2 || frame[33] == 2 {
			continue
		}
		heard = append(heard, fmt.Sprintf("%x", frame[12:min(n, 60)]))
	}
	if len(heard) != 1 || heard[0][:4] != "0806" {
		t.Errorf("the neighbour hears, of the ADD of another one: %q", heard)
	}
	h.mustCall(t, r.del())
	h.mustCall(t, neighbour.del())
	h.wantClean(t)
}
