package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// needWireGuard skips where the kernel has no wireguard, without which flanneld has none.
func needWireGuard(t *testing.T, h *Host) {
	t.Helper()
	flanneld(t)
	if out, err := h.Try("ip", "link", "add", "probe", "type", "wireguard"); err != nil {
		t.Skipf("needs a kernel with wireguard: make test-kernels: %s", out)
	}
	h.Exec("ip", "link", "delete", "probe")
}

// newFlanneldWireGuard is a host of ours and one of a real flanneld in a network of wireguard, and a container on each.
func newFlanneldWireGuard(t *testing.T, stack Stack, config string) (us, they *Host, flannel *Process, a, b *Container) {
	t.Helper()
	lab, wire := newWire(t, stack, config)
	us, they = lab.NewHost(wire, 11), lab.NewHost(wire, 12)
	needWireGuard(t, they)
	flannel = they.Flanneld()
	us.Start("--ip-masq")
	us.WaitReady()
	a, b = us.NewContainer(), they.NewContainer()
	talk(t, "at first", a, b)
	return us, they, flannel, a, b
}

// talk waits until containers reach each other, each in all families.
func talk(t *testing.T, why string, a, b *Container) {
	t.Helper()
	for _, pair := range [][2]*Container{{a, b}, {b, a}} {
		for _, dst := range pair[1].Addrs {
			eventually(t, fmt.Sprintf("%s: %s is reached", why, dst), func() error { return pair[0].PingSize(dst, 100) })
		}
	}
}

// TestFlanneldWireGuard has a real flanneld in a network of wireguard: containers reach each other both ways at the full size, in
// every mode in which flannel's own hosts do, and after our host has another key.
func TestFlanneldWireGuard(t *testing.T) {
	t.Parallel()
	flanneld(t)
	for name, test := range map[string]struct {
		stack  Stack
		config string
	}{
		"IPv4":     {Stack{V4: true}, `{"Type":"wireguard"}`},
		"separate": {both, `{"Type":"wireguard","PSK":"O7RYP6oqKzAKeY1ngUFMb1vlGyNTgM2WKKCMRELs2UA="}`},
		"auto":     {both, `{"Type":"wireguard","Mode":"auto"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			us, _, _, a, b := newFlanneldWireGuard(t, test.stack, test.config)
			reach(t, a, b, 1420)
			reach(t, b, a, 1420)
			if _, err := us.rotate(); err != nil {
				t.Fatal(err)
			}
			talk(t, "with another key", a, b)
		})
	}
}

// TestFlanneldWireGuardTakeover starts overlayd in the place of a flanneld that was killed: link, key and sessions stay, and no
// datagram is missing. Then flanneld again, with the key.
func TestFlanneldWireGuardTakeover(t *testing.T) {
	t.Parallel()
	us, they, flannel, a, b := newFlanneldWireGuard(t, both, `{"Type":"wireguard"}`)
	link := they.Exec("ip", "-o", "link", "show", "flannel-wg")
	x := newTrafficEvery(rekeyGap, a, b) // a guest has one slow processor
	x.lossless("from flannel", func() {
		flannel.Stop(syscall.SIGKILL)
		they.Start("--ip-masq")
		they.WaitReady()
	})
	if now := they.Exec("ip", "-o", "link", "show", "flannel-wg"); strings.Fields(now)[0] != strings.Fields(link)[0] {
		t.Errorf("the link is another: %s, was %s", now, link)
	}
	x.lossless("a start", func() {
		they.Daemon.Stop(syscall.SIGTERM)
		they.Start("--ip-masq")
		they.WaitReady()
	})
	x.stop()
	met(t, []*Host{us, they})
	key := they.wireGuardKey()

	they.Daemon.Stop(syscall.SIGTERM)
	they.Exec("install", "-m", "0400", filepath.Join(they.State, "wireguard.key"), filepath.Join(filepath.Dir(they.RunDir), "flannel", "flannel", "wgkey"))
	they.Flanneld()
	talk(t, "back to flannel", a, b)
	wg, err := us.wireGuard()
	if err != nil || len(wg.Peers) == 0 || wg.Peers[0].PublicKey != key {
		t.Errorf("peers %+v, %v; want the key %s", wg.Peers, err, key)
	}
}
