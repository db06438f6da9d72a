package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// wireGuardState is what overlayctl shows of a host's wireguard.
type wireGuardState struct {
	PublicKey string
	Links     []struct {
		Name      string
		UserSpace bool
	}
	Peers []struct {
		Host, PublicKey, Endpoint string
		Outside                   bool
		Handshake                 *time.Time
	}
}

func (h *Host) wireGuard() (wg wireGuardState, err error) {
	out, err := h.TryOverlayctl("wireguard", "-o", "json", "--run-dir", h.RunDir)
	if out != "" { // with exit code 1, if a peer does not answer
		err = json.Unmarshal([]byte(out), &wg)
	}
	return wg, err
}

func (h *Host) wireGuardKey() string {
	h.t.Helper()
	wg, err := h.wireGuard()
	if err != nil || wg.PublicKey == "" {
		h.t.Fatalf("%s has the key %q, %v", h.Name, wg.PublicKey, err)
	}
	return wg.PublicKey
}

// rotate gives the host another key, and returns it.
func (h *Host) rotate() (string, error) {
	out, err := h.TryOverlayctl("wireguard", "rotate", "--run-dir", h.RunDir)
	if err != nil {
		return "", err
	}
	_, key, _ := strings.Cut(strings.TrimSpace(out), "the new public key is ")
	return key, nil
}

// met waits until each host knows the keys of all others, and no other key.
func met(t *testing.T, hosts []*Host) {
	t.Helper()
	var keys []string
	for _, h := range hosts {
		keys = append(keys, h.wireGuardKey())
	}
	for i, h := range hosts {
		want := slices.Sorted(slices.Values(slices.Concat(keys[:i], keys[i+1:])))
		eventually(t, h.Name+" knows all keys", func() error {
			wg, err := h.wireGuard()
			if err != nil {
				return err
			}
			var have []string
			for _, p := range wg.Peers {
				have = append(have, p.PublicKey)
			}
			slices.Sort(have)
			if have = slices.Compact(have); !slices.Equal(have, want) {
				return fmt.Errorf("has %q, want %q", have, want)
			}
			return nil
		})
	}
}

// rekeyGap is between two datagrams of a stream: wireguard keeps 128 packets for a peer while there is no session, and on a busy
// machine that takes some hundred milliseconds.
var rekeyGap = slow * 10 * time.Millisecond

// TestWireGuardRotate changes the keys of hosts while containers talk: of one, of two at the same moment, of one while another is
// down. No datagram is missing. It has the package's processors to itself: where a process carries wireguard, and waits for one for a
// second, datagrams between two hosts that both change their keys are lost.
func TestWireGuardRotate(t *testing.T) {
	lab, wire := newWire(t, both, `{"Type":"wireguard"}`)
	hosts := lab.NewHosts(wire, 3)
	for _, h := range hosts {
		h.Start("--ip-masq")
	}
	for _, h := range hosts {
		h.WaitReady()
	}
	met(t, hosts)
	here, third := hosts[0].NewContainer(), hosts[2].NewContainer()
	x := newTrafficEvery(rekeyGap, here, hosts[1].NewContainer())
	before := hosts[0].wireGuardKey()
	x.lossless("one host", func() {
		key, err := hosts[0].rotate()
		if err != nil {
			t.Fatal(err)
		}
		if now := hosts[0].wireGuardKey(); now != key || now == before {
			t.Errorf("the key is %q, was %q, and rotate said %q", now, before, key)
		}
		met(t, hosts)
	})
	info, err := os.Stat(filepath.Join(hosts[0].State, "wireguard.key"))
	if err != nil || info.Mode() != 0o600 || info.Size() != 44 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	y := newTrafficEvery(rekeyGap, hosts[1].NewContainer(), third)
	y.lossless("two hosts at the same moment", func() {
		var both errgroup.Group
		for _, h := range hosts[1:] {
			both.Go(func() error { _, err := h.rotate(); return err })
		}
		if err := both.Wait(); err != nil {
			t.Error(err)
		}
		met(t, hosts)
	})
	y.stop()
	x.lossless("one host, while another is down", func() {
		hosts[2].Daemon.Stop(syscall.SIGTERM)
		eventually(t, "another key", func() error { _, err := hosts[0].rotate(); return err })
		hosts[2].Start("--ip-masq")
		hosts[2].WaitReady()
		met(t, hosts)
		for _, dst := range here.Addrs {
			eventually(t, "the host that was down reaches it", func() error { return third.PingSize(dst, 100) })
		}
	})
	x.lossless("a start with the new key", func() {
		hosts[0].Daemon.Stop(syscall.SIGTERM)
		hosts[0].Start("--ip-masq")
		hosts[0].WaitReady()
		met(t, hosts)
	})
	x.stop()
	if key := privateKey(t, hosts[0]); strings.Contains(hosts[0].Daemon.Output.String(), key) {
		t.Error("the log has the private key")
	}
}

func privateKey(t *testing.T, h *Host) string {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(h.State, "wireguard.key"))
	if err != nil {
		t.Fatal(err)
	}
	return string(key)
}

// TestWireGuardRotateWithoutEtcd asks for another key where other hosts could not hear of it: it is refused in a line, and nothing
// is half done.
func TestWireGuardRotateWithoutEtcd(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, both, `{"Type":"wireguard"}`)
	hosts := lab.NewHosts(wire, 2)
	for _, h := range hosts {
		h.Start("--ip-masq")
		h.WaitReady()
	}
	met(t, hosts)
	x := newTrafficEvery(rekeyGap, hosts[0].NewContainer(), hosts[1].NewContainer())
	before, file, leases := hosts[0].wireGuardKey(), privateKey(t, hosts[0]), lab.Keys(subnetsPrefix)
	x.lossless("etcd is away", func() {
		lab.StopEtcd()
		_, err := hosts[0].rotate()
		if err == nil || strings.Count(strings.TrimSpace(err.Error()), "\n") > 0 || !strings.Contains(err.Error(), "nothing was changed") {
			t.Errorf("rotate: %v, want a line that says that nothing was changed", err)
		}
		if hosts[0].wireGuardKey() != before || privateKey(t, hosts[0]) != file {
			t.Error("the key is another")
		}
	})
	x.lossless("etcd is back", func() {
		lab.ResumeEtcd()
		eventually(t, "another key", func() error { _, err := hosts[0].rotate(); return err })
		met(t, hosts)
	})
	x.stop()
	if now := lab.Keys(subnetsPrefix); len(now) != len(leases) {
		t.Errorf("leases: %v, were %v", now, leases)
	}
}
