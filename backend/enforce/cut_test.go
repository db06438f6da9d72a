package enforce

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/policy/compile"
)

const tick = 5 * time.Millisecond

// talk has a server in ns at port 90, which tells whoever has come a growing number each tick, whether it hears anything or not.
// It counts what it hears, by the client's address and port.
func talk(t *testing.T, ns netns.NsHandle, heard func(from string)) {
	t.Helper()
	for _, v := range []string{"4", "6"} {
		var l net.Listener
		var p net.PacketConn
		err := rtnl.InNetns(ns, func() (err error) {
			if l, err = net.Listen("tcp"+v, ":90"); err == nil {
				p, err = net.ListenPacket("udp"+v, ":90")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close(); p.Close() })
		tell := func(write func([]byte) (int, error)) {
			for n := uint32(1); t.Context().Err() == nil; n++ {
				if _, err := write(binary.BigEndian.AppendUint32(nil, n)); err != nil {
					return
				}
				time.Sleep(tick)
			}
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
				go tell(c.Write)
				go func() {
					for buf := make([]byte, 4); ; heard("tcp " + c.RemoteAddr().String()) {
						if _, err := c.Read(buf); err != nil {
							return
						}
					}
				}()
			}
		}()
		go func() {
			known := map[string]bool{}
			for buf := make([]byte, 100); ; {
				_, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				if name := from.String(); !known[name] {
					known[name] = true
					go tell(func(b []byte) (int, error) { return p.WriteTo(b, from) })
				}
				heard("udp " + from.String())
			}
		}()
	}
}

// call is a connection to such a server, in which the client talks too.
type call struct {
	name        string
	local       string // network and address
	got, missed atomic.Uint32
	quiet       atomic.Bool // the client only listens
}

func dialTalk(t *testing.T, ns netns.NsHandle, network, addr string, port int) *call {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := dial(ctx, ns, network, net.JoinHostPort(addr, fmt.Sprint(port)))
	if err != nil {
		t.Fatalf("%s %s: %v", network, addr, err)
	}
	t.Cleanup(func() { c.Close() })
	k := &call{name: fmt.Sprintf("%s %s:%d from %d", network, addr, port, ns), local: network + " " + c.LocalAddr().String()}
	go func() {
		for t.Context().Err() == nil {
			if !k.quiet.Load() {
				c.Write([]byte("tick"))
			}
			time.Sleep(tick)
		}
	}()
	go func() {
		buf := make([]byte, 4)
		for want := uint32(1); ; want++ {
			if _, err := c.Read(buf); err != nil {
				return
			}
			n := binary.BigEndian.Uint32(buf)
			k.missed.Add(n - want)
			want = n
			k.got.Add(1)
		}
	}()
	return k
}

// hears are counts of what servers heard.
type hears struct{ counts chan map[string]int }

func (h hears) heard(from string) {
	m := <-h.counts
	m[from]++
	h.counts <- m
}

func (h hears) of(from string) int {
	m := <-h.counts
	defer func() { h.counts <- m }()
	return m[from]
}

// calls are those of b and the peer to a's server: directly, and to a port of the host's that is a's.
func calls(t *testing.T, from netns.NsHandle) (all []*call) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		all = append(all,
			dialTalk(t, from, network, "10.5.1.2", 90), dialTalk(t, from, network, "fd00:5:0:1::2", 90),
			dialTalk(t, from, network, "10.5.1.1", 8090), dialTalk(t, from, network, "fd00:5:0:1::1", 8090))
	}
	return all
}

// What is not allowed any more ends within half a second in both directions, though the server goes on talking, and does not
// come back; what is allowed loses nothing; and what is allowed again can be had again.
func TestCut(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nstest.Sh(t, s.host, `nft -f - <<'end'
table inet nat {
	chain prerouting {
		type nat hook prerouting priority dstnat;
		ip daddr 10.5.1.1 meta l4proto { tcp, udp } th dport 8090 dnat ip to 10.5.1.2:90
		ip6 daddr fd00:5:0:1::1 meta l4proto { tcp, udp } th dport 8090 dnat ip6 to [fd00:5:0:1::2]:90
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr 10.5.1.0/24 ip daddr != 10.5.0.0/16 masquerade
	}
}
end`)
	server := hears{make(chan map[string]int, 1)}
	server.counts <- map[string]int{}
	talk(t, s.a, server.heard)
	table := bridged(t, s, compile.Change{ // b is let in, as everybody
		Make: map[compile.GroupID][]compile.Match{"i1": {{}}},
		Set:  isolate("i1", "", a4, a6),
	})
	bs, peers := calls(t, s.b), calls(t, s.peer)
	hosts := []*call{dialTalk(t, s.host, "tcp", "10.5.1.2", 90), dialTalk(t, s.host, "udp", "fd00:5:0:1::2", 90)}
	time.Sleep(50 * time.Millisecond)
	for _, c := range slices.Concat(bs, peers, hosts) {
		if c.got.Load() == 0 || server.of(c.local) == 0 {
			t.Fatalf("%s: nothing comes", c.name)
		}
	}
	peerOnly := []compile.Match{{From: peer4, To: peer4}, {From: peer6, To: peer6}}
	err := table.Apply(t.Context(), compile.Change{
		Add:    map[compile.GroupID][]compile.Match{"i1": peerOnly},
		Remove: map[compile.GroupID][]compile.Match{"i1": {{}}}, Narrow: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	judge := func(f Flow) bool {
		return f.Dst != a4 && f.Dst != a6 || f.Port != 90 || slices.Contains([]netip.Addr{peer4, peer6}, f.Src)
	}
	begin := time.Now()
	n, err := table.Cut(t.Context(), judge, nil)
	t.Logf("%d connections cut in %v", n, time.Since(begin))
	if err != nil || n != len(bs) {
		t.Fatalf("cut %d connections, %v", n, err)
	}
	time.Sleep(500*time.Millisecond - time.Since(begin))
	deadAt := map[*call][2]int{}
	for _, c := range bs {
		deadAt[c] = [2]int{int(c.got.Load()), server.of(c.local)}
	}
	time.Sleep(1500 * time.Millisecond)
	for _, c := range bs {
		if now := [2]int{int(c.got.Load()), server.of(c.local)}; now != deadAt[c] {
			t.Errorf("%s: got, heard: %v after 0.5 s, %v later", c.name, deadAt[c], now)
		}
	}
	for _, c := range slices.Concat(peers, hosts) {
		if got, missed := c.got.Load(), c.missed.Load(); missed > 0 || got < 250 {
			t.Errorf("%s: %d came, %d were lost", c.name, got, missed)
		}
	}
	if n, err := table.Cut(t.Context(), judge, nil); n != 0 || err != nil {
		t.Errorf("cut again: %d, %v", n, err)
	}
	err = table.Apply(t.Context(), compile.Change{Add: map[compile.GroupID][]compile.Match{"i1": {{}}}})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond) // TCP's next try
	for _, c := range bs {
		if int(c.got.Load()) == deadAt[c][0] && c.name[:3] == "udp" {
			t.Errorf("%s: allowed again, and nothing comes", c.name)
		}
	}
	probes(t, "allowed again", []probe{{s.b, "tcp 10.5.1.2 80", true}, {s.b, "udp fd00:5:0:1::2 80", true}})
}

// The first policy of a host meets connections between containers of a bridge that nobody has tracked. Of those that it forbids
// it is the server alone that talks at first, and that does not count as a connection of the server's; those that it allows go
// on, with TCP also where nobody but the server talks.
func TestCutUntracked(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	server := hears{make(chan map[string]int, 1)}
	server.counts <- map[string]int{}
	talk(t, s.a, server.heard)
	talk(t, s.b, server.heard)
	var denied, allowed []*call
	for _, network := range []string{"tcp", "udp"} {
		for _, to := range []netip.Addr{a4, a6} {
			denied = append(denied, dialTalk(t, s.b, network, to.String(), 90))
		}
		for _, to := range []netip.Addr{b4, b6} {
			allowed = append(allowed, dialTalk(t, s.a, network, to.String(), 90))
		}
	}
	for _, c := range slices.Concat(denied, allowed) {
		c.quiet.Store(c.local[:3] == "tcp" || slices.Contains(denied, c)) // whose is what a server sends by UDP is not to be seen
	}
	time.Sleep(100 * time.Millisecond)
	table := bridged(t, s, compile.Change{ // a lets nothing in, and b is not isolated
		Make: map[compile.GroupID][]compile.Match{"i1": nil},
		Set:  isolate("i1", "", a4, a6),
	})
	begin := time.Now()
	judge := func(f Flow) bool { return f.Dst != a4 && f.Dst != a6 }
	for range 3 {
		n, err := table.Cut(t.Context(), judge, nil)
		t.Logf("%d connections cut, %v", n, err)
		time.Sleep(150 * time.Millisecond)
	}
	for _, c := range slices.Concat(denied, allowed) {
		c.quiet.Store(false)
	}
	time.Sleep(500*time.Millisecond - time.Since(begin))
	deadAt := map[*call][2]int{}
	for _, c := range slices.Concat(denied, allowed) {
		deadAt[c] = [2]int{int(c.got.Load()), server.of(c.local)}
	}
	time.Sleep(time.Second)
	for _, c := range denied {
		if now := [2]int{int(c.got.Load()), server.of(c.local)}; now != deadAt[c] {
			t.Errorf("%s: got, heard: %v after 0.5 s, %v later", c.name, deadAt[c], now)
		}
	}
	for _, c := range allowed {
		now := [2]int{int(c.got.Load()), server.of(c.local)}
		lost := c.missed.Load()
		if c.local[:3] == "udp" { // until the client says something again
			lost -= min(lost, 5)
		}
		if lost > 0 || now[0] <= deadAt[c][0] || now[1] <= deadAt[c][1] {
			t.Errorf("%s: got, heard: %v after 0.5 s, %v later, %d lost", c.name, deadAt[c], now, c.missed.Load())
		}
	}
}
