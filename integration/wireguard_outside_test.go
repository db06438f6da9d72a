package integration

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// wgQuick brings up a configuration as wg-quick does, on a machine that runs nothing of ours, under the name of its file.
func (h *Host) wgQuick(name, config string) *Process {
	h.t.Helper()
	path := filepath.Join(filepath.Dir(h.RunDir), name+".conf")
	writeFile(h, path, config)
	h.Exec("chmod", "600", path)
	script := `mkdir -p /run/wireguard && mount -t tmpfs tmpfs /run/wireguard && wg-quick up "$0" && wg show && exec sleep infinity`
	p := h.Spawn("wg-quick on "+h.Name, []string{"WG_QUICK_USERSPACE_IMPLEMENTATION=" + bin("wireguard-go")}, "unshare", "--mount", "sh", "-ec", script, path)
	eventually(h.t, "wg-quick is done", func() error {
		if !p.Running() {
			h.t.Fatalf("wg-quick ended:\n%s", p.Output.String())
		}
		if !strings.Contains(p.Output.String(), "interface: "+name) {
			return fmt.Errorf("%s", p.Output.String())
		}
		return nil
	})
	return p
}

// overlayAddrs are those that a configuration gives the link.
func overlayAddrs(t *testing.T, config string) (addrs []netip.Addr) {
	t.Helper()
	line := regexp.MustCompile(`(?m)^Address = (.*)$`).FindStringSubmatch(config)
	if line == nil {
		t.Fatalf("no address in\n%s", config)
	}
	for text := range strings.SplitSeq(line[1], ", ") {
		addrs = append(addrs, netip.MustParsePrefix(text).Addr())
	}
	return addrs
}

// TestOutsidePeer lets a machine into a network by what peers add prints, with Debian's wg-quick: it reaches containers of all
// hosts, and they it, also after hosts start again; it cannot speak for others; and when it is removed it is out.
func TestOutsidePeer(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"wireguard","Mode":"auto","PSK":"O7RYP6oqKzAKeY1ngUFMb1vlGyNTgM2WKKCMRELs2UA="}`)
	hosts := lab.NewHosts(wire, 2)
	for _, h := range hosts {
		h.Start("--ip-masq")
	}
	for _, h := range hosts {
		h.WaitReady()
	}
	met(t, hosts)
	laptop := lab.NewHost(wire, 31)
	config := hosts[0].Overlayctl("peers", "add", "laptop")
	laptop.wgQuick("laptop", config)
	containers := []*Container{hosts[0].NewContainer(), hosts[1].NewContainer()}
	addrs := overlayAddrs(t, config)
	reached := func(why string) {
		t.Helper()
		for _, c := range containers {
			for i, dst := range c.Addrs {
				eventually(t, why+": a container is reached", func() error {
					out, err := laptop.Try("ping", "-c", "1", "-W", "1", "-s", "1300", "-I", addrs[i].String(), dst.String())
					if err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					return nil
				})
				eventually(t, why+": it is reached", func() error { return c.PingSize(addrs[i], 1300) })
			}
		}
	}
	reached("as it came")
	for _, h := range hosts {
		eventually(t, "the host tells of it", func() error {
			out := h.Overlayctl("peers", "list", "--run-dir", h.RunDir)
			if !regexp.MustCompile(`(?m)^laptop .* \d+s ago$`).MatchString(out) {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
	}
	if out, err := hosts[0].TryOverlayctl("peers", "--run-dir", hosts[0].RunDir, "--count", "1"); err != nil || strings.Contains(out, "laptop") {
		t.Errorf("peers: %v\n%s", err, out)
	}

	// Allowed-ips are what a peer may say that it is.
	stolen := containers[1].Addrs[0]
	laptop.Exec("ip", "address", "add", stolen.String()+"/32", "dev", "laptop")
	if out, err := laptop.Try("ping", "-c", "3", "-i", "0.2", "-W", "1", "-I", stolen.String(), containers[0].Addrs[0].String()); err == nil {
		t.Errorf("it speaks for a container of another host:\n%s", out)
	}
	laptop.Exec("ip", "address", "delete", stolen.String()+"/32", "dev", "laptop")

	hosts[0].Daemon.Stop(syscall.SIGTERM)
	hosts[0].Start("--ip-masq")
	hosts[0].WaitReady()
	reached("after a start")

	hosts[0].Overlayctl("peers", "remove", "laptop")
	for _, h := range hosts {
		eventually(t, "it is forgotten", func() error {
			wg, err := h.wireGuard()
			if err == nil && len(wg.Peers) != 1 {
				err = fmt.Errorf("%d peers", len(wg.Peers))
			}
			return err
		})
	}
	if out, err := laptop.Try("ping", "-c", "2", "-i", "0.2", "-W", "1", containers[0].Addrs[0].String()); err == nil {
		t.Errorf("it is still in:\n%s", out)
	}
}
