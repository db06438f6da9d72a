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

// TestIdentityIsLost removes what a host remembers, under its containers: it is the same host, with the same lease.
func TestIdentityIsLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys, h := r.keys(), r.hosts[0]
	before := r.lease(t, keys[0])
	for _, what := range []string{".", "identity.json", "."} {
		h.Daemon.Stop(syscall.SIGKILL)
		if err := os.RemoveAll(filepath.Join(h.State, what)); err != nil {
			t.Fatal(err)
		}
		h.Start()
		measure(t, "a host without "+what+" of its state directory is ready", time.Second, h.WaitReady)
		h.logs("made a new host identity")
		h.logs("needs attention", "was leased to this host as")
		if now := r.lease(t, keys[0]); now.Created != before.Created || now.Lease != before.Lease {
			t.Errorf("the lease is %+v, was %+v", now, before)
		}
		if n := len(r.Keys(subnetsPrefix)); n != len(r.hosts) {
			t.Errorf("%d leases, want one for each of %d hosts", n, len(r.hosts))
		}
	}
	c := h.NewContainer()
	if err := pingAll(c, r.b); err != nil {
		t.Error(err)
	}
	c.Detach()
	r.well(t, keys...)
}

// startOn starts overlayd on a machine with this SMBIOS UUID.
func (h *Host) startOn(uuid string, args ...string) {
	h.t.Helper()
	h.Daemon = h.Spawn("overlayd on "+h.Name, nil, append([]string{"unshare", "--mount", "sh", "-c",
		`mount -t tmpfs none /sys/class && mkdir -p /sys/class/dmi/id && echo "$0" >/sys/class/dmi/id/product_uuid && exec "$@"`,
		uuid}, h.Args(args...)...)...)
	h.WaitReady()
}

// TestHostIsReimaged leaves nothing of a host but its hardware and its address: it has its lease again, with a new MAC. A
// host with other hardware that announces the same address does not get it.
func TestHostIsReimaged(t *testing.T) {
	t.Parallel()
	const uuid = "2e7ef7c2-54a6-4a2b-a6b2-6e1b0c3c6f10" // of all: they are guests of one machine
	l, wire, _ := newFaultWire(t, `{"Type":"vxlan"}`)
	r := &rig{Lab: l, wire: wire, hosts: l.NewHosts(wire, 2)}
	for _, h := range r.hosts {
		h.startOn(uuid)
	}
	keys, h, twin := r.keys(), r.hosts[0], r.NewHost(r.wire, 13)
	for range 2 {
		mac := vtepMAC(t, h)
		h.wipe()
		twin.startOn(uuid, "--public-ip", h.Addrs[0].String(), "--public-ipv6", h.Addrs[1].String())
		if twin.key() == keys[0] {
			t.Errorf("another host has %s", keys[0])
		}
		twin.Daemon.Stop(syscall.SIGTERM)
		if out, code := twin.Once("--cleanup"); code != 0 {
			t.Fatalf("clean up: %s", out)
		}
		h.startOn(uuid)
		if vtepMAC(t, h) == mac {
			t.Error("the MAC is the same: the link was not gone")
		}
		if n := len(r.Keys(subnetsPrefix)); n != len(r.hosts) {
			t.Errorf("%d leases, want one for each of %d hosts", n, len(r.hosts))
		}
	}
	r.a, r.b = h.NewContainer(), r.hosts[1].NewContainer()
	r.stream = NewStream(r.a, r.b)
	r.well(t, keys...)
}

// wipe leaves nothing on a host of what overlayd ever did there.
func (h *Host) wipe() {
	h.t.Helper()
	h.Daemon.Stop(syscall.SIGKILL)
	for _, link := range []string{"overlay.1", "overlay6.1"} {
		h.Exec("ip", "link", "delete", link)
	}
	h.Exec("nft", "flush", "ruleset")
	for _, dir := range []string{h.State, h.RunDir} {
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			h.t.Fatal(err)
		}
	}
}

// TestTwoHostsOfOneMAC gives a host the MAC of another and then does what the problem advises.
func TestTwoHostsOfOneMAC(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys, first := r.keys(), r.hosts[0]
	younger := r.NewHost(r.wire, 13)
	younger.Start()
	younger.WaitReady()
	younger.Daemon.Stop(syscall.SIGTERM)
	younger.Exec("ip", "link", "set", "overlay.1", "address", vtepMAC(t, first))
	younger.Start()
	younger.waitProblem("VtepMAC "+vtepMAC(t, first)+" is that of host", first.Name, "give the younger one a MAC of its own",
		"stop overlayd, delete its vxlan links, start it again")
	younger.Daemon.Stop(syscall.SIGTERM)
	younger.Exec("ip", "link", "delete", "overlay.1")
	younger.Exec("ip", "link", "delete", "overlay6.1")
	younger.Start()
	younger.WaitReady()
	r.hosts = append(r.hosts, younger)
	r.well(t, append(keys, younger.key())...)
}
