package integration

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// copyIdentity gives the host the identity of another, as a copied disk does.
func (h *Host) copyIdentity(from *Host) {
	h.t.Helper()
	for _, name := range []string{"identity.json", "leases.json"} {
		b, err := os.ReadFile(filepath.Join(from.State, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(h.State, name), b, 0o600)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

// waitRefused waits until the host says why it may not join, and checks that it has done nothing.
func (h *Host) waitRefused(texts ...string) {
	h.t.Helper()
	h.waitStatus("is refused", func(s hostStatus) bool { return !s.Ready && hasAll(s.Stage, texts) })
	h.logs(texts...)
	if _, err := os.Stat(h.SubnetFile()); err == nil {
		h.t.Error("a host that is refused offers a subnet")
	}
}

// TestClonedHost starts a copy of a host, on a machine that says it is the same one: while the first lives the copy is
// refused, and told what to do.
func TestClonedHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	clone := r.NewHost(r.wire, 13)
	clone.copyIdentity(r.hosts[0])
	clone.Start()
	clone.waitRefused(r.hosts[0].Name, r.hosts[0].Addrs[0].String(), "remove its state directory")
	r.hosts[0].logs("another host wants this one's address or identity")
	r.hosts[0].counted("duplicate_address")
	r.stream.Pass(500)

	clone.Daemon.Stop(syscall.SIGTERM) // and what it was told to do
	if err := os.RemoveAll(clone.State); err != nil {
		t.Fatal(err)
	}
	clone.Start()
	clone.WaitReady()
	r.hosts = append(r.hosts, clone)
	r.well(t, keys...)
}

// TestClonedHostReplacesTheFirst starts a copy of a host that is gone: it takes the lease over.
func TestClonedHostReplacesTheFirst(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	key := r.hosts[0].key()
	r.stream.stopQuietly()
	r.hosts[0].Daemon.Stop(syscall.SIGKILL)
	clone := r.NewHost(r.wire, 13)
	clone.copyIdentity(r.hosts[0])
	clone.Start()
	measure(t, "a host that comes back with another address is ready", 5*time.Second, clone.WaitReady)
	if clone.key() != key {
		t.Errorf("the host has %s, want %s as before", clone.key(), key)
	}
	r.hosts[0].Start()
	r.hosts[0].waitStatus("the first is the second now", func(s hostStatus) bool {
		return strings.Contains(s.Stage, clone.Addrs[0].String())
	})
}

// TestTwoHostsOfOneAddress has a second host announce the address of the first.
func TestTwoHostsOfOneAddress(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	twin := r.NewHost(r.wire, 13)
	for i, flag := range []string{"--public-ip", "--public-ipv6"} {
		addr := r.hosts[0].Addrs[i].String()
		twin.Start(flag, addr)
		twin.waitRefused(r.hosts[0].Name, addr, "has this host's address")
		r.stream.Pass(500)
		if n := len(r.Keys(subnetsPrefix)); n != 2 {
			t.Errorf("%d leases, want none of the second host of one address", n)
		}
		twin.Daemon.Stop(syscall.SIGTERM)
	}
	twin.Start()
	twin.WaitReady()
	r.hosts = append(r.hosts, twin)
	r.well(t, keys...)
}

// TestCopiedStateDirectory starts a copy of a host's state on another machine, as a cloned image does: it is another
// host, with another MAC.
func TestCopiedStateDirectory(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/etc/machine-id"); err != nil {
		t.Skip("needs a machine-id(5), to put another one over it")
	}
	r := newRig(t)
	keys := r.keys()
	other := r.NewHost(r.wire, 13)
	other.copyIdentity(r.hosts[0])
	id := filepath.Join(t.TempDir(), "machine-id")
	if err := os.WriteFile(id, []byte("0123456789abcdef0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := other.Args()
	other.Daemon = other.Spawn("overlayd on "+other.Name, nil, append([]string{"unshare", "--mount", "sh", "-c",
		`mount --bind "$0" /etc/machine-id && exec "$@"`, id}, args...)...)
	other.WaitReady()
	if other.key() == keys[0] {
		t.Errorf("the copy has the first host's lease %s", keys[0])
	}
	if vtepMAC(t, other) == vtepMAC(t, r.hosts[0]) {
		t.Error("the copy has the first host's MAC")
	}
	r.hosts = append(r.hosts, other)
	r.well(t, keys...)
}
