package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// userSpaceNetworks are those whose links a process serves where the kernel cannot. This computer's can make neither.
var userSpaceNetworks = []struct {
	name, backend, link string
	stack               Stack
	mtu                 int
}{
	{"wireguard", `{"Type":"wireguard"}`, "overlay-wg", both, 1420},
	{"udp", `{"Type":"udp"}`, "overlay.udp", Stack{V4: true}, 1472},
}

// tunPid is the process that serves the host's links.
func (h *Host) tunPid() (int, error) {
	out, err := h.Try("ip", "netns", "pids", h.Name)
	if err != nil {
		return 0, err
	}
	for pid := range strings.FieldsSeq(out) {
		if name, _ := os.ReadFile(filepath.Join("/proc", pid, "comm")); string(name) == "overlayd-tun\n" {
			return strconv.Atoi(pid)
		}
	}
	return 0, fmt.Errorf("%s has no overlayd-tun", h.Name)
}

// TestUserSpaceOutlivesDaemons kills daemons and starts them anew while containers talk: no packet is lost. Then it kills the
// processes that carry the packets: the daemons make others, and everything is as before.
func TestUserSpaceOutlivesDaemons(t *testing.T) {
	t.Parallel()
	for _, network := range userSpaceNetworks {
		t.Run(network.name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, network.stack, network.backend)
			hosts := lab.NewHosts(wire, 2)
			for _, h := range hosts {
				h.Start("--ip-masq")
			}
			for _, h := range hosts {
				h.WaitReady()
			}
			if _, err := hosts[0].tunPid(); err != nil {
				t.Skipf("this kernel makes the links itself: %v", err)
			}
			a, b := hosts[0].NewContainer(), hosts[1].NewContainer()
			stream := NewStream(a, b)
			for _, h := range hosts {
				before, err := h.tunPid()
				must(t, err)
				link := h.Exec("ip", "-brief", "link", "show", network.link)
				h.Daemon.Kill()
				stream.Pass(250)
				h.Start("--ip-masq")
				h.WaitReady()
				stream.Pass(250)
				if now, err := h.tunPid(); now != before {
					t.Errorf("%s is served by process %d, and was by %d: %v", h.Name, now, before, err)
				}
				if now := h.Exec("ip", "-brief", "link", "show", network.link); now != link {
					t.Errorf("%s has another link:\n%s%s", h.Name, link, now)
				}
			}
			stream.Stop()

			for _, h := range hosts {
				before, err := h.tunPid()
				must(t, err)
				must(t, syscall.Kill(before, syscall.SIGKILL))
				for i, dst := range b.Addrs {
					eventually(t, fmt.Sprintf("%s is reached again", dst), func() error { return a.PingSize(dst, 1000) })
					eventually(t, fmt.Sprintf("%s is reached again", a.Addrs[i]), func() error { return b.PingSize(a.Addrs[i], 1000) })
				}
				if now, err := h.tunPid(); now == before || err != nil {
					t.Errorf("%s is served by process %d, and was by %d: %v", h.Name, now, before, err)
				}
			}
			reach(t, a, b, network.mtu)
		})
	}
}
