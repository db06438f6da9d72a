package fastpath

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// stream carries bytes of a TCP connection there and back until the end of the test, and tells how long at most nothing came.
type stream struct {
	c      net.Conn
	last   atomic.Int64 // when something came
	most   atomic.Int64 // ns
	copied atomic.Int64
}

func newStream(t *testing.T, from, to netns.NsHandle, at string) *stream {
	l := listenAt(t, to, addr(at), 0)
	go func() {
		if c, err := l.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
		l.Close()
	}()
	s := &stream{c: dial(t, from, "tcp", l.Addr().String())}
	t.Cleanup(func() { s.c.Close() })
	s.last.Store(time.Now().UnixNano())
	go func() {
		b := make([]byte, 8<<10)
		for i := range b {
			b[i] = byte(i)
		}
		for {
			if _, err := s.c.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(s.c, b); err != nil {
				return
			}
			now := time.Now().UnixNano()
			s.most.Store(max(s.most.Load(), now-s.last.Swap(now)))
			s.copied.Add(int64(len(b)))
		}
	}()
	return s
}

// flows fails unless more comes, and nothing was missing for long.
func (s *stream) flows(t *testing.T, when string) {
	t.Helper()
	before := s.copied.Load()
	eventually(t, "bytes flow "+when, func() bool { return s.copied.Load() > before+1<<20 })
	if most := time.Duration(s.most.Load()); most > 2*time.Second {
		t.Errorf("%s: nothing came for %v", when, most)
	}
}

// fast says whether packets go fast on both hosts meanwhile.
func fast(a, b *site) (both bool) {
	before := [2]uint64{a.packets()["sent"], b.packets()["received"]}
	time.Sleep(100 * time.Millisecond)
	return a.packets()["sent"] > before[0]+10 && b.packets()["received"] > before[1]+10
}

// A connection stays while the fast path comes and goes, though both hosts drop what conntrack takes for invalid.
func TestChangeOfWays(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, true, true)
	streams := map[string]*stream{"IPv4": newStream(t, a.inside, b.inside, "10.1.2.5"), "IPv6": newStream(t, a.inside, b.inside, "fd00:0:0:2::5")}
	flow := func(when string) {
		for family, s := range streams {
			s.flows(t, family+" "+when)
		}
	}
	flow("by the slow way")
	for i := range 3 {
		a.Path, b.Path = nil, nil
		a.start(t, true, true)
		b.start(t, true, true)
		stopA := a.run(t)
		flow("with one end fast")
		stopB := b.run(t)
		flow("with both ends fast")
		eventually(t, "both ends are fast", func() bool { return fast(a, b) })
		time.Sleep(time.Duration(i) * 700 * time.Millisecond) // entries of conntrack: not gone yet, just gone, long gone
		stopB()
		flow("with the other end slow")
		stopA()
		flow("by the slow way again")
	}
	for _, s := range []*site{a, b} {
		t.Log(nstest.Sh(t, s.ns, "nft list chain inet track forward"))
	}
}

// Packets of translated connections go the slow way at the host that translates, and there only.
func TestTranslated(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, true, true)
	a.run(t)
	b.run(t)
	l := listenAt(t, b.inside, addr("10.1.2.5"), 0)
	echo(l)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c := dial(t, a.inside, "tcp", net.JoinHostPort("10.99.0.1", port))
	defer c.Close()
	b1 := make([]byte, 1000)
	for range 200 {
		c.Write(b1)
		if _, err := io.ReadFull(c, b1); err != nil {
			t.Fatal(err)
		}
	}
	at, bt := a.packets(), b.packets()
	if at["sent"] != 0 || at["received"] != 0 || at["translated"] < 200 {
		t.Errorf("at the host that translates: %v", at)
	}
	if bt["sent"] < 100 || bt["received"] < 100 || bt["translated"] != 0 {
		t.Errorf("at the other host: %v", bt)
	}
}

// A flow of UDP is fast once conntrack knows it, for as long as conntrack would keep it.
func TestTrackedDatagrams(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, true, true)
	a.run(t)
	b.run(t)
	done := time.Now().Add(4 * time.Second) // conntrack takes it for a stream after 2
	pingWhile(t, a.inside, b.inside, b.addr("IPv4"), func(int) bool { return time.Now().Before(done) })
	for _, s := range []*site{a, b} {
		if got := s.packets(); got["sent"] < 50 || got["received"] < 50 || got["first"] < 2 {
			t.Errorf("host %d: %v", s.number, got)
		}
	}
}

// A container that comes with the address of one that is gone gets its packets, though the interface is another.
func TestAddressAgain(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, false, true)
	a.run(t)
	b.run(t)
	transfer(t, a.inside, b.inside, b.addr("IPv4"), 1<<20)
	b.SetContainers(nil)
	nstest.Sh(t, b.ns, "ip link del c0; ip neigh flush dev cni0") // which had its MAC, unless the bridge's carrier was off for long enough
	b.contain(t, nstest.New(t))
	before := b.packets()["received"]
	transfer(t, a.inside, b.inside, b.addr("IPv4"), 1<<20) // slow: nobody said that it is there
	if got := b.packets(); got["received"] != before {
		t.Errorf("%d packets for a container that is gone", got["received"]-before)
	}
	b.SetContainers([]Container{b.c})
	b.awaitAttached(t)
	transfer(t, a.inside, b.inside, b.addr("IPv4"), 1<<20)
	if got := b.packets(); got["received"] == before {
		t.Errorf("nothing is fast: %v", got)
	}
}

// What others detach is attached again.
func TestHeal(t *testing.T) {
	for name, classic := range map[string]bool{"tcx": false, "classic": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newRig(t, false, true)
			a.cfg.noTCX = classic
			stop := a.run(t)
			b.run(t)
			transfer(t, a.inside, b.inside, b.addr("IPv4"), 1<<20)
			before := a.packets()
			if before["sent"] == 0 || before["received"] == 0 {
				t.Fatalf("not fast: %v", before)
			}
			if classic || strings.Contains(nstest.Sh(t, a.ns, "tc qdisc show dev eth0"), "clsact") { // before 6.6
				nstest.Sh(t, a.ns, "tc qdisc del dev eth0 clsact; tc filter del dev c0 ingress")
			} else {
				detachAll(t, a)
			}
			transfer(t, a.inside, b.inside, b.addr("IPv4"), 1<<20)
			eventually(t, "fast again", func() bool {
				before := a.packets()
				transfer(t, a.inside, b.inside, b.addr("IPv4"), 1<<20)
				after := a.packets()
				return after["sent"] > before["sent"] && after["received"] > before["received"]
			})
			stop()
			if out := nstest.Sh(t, a.ns, "for l in c0 eth0; do tc filter show dev $l ingress; done"); strings.Contains(out, "bpf") {
				t.Errorf("left behind: %s", out)
			}
		})
	}
}

// Qdiscs and filters of others stay as they are.
func TestFiltersOfOthers(t *testing.T) {
	t.Parallel()
	for _, other := range []netlink.Qdisc{
		&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}},
		&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{Parent: netlink.HANDLE_INGRESS, Handle: netlink.MakeHandle(0xffff, 0)}},
		nil,
	} {
		h := newHost(t)
		h.cfg.noTCX = true
		l, err := h.netlink.LinkByName("c0")
		if err != nil {
			t.Fatal(err)
		}
		attached := map[int]attachment{}
		if other != nil {
			other.Attrs().LinkIndex = h.veth
			if err := h.netlink.QdiscAdd(other); err != nil {
				t.Fatal(err)
			}
		} else {
			h.attachAll(attached)
		}
		pass, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, slow), asm.Return()},
		})
		if err != nil {
			t.Fatal(err)
		}
		theirs := &netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.veth, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 7, Protocol: unix.ETH_P_ALL,
		}, Fd: pass.FD(), Name: "theirs", DirectAction: true}
		if err := h.netlink.FilterAdd(theirs); err != nil {
			t.Fatal(err)
		}
		h.attachAll(attached)
		if filters, err := h.netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS); err != nil || len(filters) != 2 {
			t.Fatalf("with ours: %v, %v", filters, err)
		}
		h.detach(attached)
		if filters, err := h.netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS); err != nil || len(filters) != 1 || filters[0].Attrs().Priority != 7 {
			t.Errorf("with ours gone: %v, %v", filters, err)
		}
	}
}

// detachAll detaches the programs of a host as bpftool would.
func detachAll(t *testing.T, s *site) {
	t.Helper()
	ours := map[uint32]bool{uint32(s.own.Underlay): true, uint32(s.c.Index): true}
	programs := map[ebpf.ProgramID]bool{}
	for _, p := range []*ebpf.Program{s.kernel.FromContainer, s.kernel.FromWire} {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		programs[id] = true
	}
	it := new(link.Iterator)
	defer it.Close()
	n := 0
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil || !programs[info.Program] || !ours[info.TCX().Ifindex] {
			continue
		}
		if err := it.Link.Detach(); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 2 {
		t.Fatalf("%d links were detached", n)
	}
}

// Filters that outlive the daemon do nothing any more soon after it is gone.
func TestClassicEnds(t *testing.T) {
	h := newHost(t)
	h.cfg.noTCX = true
	h.hush(t)
	attached := map[int]attachment{}
	h.attachAll(attached)
	defer h.detach(attached)
	f := families["IPv4"]
	p := packet{from: container, to: gateway, src: f.local, dst: f.remote}
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "sent")
	if left := time.Duration(h.written.Until - monotonic()); left > lastsFor || left < lookEvery {
		t.Errorf("lasts for %v", left)
	}
	h.until = monotonic() - uint64(100*time.Millisecond) // their clock is a coarse one
	h.write()
	h.expect(t, h.kernel.FromContainer, h.veth, p.bytes(), 0, "")
}
