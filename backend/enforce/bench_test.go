package enforce

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/policy/compile"
)

// peersOf are n peers that may come to TCP 80.
func peersOf(n int) (all []compile.Match) {
	for a := ip("10.100.0.0"); len(all) < n; a = a.Next() {
		all = append(all, compile.Match{From: a, To: a, Proto: unix.IPPROTO_TCP, First: 80, Last: 80})
	}
	return all
}

// BenchmarkElements is what a change costs in the kernel, beside n that are there, and what it costs to make all anew.
func BenchmarkElements(b *testing.B) {
	for _, n := range []int{10, 30_000, 300_000} {
		b.Run(fmt.Sprint("elements=", n), func(b *testing.B) {
			table := newTable(b, nstest.New(b))
			full := compile.Change{Make: map[compile.GroupID][]compile.Match{"i1": peersOf(n)}, Set: isolate("i1", "", a4, a6)}
			for a := ip("10.5.7.0"); len(full.Set) < 100; a = a.Next() {
				full.Set[a] = compile.Sides{In: "i1"}
			}
			begin := time.Now()
			if err := table.Rebuild(b.Context(), full, Options{Unready: Closed}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/made")
			begin = time.Now()
			if err := table.Rebuild(b.Context(), full, Options{Unready: Closed}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/anew")
			measure := func(name string, changes ...compile.Change) {
				var all []time.Duration
				for range 200 {
					for _, c := range changes {
						begin := time.Now()
						if err := table.Apply(b.Context(), c); err != nil {
							b.Fatal(err)
						}
						all = append(all, time.Since(begin))
					}
				}
				slices.Sort(all)
				b.ReportMetric(float64(all[len(all)/2].Microseconds()), "µs/"+name)
				b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "µs-p99/"+name)
			}
			one := map[compile.GroupID][]compile.Match{"i1": tcp80(b4)}
			measure("peer", compile.Change{Add: one}, compile.Change{Remove: one})
			measure("local", compile.Change{Set: isolate("i1", "", b4)}, compile.Change{Gone: []netip.Addr{b4}})
			measure("group", compile.Change{Make: map[compile.GroupID][]compile.Match{"i2": tcp80(b4)}, Set: isolate("i2", "", b4)},
				compile.Change{Gone: []netip.Addr{b4}, Drop: []compile.GroupID{"i2"}})
			b.ReportMetric(0, "ns/op")
		})
	}
}

// sender sends small UDP from ns to addr, each packet of a flow of its own or all of one that is answered.
type sender struct {
	ns   netns.NsHandle
	addr netip.Addr
	same bool
}

// round sends n packets and returns what the CPU needed for each. All that the packet meets on this host is done in sending it.
func (s sender) round(b *testing.B, n int) time.Duration {
	var spent time.Duration
	done := make(chan error)
	go func() {
		done <- func() error {
			runtime.LockOSThread() // and never unlocked: the thread ends
			if err := netns.Set(s.ns); err != nil {
				return err
			}
			c, err := net.ListenUDP("udp4", nil)
			if err != nil {
				return err
			}
			defer c.Close()
			raw, err := c.SyscallConn()
			if err != nil {
				return err
			}
			var sendErr error
			payload := make([]byte, 16)
			send := func(port int) {
				raw.Write(func(fd uintptr) bool {
					err := syscall.Sendto(int(fd), payload, 0, &syscall.SockaddrInet4{Port: port, Addr: s.addr.As4()})
					if err != nil && err != syscall.ECONNREFUSED {
						sendErr = err
					}
					return true
				})
			}
			send(80)
			time.Sleep(5 * time.Millisecond)
			before := cpu()
			for i := range n {
				if s.same {
					send(80)
				} else {
					send(1024 + i)
				}
			}
			spent = (cpu() - before) / time.Duration(n)
			return sendErr
		}()
	}()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return spent
}

// cpu is what the thread has had of one. Machines like this one count no cycles.
func cpu() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// BenchmarkPacket is what the CPU needs for a small packet of UDP with policies, against the same host without: one that tracks
// connections, as for ip-masq, and whose bridge shows its traffic ("tracked"), and one that does neither ("bare"). The policies'
// last rule is what lets it pass.
func BenchmarkPacket(b *testing.B) {
	const rounds, packets = 25, 5_000 // the kernel remembers 262,144 flows
	open := []compile.Match{{Proto: unix.IPPROTO_UDP}}
	few := append(peersOf(30_000), open...)
	many := append(slices.DeleteFunc(matches(), func(m compile.Match) bool { return !m.From.IsValid() || m.From == ip("0.0.0.0") || m.From == ip("::") }), few...)
	sites := map[string]site{}
	for name, rules := range map[string][]compile.Match{"bare": nil, "tracked": nil, "1": few, "1000": many} {
		s := newSite(b)
		sites[name] = s
		drain := "nft 'add table ip sink; add chain ip sink in { type filter hook prerouting priority -400; }; add rule ip sink in udp dport != 80 drop; add rule ip sink in udp dport 80 limit rate over 200/second drop'"
		nstest.Sh(b, s.b, drain)
		nstest.Sh(b, s.peer, drain)
		switch {
		case rules != nil:
			bridged(b, s, compile.Change{
				Make: map[compile.GroupID][]compile.Match{"i1": rules, "e1": rules},
				Set:  isolate("i1", "e1", a4, a6, b4, b6),
			})
		case name == "tracked":
			nstest.Sh(b, s.host, "nft 'add table ip t; add chain ip t c { type nat hook postrouting priority srcnat; }; add rule ip t c ip saddr 10.5.0.0/16 ip daddr != 10.0.0.0/8 masquerade'; ip link set br0 type bridge nf_call_iptables 1 nf_call_ip6tables 1")
		}
	}
	for _, way := range []struct {
		name string
		to   netip.Addr
	}{{"bridge", b4}, {"routed", peer4}} {
		for _, same := range []bool{true, false} {
			name := way.name + "/established"
			if !same {
				name = way.name + "/new"
			}
			b.Run(name, func(b *testing.B) {
				spent := map[string][]time.Duration{}
				for range rounds {
					for name, s := range sites {
						spent[name] = append(spent[name], sender{s.a, way.to, same}.round(b, packets))
					}
				}
				best := map[string]float64{} // of a machine that has others to serve
				for name, all := range spent {
					slices.Sort(all)
					best[name] = float64(all[len(all)/5])
				}
				b.ReportMetric(best["bare"], "ns/bare")
				for _, policies := range []string{"1", "1000"} {
					b.ReportMetric(best[policies]/best["tracked"], "ratio/policies="+policies)
					b.ReportMetric(best[policies]/best["bare"], "to-bare/policies="+policies)
				}
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// BenchmarkCut judges 100,000 connections, none of which is denied, and then a thousand that are.
func BenchmarkCut(b *testing.B) {
	const n, denied = 100_000, 1_000
	s := newSite(b)
	table := bridged(b, s, compile.Change{})
	nstest.Sh(b, s.peer, "nft 'add table ip sink; add chain ip sink in { type filter hook prerouting priority -400; }; add rule ip sink in udp dport != 80 drop'")
	for range n / 50_000 {
		sender{s.a, peer4, false}.round(b, 50_000)
	}
	begin := time.Now()
	judged := 0
	if _, err := table.Cut(b.Context(), func(Flow) bool { judged++; return true }, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/judged")
	b.ReportMetric(float64(judged), "connections")
	begin = time.Now()
	cut, err := table.Cut(b.Context(), func(f Flow) bool { return f.Port >= 1024+denied/2 }, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(time.Since(begin).Milliseconds()), "ms/cut")
	b.ReportMetric(float64(cut), "connections-cut")
	b.ReportMetric(0, "ns/op")
}
