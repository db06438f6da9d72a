package userspace

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/kernel"
)

func TestWireGuardLink(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if there, err := h.There(); err != nil || len(h.pids()) > 0 {
		t.Fatalf("asking what is there gave %v, %v and started %v", there, err, h.pids())
	}
	h.must(h.WireGuard("overlay-wg", 1420))
	is := h.there("overlay-wg")
	for _, want := range []string{"mtu 1420", ",UP", "tun type tun", "alias " + kernel.AliasWireGuard, "addrgenmode none"} {
		if !strings.Contains(is, want) {
			t.Errorf("the link is not %q:\n%s", want, is)
		}
	}
	h.must(h.WireGuard("overlay-wg", 1420))
	if now := h.there("overlay-wg"); now != is {
		t.Errorf("asking again made of\n%s\n%s", is, now)
	}
	if got := h.wg("overlay-wg", "get=1"); !strings.Contains(got, "errno=0") {
		t.Errorf("wg(8) would hear %q", got)
	}
	there, err := h.There()
	h.must(err)
	if len(there.WireGuard) != 1 || there.WireGuard[0] != (WireGuard{"overlay-wg", 1420}) || there.Resident == 0 || there.Version == "" {
		t.Errorf("there is %+v", there)
	}
}

// wg speaks as wg(8) does.
func (h *host) wg(link string, lines ...string) string {
	h.t.Helper()
	c, err := net.Dial("unix", filepath.Join(h.wireguard, link+".sock"))
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_, err = fmt.Fprintf(c, "%s\n\n", strings.Join(lines, "\n"))
	h.must(err)
	var answer strings.Builder
	for s := bufio.NewScanner(c); s.Scan() && s.Text() != ""; {
		answer.WriteString(s.Text() + "\n")
	}
	return answer.String()
}

// What happens to the process and its links, each of which the next request mends.
func TestWireGuardLinkIsMadeAnew(t *testing.T) {
	t.Parallel()
	for what, happens := range map[string]func(h *host){
		"link deleted":   func(h *host) { nstest.Sh(h.t, h.ns, "ip link delete overlay-wg") },
		"link renamed":   func(h *host) { nstest.Sh(h.t, h.ns, "ip link set overlay-wg down; ip link set overlay-wg name gone") },
		"process killed": func(h *host) { h.end() },
		"a file in the place of its socket": func(h *host) {
			path := filepath.Join(h.wireguard, "overlay-wg.sock")
			h.end()
			h.must(os.Remove(path))
			h.must(os.WriteFile(path, nil, 0o600))
		},
		"killed, socket gone": func(h *host) {
			h.end()
			h.must(os.Remove(h.socket()))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.must(h.WireGuard("overlay-wg", 1420))
			happens(h)
			h.eventually("the link can be made", func() bool { return h.WireGuard("overlay-wg", 1420) == nil })
			if is := h.there("overlay-wg"); !strings.Contains(is, ",UP") {
				t.Errorf("the link is %q", is)
			}
			if got := h.wg("overlay-wg", "get=1"); !strings.Contains(got, "errno=0") {
				t.Errorf("wg(8) would hear %q", got)
			}
		})
	}
}

// Somebody tidies up /run/wireguard.
func TestWireGuardControlSocketComesBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.WireGuard("overlay-wg", 1420))
	h.must(os.Remove(filepath.Join(h.wireguard, "overlay-wg.sock")))
	h.eventually("wg(8) is answered", func() bool { return strings.Contains(h.wg("overlay-wg", "get=1"), "errno=0") })
}

// Who sets a port that is taken hears it, and can set it later.
func TestWireGuardPortTaken(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.must(h.WireGuard("overlay-wg", 1420))
	h.must(h.WireGuard("overlay6-wg", 1420))
	if got := h.wg("overlay-wg", "set=1", "listen_port=51820"); got != "errno=0\n" {
		t.Fatalf("the first hears %q", got)
	}
	if got, want := h.wg("overlay6-wg", "set=1", "listen_port=51820"), fmt.Sprintf("errno=-%d\n", unix.EADDRINUSE); got != want {
		t.Errorf("the second hears %q, not %q", got, want)
	}
	nstest.Sh(t, h.ns, "ip link delete overlay-wg")
	h.eventually("the port is free", func() bool { return h.wg("overlay6-wg", "set=1", "listen_port=51820") == "errno=0\n" })
}
