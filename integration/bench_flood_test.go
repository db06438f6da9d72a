package integration

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// BenchmarkFlood measures what it costs the daemon that somebody else, a BGP daemon say, adds and removes 100,000 routes,
// against what it costs ip monitor to read of them all.
func BenchmarkFlood(b *testing.B) {
	const size = 100_000
	for _, s := range stacks[:2] {
		b.Run(s.Name, func(b *testing.B) {
			c := newCrowd(b, s.Stack, 1_000)
			h := c.host()
			h.Start()
			h.WaitReady()
			time.Sleep(2 * time.Second)
			add, del := floodOf(h, size)
			monitor := h.Spawn("ip monitor", nil, "sh", "-c", "exec ip monitor route >/dev/null")
			reader := &Host{Node: h.Node, lab: h.lab, Daemon: monitor}
			ours, theirs, wall := cpu(h), cpu(reader), time.Now()
			h.Exec("ip", "-batch", add)
			h.Exec("ip", "-batch", del)
			took := time.Since(wall)
			time.Sleep(2 * time.Second) // what is left to do
			ours, theirs = cpu(h)-ours, cpu(reader)-theirs
			monitor.Signal(syscall.SIGTERM)
			b.ReportMetric(ours.Seconds(), "cpu-s/flood")
			b.ReportMetric(theirs.Seconds(), "cpu-s/ip-monitor")
			b.ReportMetric(took.Seconds(), "s/flood")
			b.ReportMetric(h.metric(`overlayd_kernel_healed_total{kind="route"}`), "healed")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// floodOf writes the files that let ip add and remove so many routes by the gateway.
func floodOf(h *Host, size int) (add, del string) {
	h.t.Helper()
	dir := h.t.TempDir()
	gateway := (&Segment{lab: h.lab, index: 1}).Addrs(gatewayNumber)[0].Addr()
	var lines [2]strings.Builder
	for i := range size {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 0}), 24)
		if gateway.Is6() {
			p = netip.MustParsePrefix(fmt.Sprintf("2001:db9:%x:%x::/64", i>>16, i&0xffff))
		}
		fmt.Fprintf(&lines[0], "route add %s via %s dev eth0 proto bird\n", p, gateway)
		fmt.Fprintf(&lines[1], "route del %s proto bird\n", p)
	}
	add, del = filepath.Join(dir, "add"), filepath.Join(dir, "del")
	writeFile(h, add, lines[0].String())
	writeFile(h, del, lines[1].String())
	return add, del
}
