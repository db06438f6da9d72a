package integration

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// copyIdentity gives the host the identity of another, as a copied disk does.
func (h *Host) copyIdentity(from *Host) {
	h.t.Helper()
	for _, name := range []string{"identity.json", "leases.jsonl"} {
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

// TestClonedHost starts copies of a host, on machines that say they are the same one, while the first lives and while it
// is away for a moment: they take identities of their own, and the first notices nothing.
func TestClonedHost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	first := r.hosts[0]
	before := r.Keys(subnetsPrefix)[keys[0]]
	clone := func(number int) {
		t.Helper()
		h := r.NewHost(r.wire, number)
		h.copyIdentity(first)
		h.Start()
		h.WaitReady()
		h.logs("going on with a new identity", first.Name, first.Addrs[0].String())
		if h.key() == keys[0] || vtepMAC(t, h) == vtepMAC(t, first) {
			t.Errorf("the copy has lease %s and MAC %s of the first host", h.key(), vtepMAC(t, h))
		}
		r.hosts = append(r.hosts, h)
	}
	clone(13)
	first.Daemon.Stop(syscall.SIGKILL)
	clone(14)
	first.Start()
	first.WaitReady()
	r.stream.Pass(500)
	if now := r.Keys(subnetsPrefix)[keys[0]]; now != before {
		t.Errorf("the first host's lease is %s, was %s", now, before)
	}
	r.hosts[3].Daemon.Stop(syscall.SIGKILL)
	r.hosts[3].Start() // its identity is its own now
	r.hosts[3].WaitReady()
	r.well(t, keys...)
}

// TestHostMovesWhileDown gives a host another address while its overlayd is down: nobody else can be that host, so it has
// its lease at once.
func TestHostMovesWhileDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	h := r.hosts[0]
	h.waitCached(1)
	r.stream.stopQuietly() // what is on the way to an address that is gone is lost
	h.Daemon.Stop(syscall.SIGKILL)
	r.wire.removeAddrs(h, 11)
	r.wire.Address(h.Node, "eth0", 51)
	r.wire.DefaultRoute(h.Node, "eth0")
	h.Start()
	measure(t, "a host that comes back with another address is ready", time.Second, h.WaitReady)
	eventually(t, "packets pass", func() error { return pingAll(r.a, r.b) })
	r.stream = NewStream(r.a, r.b)
	r.well(t, keys...)
}

// TestTwoHostsOfOneAddress has a second host announce the address of the first: both say so, and the others' packets pass.
func TestTwoHostsOfOneAddress(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	twin := r.NewHost(r.wire, 13)
	for i, flag := range []string{"--public-ip", "--public-ipv6"} {
		twin.Start(flag, r.hosts[0].Addrs[i].String())
		twin.WaitReady()
		for _, h := range []*Host{twin, r.hosts[0]} {
			h.waitProblem("is announced with this host's address")
			h.counted("duplicate_address")
		}
		r.stream.Pass(500)
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
