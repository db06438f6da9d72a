package integration

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/userspace"
)

// udpRounds is how often each of the ways of udp is measured, in turn.
const udpRounds = 25

// BenchmarkUDP measures flannel's udp in a process of ours against vxlan, and against a live flanneld's where one was built: one way
// after the other in each round, with the CPU time of the processes that carry the packets.
func BenchmarkUDP(b *testing.B) {
	ways := []way{{path: newFlannelPath(b, "vxlan")}, newTunPath(b)}
	if _, err := os.Stat(filepath.Join(runtimesDir(), "flannel")); err == nil {
		ways = append(ways, newFlanneldUDPPath(b))
	}
	seen := make([]samples, len(ways))
	for range udpRounds {
		for k := range loads {
			for i, w := range ways {
				before := processorTime(b, w.carriers)
				l := loads[k].run(b, w.from, w.to, w.dst)
				l.cpu += processorTime(b, w.carriers) - before
				seen[i][k] = append(seen[i][k], l)
			}
		}
	}
	for i, w := range ways {
		b.Run(w.name, func(b *testing.B) { seen[i].report(b, seen[0]) })
	}
	if last := len(ways) - 1; last > 1 {
		ratio := middle(seen[1][0], rate) / middle(seen[last][0], rate)
		b.ReportMetric(ratio, "tcp1-×-flannel")
		if ratio < 10 {
			b.Errorf("one TCP stream is %.1f times as fast as flannel's udp, not 10", ratio)
		}
	}
}

// runtimesDir is where what is built for make test-runtimes is.
func runtimesDir() string {
	return cmp.Or(os.Getenv(runtimesDirEnv), filepath.Join("..", "bin", "runtimes"))
}

// way is a path whose packets processes carry.
type way struct {
	path
	carriers []int
}

// processorTime is what processes have used of all CPUs, in seconds.
func processorTime(t testing.TB, pids []int) (seconds float64) {
	t.Helper()
	for _, pid := range pids {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		must(t, err)
		for _, path := range tasks {
			text, _ := os.ReadFile(path) // a thread may have ended
			nanoseconds, _, _ := strings.Cut(string(text), " ")
			n, _ := strconv.ParseFloat(nanoseconds, 64)
			seconds += n / 1e9
		}
	}
	return seconds
}

// newTunPath is container to container by two processes of ours.
func newTunPath(t testing.TB) way {
	t.Helper()
	l := newLab(t, Stack{V4: true})
	wire := l.NewSegment(1)
	hosts := []*Host{l.flannelHost(wire, 11, "10.5.1.0/24"), l.flannelHost(wire, 12, "10.5.2.0/24")}
	joinWire(hosts[0].Node, hosts[1].Node, l.Stack)
	w := way{}
	for i, h := range hosts {
		own, peer := i+1, 2-i
		tun, pid := h.startTun()
		w.carriers = append(w.carriers, pid)
		must(t, tun.UDP(kernel.UDPTun{Name: "overlay.udp", Local: netip.MustParseAddr(fmt.Sprintf("172.31.0.%d", own)), Port: 8285, MTU: 1472}))
		must(t, tun.SetUDPPeers("overlay.udp", []kernel.UDPPeer{{
			Subnet: netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", peer)), Host: netip.MustParseAddr(fmt.Sprintf("172.31.0.%d", peer)),
		}}, nil))
		h.Exec("sh", "-ec", fmt.Sprintf(`
			ip address add 10.5.%d.0/32 dev overlay.udp
			ip route add 10.5.0.0/16 dev overlay.udp`, own))
		h.flannelMasquerade(fmt.Sprintf("10.5.%d.0/24", own))
		env, err := os.ReadFile(h.SubnetFile())
		must(t, err)
		writeFile(h, h.SubnetFile(), strings.Replace(string(env), "MTU=1450", "MTU=1472", 1))
	}
	w.path = betweenContainers("udp", hosts[0], hosts[1])
	return w
}

// startTun starts the process that a daemon would start on the host.
func (h *Host) startTun() (client *userspace.Client, pid int) {
	h.t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(h.RunDir, userspace.SocketName), Net: "unix"})
	must(h.t, err)
	file, err := l.File()
	must(h.t, err)
	l.SetUnlinkOnClose(false)
	l.Close()
	cmd := h.Command(bin("overlayd-tun"))
	cmd.ExtraFiles = []*os.File{file}
	p := spawn(h.t, cmd, "overlayd-tun on "+h.Name, []string{"LISTEN_FDS=1"})
	file.Close()
	return userspace.New(h.RunDir, slog.New(slog.DiscardHandler)), p.Pid()
}

// newFlanneldUDPPath is container to container by two live flannelds.
func newFlanneldUDPPath(t testing.TB) way {
	t.Helper()
	l, wire := newWire(t, Stack{V4: true}, `{"Type":"udp"}`)
	hosts := l.NewHosts(wire, 2)
	joinWire(hosts[0].Node, hosts[1].Node, l.Stack)
	w := way{}
	for _, h := range hosts {
		p := h.Flanneld("--iface="+wireLink, "--ip-masq")
		w.carriers = append(w.carriers, p.Pid())
	}
	w.path = betweenContainers("flannel", hosts[0], hosts[1])
	return w
}
