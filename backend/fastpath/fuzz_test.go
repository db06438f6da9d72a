package fastpath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/kernel"
)

// bothWays is two hosts that random packets pass, by one way and the other.
type bothWays struct {
	a, b    *site
	tracked bool
	taps    map[string]tap // where packets are looked at as they come in
	macs    [2]kernel.MAC  // of the underlay's links
	token   uint64
}

func newBothWays(t *testing.T, tracked bool) *bothWays {
	a, b := newRig(t, tracked, true)
	w := &bothWays{a: a, b: b, tracked: tracked, macs: [2]kernel.MAC{macOf(t, a.ns, "eth0"), macOf(t, b.ns, "eth0")}}
	for _, s := range []*site{a, b} {
		other := 3 - s.number
		nstest.Sh(t, s.inside, quiet)
		nstest.Sh(t, s.ns, quiet+fmt.Sprintf(`
sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.cni0.send_redirects=0 net.ipv4.conf.overlay/1.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0
for n in 10.1.%[1]d.5 fd00:0:0:%[1]d::5; do ip neigh replace $n lladdr %[2]v dev cni0 nud permanent; done
for n in 192.0.2.%[3]d 2001:db8::%[3]d; do ip neigh replace $n lladdr %[4]v dev eth0 nud permanent; done`,
			s.number, s.c.MAC, other, w.macs[other-1]))
		nstest.Sh(t, s.inside, fmt.Sprintf("for n in 10.1.%[1]d.1 fd00:0:0:%[1]d::1; do ip neigh replace $n lladdr %[2]v dev eth0 nud permanent; done", s.number, s.c.Gateway))
		if tracked {
			nstest.Sh(t, s.ns, "nft flush chain inet track forward") // it judges packets by what the fast path does not look at
		}
	}
	// The sender's container sends more than the MTU.
	nstest.Sh(t, a.ns, "ip link set c0 mtu 9000; ip link set cni0 mtu 1430")
	nstest.Sh(t, a.inside, "ip link set eth0 mtu 9000")
	a.run(t)
	b.run(t)
	w.taps = map[string]tap{
		"the receiving container": newTap(t, b.inside, "eth0"), "the sending container": newTap(t, a.inside, "eth0"),
		"the wire, to the receiver": newTap(t, b.ns, "eth0"), "the wire, to the sender": newTap(t, a.ns, "eth0"),
	}
	return w
}

const quiet = `
sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv6.auto_flowlabels=0
sysctl -qw net.ipv4.icmp_msgs_per_sec=10000000 net.ipv4.icmp_msgs_burst=10000000 2>/dev/null || :
`

// outcome is what comes of frames sent by a tap, at each place.
func (w *bothWays) outcome(t testing.TB, from tap, frames []frame, fast bool) (map[string][]string, error) {
	off := "the slow way is looked at"
	if fast {
		off = ""
	}
	w.a.Use(off, w.tracked, nil)
	w.b.Use(off, w.tracked, nil)
	for _, at := range w.taps {
		at.drain()
	}
	for _, f := range frames {
		from.send(f)
	}
	// What answers these comes last: echoes take the slow way always.
	w.token++
	token := binary.BigEndian.AppendUint64([]byte("the last"), w.token)
	missing := 2
	all := map[string][]string{}
	look := func() {
		for name, at := range w.taps {
			for _, f := range at.drain() {
				if bytes.Contains(f.data, token) {
					if name == "the sending container" {
						missing--
					}
				} else if text := f.normal(strings.HasSuffix(name, "container")); text != "" {
					all[name] = append(all[name], text)
				}
			}
		}
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		w.taps["the sending container"].send(w.echo(family, token))
	}
	for begin := time.Now(); missing > 0; time.Sleep(50 * time.Microsecond) {
		look()
		if time.Since(begin) > 2*time.Second {
			return nil, fmt.Errorf("no answer to the last packet (fast: %v): %v %v", fast, w.a.packets(), w.b.packets())
		}
	}
	time.Sleep(500 * time.Microsecond)
	look()
	for _, texts := range all {
		slices.Sort(texts)
	}
	return all, nil
}

// echo asks the receiving container for an answer.
func (w *bothWays) echo(family string, payload []byte) frame {
	p := packet{from: w.a.c.MAC, to: w.a.c.Gateway, src: w.a.addr(family), dst: w.b.addr(family), proto: protoICMP, sport: 0x0800, payload: payload, noChecksum: true}
	var pseudo []byte
	if family == "IPv6" {
		p.proto, p.sport = 58, 0x8000
		pseudo = append(p.src.AsSlice(), p.dst.AsSlice()...)
		pseudo = append(pseudo, 0, 0, 0, byte(8+len(payload)), 0, 0, 0, 58)
	}
	p.dport = ^sum(append(pseudo, p.l4()...))
	return frame{data: p.bytes()}
}

// compare says by which of the frames the ways differ.
func (w *bothWays) compare(t *testing.T, from tap, frames []frame) {
	differ := func(frames []frame) string {
		bySlow, err := w.outcome(t, from, frames, false)
		if err != nil {
			return err.Error()
		}
		byFast, err := w.outcome(t, from, frames, true)
		if err != nil {
			return err.Error()
		}
		return cmp.Diff(bySlow, byFast)
	}
	always := func(frames []frame) (d string) { // something else may come late
		for range 3 {
			if d = differ(frames); d == "" {
				return ""
			}
		}
		return d
	}
	d := always(frames)
	if d == "" {
		return
	}
	for _, f := range frames {
		if one := always([]frame{f}); one != "" {
			t.Errorf("virtio %+v\n%x\n(-slow +fast)\n%s", f.virtio, f.data, one)
		}
	}
	if !t.Failed() {
		t.Errorf("of %d packets together, though of none alone (-slow +fast)\n%s", len(frames), d)
	}
}

// Random packets come out of both ways alike: at the receiver, on the wire, and as what is sent back. More of them by
// OVERLAYD_FUZZ_SECONDS, others by OVERLAYD_FUZZ_SEED.
func TestFuzzBothWays(t *testing.T) {
	seconds, seed := 2.0, uint64(1)
	if s, err := strconv.ParseFloat(os.Getenv("OVERLAYD_FUZZ_SECONDS"), 64); err == nil {
		seconds = s
	}
	if n, err := strconv.ParseUint(os.Getenv("OVERLAYD_FUZZ_SEED"), 10, 64); err == nil {
		seed = n
	}
	for _, tracked := range []bool{false, true} {
		t.Run(fmt.Sprintf("tracked %v", tracked), func(t *testing.T) {
			t.Parallel()
			w := newBothWays(t, tracked)
			before := [2]map[string]uint64{w.a.packets(), w.b.packets()}
			n := 0
			for begin := time.Now(); time.Since(begin).Seconds() < seconds && !t.Failed(); n++ {
				r := rand.New(rand.NewPCG(seed, uint64(n)))
				g, from := w.generator(r, n)
				frames := make([]frame, 40)
				for i := range frames {
					frames[i] = g.next()
				}
				w.compare(t, from, frames)
				if t.Failed() {
					t.Logf("seed %d, round %d", seed, n)
				}
			}
			after := [2]map[string]uint64{w.a.packets(), w.b.packets()}
			t.Logf("%d rounds\nsender %v\nreceiver %v", n, after[0], after[1])
			if after[0]["sent"] < before[0]["sent"]+uint64(n) || after[1]["received"] < before[1]["received"]+uint64(n) {
				t.Error("too few were fast")
			}
		})
	}
}

// generator makes packets of the container in even rounds, and such on the wire in odd ones.
func (w *bothWays) generator(r *rand.Rand, round int) (*packets, tap) {
	family := pick(r, "IPv4", "IPv6")
	g := &packets{
		Rand: r, family: family, from: w.a.c.MAC, to: w.a.c.Gateway, src: w.a.addr(family), dst: w.b.addr(family), small: 1430,
		sources: addrs(family, 1, 2), dests: addrs(family, 2, 1),
	}
	if round%2 == 0 {
		return g, w.taps["the sending container"]
	}
	g.wire, g.from, g.to = true, vtepOf(1), vtepOf(2)
	g.outerFrom, g.outerTo = w.macs[0], w.macs[1]
	g.outer = [2]netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}
	if family == "IPv6" {
		g.outer = [2]netip.Addr{addr("2001:db8::1"), addr("2001:db8::2")}
	}
	return g, w.taps["the wire, to the sender"]
}

// addrs are what packets may be from or to: others of a host's containers, those of the other's, hosts, none at all.
func addrs(family string, near, far int) (all []netip.Addr) {
	texts := []string{"10.1.%d.6", "10.1.%d.1", "10.1.%d.0", "10.1.%d.255", "192.0.2.%d", "10.99.0.%d", "203.0.113.%d", "127.0.0.%d", "224.0.0.%d", "255.255.255.25%d"}
	if family == "IPv6" {
		texts = []string{"fd00:0:0:%d::6", "fd00:0:0:%d::1", "fd00:0:0:%d::", "2001:db8::%d", "fe80::%d", "ff02::%d", "2001:db9::%d", "::%d", "::ffff:10.1.%d.5"}
	}
	for _, n := range []int{near, far} {
		for _, text := range texts {
			all = append(all, addr(fmt.Sprintf(text, n)))
		}
	}
	return all
}
