package agent

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

func TestReadyOnlyWhenProgrammed(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.kernel.status = kernel.Status{Pending: 4}
	r.start(t)
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{"10.5.73.0-24": record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12)}))
	eventually(t, "the peer's route is planned", func() bool { return len(r.kernel.routes()) == 1 })
	if _, err := os.Stat(r.cfg.SubnetFile); err == nil {
		t.Error("subnet.env is there before the kernel is")
	}
	if s := r.Status(); s.Ready || slices.Contains(r.sent(), "READY=1") {
		t.Errorf("ready before the kernel is: %+v, told systemd %q", s, r.sent())
	}

	r.kernel.mu.Lock()
	r.kernel.status = kernel.Status{InStep: true}
	r.kernel.mu.Unlock()
	r.kernel.changed <- struct{}{}
	eventually(t, "systemd hears READY", func() bool { return slices.Contains(r.sent(), "READY=1") })
	if sent := r.sent(); !strings.HasPrefix(sent[slices.Index(sent, "READY=1")-1], "STATUS=serving ") {
		t.Errorf("systemd is told %q, want that the host serves before it is ready", sent)
	}
	env, err := os.ReadFile(r.cfg.SubnetFile)
	if want := "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"; err != nil || string(env) != want {
		t.Errorf("subnet.env is %q (%v), want %q", env, err, want)
	}
	if s := r.Status(); !s.Ready || s.Degraded || len(s.Peers) != 1 || s.Peers[0].Path != "vxlan" {
		t.Errorf("status of a host that is well: %+v", s)
	}
}

func TestConfigThatDoesNotWorkEndsTheStart(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	stop := r.start(t)
	r.member.tell(news(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}}`, nil))
	eventually(t, "the agent has looked", func() bool { return len(r.member.changed) == 0 })
	if err := stop(); err == nil || !strings.Contains(err.Error(), "ipsec") {
		t.Errorf("Run() = %v, want what is wrong with the config", err)
	}
	if r.kernel.replaced != 0 || len(r.member.advertised) != 0 {
		t.Error("something was done though the start failed")
	}
}

func TestConfigThatDoesNotWorkLater(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{"10.5.73.0-24": record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12)}))
	eventually(t, "ready", func() bool { return r.Status().Ready })
	before := r.kernel.routes()
	r.member.tell(news(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}}`, nil))
	eventually(t, "the problem is told", func() bool { return r.Status().Degraded })
	s := r.Status()
	if !s.Ready || s.Backend != "vxlan" || !strings.Contains(strings.Join(s.Problems, "\n"), "ipsec") {
		t.Errorf("status %+v, want ready, on vxlan, and a problem that names ipsec", s)
	}
	if diff := cmp.Diff(before, r.kernel.routes()); diff != "" {
		t.Errorf("routes changed (-want +got):\n%s", diff)
	}
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "the problem is over", func() bool { return !r.Status().Degraded })
}

func TestConfigThatDoesNotWorkAtARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.cfg.Last = leasecache.View{Config: []byte(vxlanConfig)}
	r.start(t)
	r.member.tell(news(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"ipsec"}}`, nil))
	eventually(t, "ready", func() bool { return r.Status().Ready })
	if s := r.Status(); s.Backend != "vxlan" || !strings.Contains(strings.Join(s.Problems, "\n"), "ipsec") {
		t.Errorf("status %+v, want vxlan as before, and a problem that names ipsec", s)
	}
}

func TestPeersComeChangeAndGo(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	const vx, hg, bad = "10.5.73.0-24", "10.5.74.0-24", "10.5.75.0-24"
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{
		vx:  record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12),
		hg:  record("10.5.74.0/24", "172.30.0.13", "host-gw", 0), // each peer is reached the way its lease says
		bad: record("10.5.75.0/24", "172.30.0.14", "vxlan", 0x11),
	}))
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{bad: record("10.5.75.0/24", "172.30.0.14", "ipsec", 0)}))
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{
		vx:  record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12),
		hg:  record("10.5.74.0/24", "172.30.0.13", "host-gw", 0),
		bad: record("10.5.75.0/24", "172.30.0.14", "ipsec", 0),
	}))
	want := []string{"10.5.73.0/24 via 10.5.73.0 dev overlay.1", "10.5.74.0/24 via 172.30.0.13 dev eth0"}
	eventually(t, "both ways are planned", func() bool { return slices.Equal(r.kernel.routes(), want) })
	eventually(t, "the peer that makes no sense is told", func() bool { return r.Status().Degraded })
	if s := r.Status(); !s.Ready || !strings.Contains(s.Peers[2].Error, "ipsec") || len(s.Problems) > 0 {
		t.Errorf("a peer that makes no sense: %+v, want ready, and ipsec to be named in the peer's error alone", s)
	}

	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{vx: nil, bad: nil, hg: record("10.5.74.0/24", "172.30.0.23", "host-gw", 0)}))
	want = []string{"10.5.74.0/24 via 172.30.0.23 dev eth0"}
	eventually(t, "one has moved and two are gone", func() bool { return slices.Equal(r.kernel.routes(), want) })
	if s := r.Status(); s.Degraded || r.kernel.replaced != 1 {
		t.Errorf("degraded %v, %d complete states given, want none and one: %+v", s.Degraded, r.kernel.replaced, s)
	}
	r.kernel.set(kernel.Status{Failed: []kernel.Failure{{Owner: hg, Object: "ip route", Err: errors.New("no such device")}}})
	if s := r.Status(); !s.Ready || !s.Degraded || len(s.Problems) > 0 {
		t.Errorf("an object that the kernel refuses: %+v, want ready and degraded, and it to be among the kernel's alone", s)
	}

	link := kernel.Failure{Owner: kernel.Several, Object: "ip link add overlay.9", Err: errors.New("a link overlay.9 exists")}
	r.kernel.set(kernel.Status{Failed: []kernel.Failure{link}})
	r.Agent.mu.Lock()
	if n := r.ownFailures(r.kernel.Status()); n != 0 {
		t.Errorf("%d failures of the host's own, want that of several peers to be theirs", n)
	}
	link.Owner, link.Object = hg, r.planner.self(r.own.Lease)[0].String()
	r.Agent.mu.Unlock()
	r.kernel.set(kernel.Status{Failed: []kernel.Failure{link}})
	eventually(t, "what the host needs itself counts, also where a peer claimed it first", func() bool { return !r.Status().Ready })
}

func TestDirectRoutingFollowsTheUnderlay(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	near, far := netip.MustParseAddr("172.30.0.12"), netip.MustParseAddr("172.31.0.13")
	r.kernel.far = map[netip.Addr]bool{far: true}
	r.start(t)
	r.member.tell(news(t, directConfig, map[string]*subnet.Record{
		"10.5.73.0-24": record("10.5.73.0/24", near.String(), "vxlan", 0x12),
		"10.5.74.0-24": record("10.5.74.0/24", far.String(), "vxlan", 0x13),
	}))
	want := []string{"10.5.73.0/24 via 172.30.0.12 dev eth0", "10.5.74.0/24 via 10.5.74.0 dev overlay.1"}
	eventually(t, "near is direct and far is not", func() bool { return slices.Equal(r.kernel.routes(), want) })

	r.kernel.mu.Lock()
	r.kernel.far = map[netip.Addr]bool{near: true}
	r.kernel.mu.Unlock()
	r.kernel.underlay <- struct{}{}
	want = []string{"10.5.73.0/24 via 10.5.73.0 dev overlay.1", "10.5.74.0/24 via 172.31.0.13 dev eth0"}
	eventually(t, "they have changed places", func() bool { return slices.Equal(r.kernel.routes(), want) })
}

func TestUnderlayChanges(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	var mu sync.Mutex
	host, hostErr := testHost("172.30.0.11"), error(nil)
	r.host = func() (Host, error) {
		mu.Lock()
		defer mu.Unlock()
		return host, hostErr
	}
	r.start(t)
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "ready", func() bool { return r.Status().Ready })

	mu.Lock()
	hostErr = errors.New("eth0 has no IPv4 address")
	mu.Unlock()
	r.kernel.underlay <- struct{}{}
	eventually(t, "the loss is told", func() bool { return r.Status().Degraded })

	mu.Lock()
	host, hostErr = testHost("172.30.0.99"), nil
	mu.Unlock()
	r.kernel.underlay <- struct{}{}
	eventually(t, "the new address is advertised", func() bool {
		r.member.mu.Lock()
		defer r.member.mu.Unlock()
		last := r.member.advertised[len(r.member.advertised)-1]
		return last.Endpoints[0].PublicIP == netip.MustParseAddr("172.30.0.99")
	})
	eventually(t, "all is well", func() bool { return !r.Status().Degraded })
}

func TestTakenLeaseRefusesContainers(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	held := news(t, vxlanConfig, nil)
	r.member.tell(held)
	eventually(t, "subnet.env is there", func() bool { _, err := os.Stat(r.cfg.SubnetFile); return err == nil })

	taken := held
	taken.Own = etcdstore.Own{State: etcdstore.Taken, Reason: "10.5.72.0/24 is held by host b"}
	r.member.tell(taken)
	refusal := filepath.Join(filepath.Dir(r.cfg.SubnetFile), "subnet.refused")
	eventually(t, "the refusal is there", func() bool {
		text, _ := os.ReadFile(refusal)
		return string(text) == "10.5.72.0/24 is held by host b\n"
	})
	if _, err := os.Stat(r.cfg.SubnetFile); err == nil {
		t.Error("subnet.env still offers the subnet")
	}
	if s := r.Status(); !s.Degraded || len(r.kernel.owners[self]) == 0 {
		t.Errorf("status %+v, want degraded, with the host's own objects in place", s)
	}

	r.member.tell(held)
	eventually(t, "subnet.env is back", func() bool { _, err := os.Stat(r.cfg.SubnetFile); return err == nil })
	eventually(t, "the refusal is gone", func() bool { _, err := os.Stat(refusal); return errors.Is(err, fs.ErrNotExist) }) // a moment later
}

// What the host remembers is as good as what etcd says, until etcd says something.
func TestComesUpFromWhatIsRemembered(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	u := news(t, vxlanConfig, map[string]*subnet.Record{"10.5.73.0-24": record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12)})
	u.Connected, u.Remembered, u.Err = false, true, errors.New("etcd does not answer")
	r.member.tell(u)
	want := []string{"10.5.73.0/24 via 10.5.73.0 dev overlay.1"}
	eventually(t, "the peer is reachable", func() bool { return slices.Equal(r.kernel.routes(), want) })
	eventually(t, "ready but degraded", func() bool {
		s := r.Status()
		return s.Ready && s.Degraded && strings.Contains(s.Stage, "as last seen")
	})

	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{"10.5.73.0-24": nil}))
	eventually(t, "etcd's truth counts again", func() bool { return len(r.kernel.routes()) == 0 && !r.Status().Degraded })
}

// A lease that is remembered and does not count is not served: who adds containers is told why.
func TestRefusesWhatIsRememberedAndNotHeld(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	if err := os.MkdirAll(filepath.Dir(r.cfg.SubnetFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.cfg.SubnetFile, []byte("FLANNEL_SUBNET=10.5.72.1/24\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.start(t)
	u := news(t, vxlanConfig, nil)
	u.Connected, u.Remembered, u.Own = false, true, etcdstore.Own{State: etcdstore.Waiting, Reason: "the remembered lease of 10.5.72.0/24 ended yesterday"}
	r.member.tell(u)
	eventually(t, "containers are refused", func() bool {
		text, _ := os.ReadFile(filepath.Join(filepath.Dir(r.cfg.SubnetFile), "subnet.refused"))
		return string(text) == u.Own.Reason+"\n"
	})
	if _, err := os.Stat(r.cfg.SubnetFile); err == nil || r.Status().Ready || r.kernel.replaced != 0 {
		t.Errorf("serves what is not held: subnet.env %v, status %+v", err, r.Status())
	}
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "the lease is served when it is held", func() bool { return r.Status().Ready })
}

// A host whose identity is another's too takes one of its own, with another MAC, and tells it.
func TestCopyTakesAnIdentityOfItsOwn(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	before, vtep := r.cfg.State.HostID, r.cfg.State.VTEP
	r.start(t)
	u := news(t, vxlanConfig, nil)
	u.Own = etcdstore.Own{HostID: before, State: etcdstore.Copied, Reason: "the identity is that of host b"}
	r.member.tell(u)
	r.member.tell(u) // the member has not heard of the other identity yet
	eventually(t, "another identity is told", func() bool {
		said := r.member.said()
		return len(said) > 0 && said[len(said)-1].HostID != before
	})
	if s := r.Status(); s.HostID == before || r.cfg.State.VTEP == vtep || r.kernel.replaced != 0 {
		t.Errorf("status %+v, VTEP %s", s, r.cfg.State.VTEP)
	}
	if again, err := ReadState(filepath.Join(r.dir, "state"), "machine"); err != nil || again.HostID != r.Status().HostID {
		t.Errorf("on disk: %+v, %v", again, err)
	}
}
