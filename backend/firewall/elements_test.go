package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/task"
)

// sets is a rule that declares some: of addresses, one of which has a part of four bytes more.
type sets struct{ note string }

func (sets) place() string    { return "inet" }
func (s sets) String() string { return shell(s.nft()) }
func (s sets) nft() []string {
	return []string{
		"add set inet overlayd peers { type ipv4_addr; }",
		"add set inet overlayd ends { type ipv4_addr . inet_service; }",
		"add chain inet overlayd input { type filter hook input priority filter; }",
		`add rule inet overlayd input ip saddr @peers ip saddr . udp dport @ends accept comment "` + s.note + `"`,
	}
}

var peers, ends = Set{unix.NFPROTO_INET, "peers"}, Set{unix.NFPROTO_INET, "ends"}

// peersOf claims n addresses.
func peersOf(n int) (all []Claim) {
	ip := netip.MustParseAddr("10.0.0.1")
	for i := range n {
		all = append(all, Claim{fmt.Sprint(i), []Element{{peers, string(ip.AsSlice())}}})
		ip = ip.Next()
	}
	return all
}

// inSet is what nft says is in a set, in order.
func inSet(t *testing.T, ns netns.NsHandle, name string) string {
	t.Helper()
	_, list, _ := strings.Cut(nstest.Sh(t, ns, "nft list set inet overlayd "+name), "elements = {")
	list, _, _ = strings.Cut(list, "}")
	all := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '\n' })
	for i := range all {
		all[i] = strings.TrimSpace(all[i])
	}
	slices.Sort(all)
	return strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), ", ")
}

// settled waits until the elements are as they are wanted.
func settled(t *testing.T, f Firewall, ok func(task.Status) bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		s := f.Elements.Status()
		if !s.Pending && s.Err == nil && ok(s) {
			return
		}
		select {
		case <-f.Elements.Changed():
		case <-deadline:
			t.Fatalf("not settled: %+v", s)
		}
	}
}

func TestElements(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	f := start(t, ns)
	port := string([]byte{10, 0, 0, 9, 0x21, 0x18, 0, 0}) // padded to four bytes
	f.Elements.Replace("", append(peersOf(2), Claim{"other", []Element{{peers, "\x0a\x00\x00\x02"}, {ends, port}}}))
	f.Set("", []Rule{sets{"one"}})
	<-f.Applied()
	check := func(name, want string) {
		t.Helper()
		if got := inSet(t, ns, name); got != want {
			t.Errorf("set %s: %q, want %q", name, got, want)
		}
	}
	check("peers", "10.0.0.1, 10.0.0.2") // with the table, not after it
	check("ends", "10.0.0.9 . 8472")
	<-f.Elements.Update("", []Claim{{Owner: "1"}})
	check("peers", "10.0.0.1, 10.0.0.2") // the other wants it, too
	<-f.Elements.Update("", []Claim{{Owner: "other"}})
	check("peers", "10.0.0.1")
	check("ends", "")
	f.Elements.Replace("", peersOf(3))
	settled(t, f, func(s task.Status) bool { return s.Objects == 3 })
	check("peers", "10.0.0.1, 10.0.0.2, 10.0.0.3")
	for _, script := range []string{
		"nft delete element inet overlayd peers '{ 10.0.0.2 }'",
		"nft add element inet overlayd peers '{ 10.9.9.9 }'",
		"nft flush set inet overlayd peers",
	} {
		before := f.Elements.Status().Healed
		nstest.Sh(t, ns, script)
		settled(t, f, func(s task.Status) bool { return s.Healed > before })
		check("peers", "10.0.0.1, 10.0.0.2, 10.0.0.3")
	}
	if got := f.Status().Healed; got != 0 {
		t.Errorf("%d tables healed for the sake of elements", got)
	}
	healed := 0
	for _, script := range []string{"nft flush ruleset", "nft flush table inet overlayd"} {
		nstest.Sh(t, ns, script)
		healed++
		until(t, f, "healed", func(s task.Status) bool { return s.Healed == healed })
		settled(t, f, func(task.Status) bool { return true })
		check("peers", "10.0.0.1, 10.0.0.2, 10.0.0.3")
	}
}

// No packet may find a set empty while the chains change, or a daemon starts: sets stay.
func TestElementsStayWhereRulesChange(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, "nft add table inet overlayd; nft add set inet overlayd stale '{ type mark; }'; nft add chain inet overlayd stale; nft add rule inet overlayd stale jump stale2 || true")
	first := listening(t, ns)
	stop := nstest.Run(t, first.Run)
	first.Elements.Replace("", peersOf(60000))
	first.Set("", []Rule{sets{"one"}})
	<-first.Applied()
	handle := nstest.Sh(t, ns, "nft -at list table inet overlayd | grep 'set peers'")
	first.Set("", []Rule{sets{"two"}})
	until(t, first, "applied", func(s task.Status) bool { return !s.Pending })

	stop()
	second := start(t, ns) // as a daemon that starts
	second.Elements.Replace("", peersOf(60001))
	second.Set("", []Rule{sets{"two"}, Masquerade{net4}})
	<-second.Applied()
	if got := nstest.Sh(t, ns, "nft -at list table inet overlayd | grep 'set peers'"); got != handle {
		t.Errorf("the set was replaced: %s, before %s", got, handle)
	}
	if got := strings.Count(inSet(t, ns, "peers"), ","); got != 60000 {
		t.Errorf("%d elements, want 60001", got+1)
	}
	if got := nstest.Sh(t, ns, "nft list table inet overlayd"); strings.Contains(got, "stale") || !strings.Contains(got, "two") || !strings.Contains(got, "masquerade") {
		t.Errorf("table: %s", got)
	}
}

// Where others put elements too, what is there and has a record stays, and what has none goes.
func TestElementsByRecords(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	records := make(chan []string, 1)
	fw := listening(t, ns)
	records <- []string{"\x0a\x00\x00\x01"}
	fw.Elements.Follow(peers, func(map[string]bool) ([]string, error) {
		now := <-records
		records <- now
		return now, nil
	})
	nstest.Run(t, fw.Run)
	fw.Elements.Replace("", nil)
	fw.Set("", []Rule{sets{}})
	<-fw.Applied()
	expect := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); inSet(t, ns, "peers") != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("set: %q, want %q", inSet(t, ns, "peers"), want)
			}
		}
	}
	expect("10.0.0.1")
	<-records
	records <- []string{"\x0a\x00\x00\x01", "\x0a\x00\x00\x02"}
	nstest.Sh(t, ns, "nft add element inet overlayd peers '{ 10.0.0.2, 10.0.0.3 }'")
	expect("10.0.0.1, 10.0.0.2")
	<-records
	records <- nil
	fw.Elements.Look(peers)
	expect("")
}

// What a set costs that has as many elements as a network has peers: when all come at once, and when one comes and goes.
func BenchmarkElements(b *testing.B) {
	for _, n := range []int{10_000, 60_000} {
		ns := nstest.New(b)
		f := start(b, ns)
		f.Elements.Replace("", nil)
		f.Set("", []Rule{sets{}})
		<-f.Applied()
		all := peersOf(n)
		b.Run(fmt.Sprintf("all %d", n), func(b *testing.B) {
			for range b.N {
				<-f.Elements.Update("", all)
				b.StopTimer()
				f.Elements.Replace("", nil)
				<-f.Elements.Update("", nil)
				b.StartTimer()
			}
		})
		<-f.Elements.Update("", all)
		b.Run(fmt.Sprintf("one more than %d", n), func(b *testing.B) {
			one := Claim{"one", []Element{{peers, "\xc0\x00\x02\x01"}}}
			for range b.N {
				<-f.Elements.Update("", []Claim{one})
				<-f.Elements.Update("", []Claim{{Owner: "one"}})
			}
		})
		b.Run(fmt.Sprintf("a look at %d", n), func(b *testing.B) {
			for range b.N {
				f.Elements.lookAll(0)
				<-f.Elements.Update("", nil)
			}
		})
	}
}

// Records that cannot be read keep no peer out.
func TestElementsBesideUnreadableRecords(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	f := listening(t, ns)
	var broken atomic.Bool
	f.Elements.FollowPorts(func(string, map[string]bool) ([]string, error) {
		if broken.Load() {
			return nil, unix.EIO
		}
		return nil, nil
	})
	nstest.Run(t, f.Run)
	f.Elements.Replace("", nil)
	f.Set("", []Rule{allParts(), Containers{"bridge"}, Containers{"inet"}})
	<-f.Applied()
	broken.Store(true)
	for i := range byte(10) {
		e := f.Elements
		e.mu.Lock()
		for _, s := range e.sets {
			s.look = true
		}
		e.lookIn(0)
		done := e.update("", []Claim{{fmt.Sprint(i), []Element{Peer(netip.AddrFrom4([4]byte{192, 0, 2, i}))}}})
		e.mu.Unlock()
		<-done
	}
	if got := inSet(t, ns, "peers4"); strings.Count(got, "192.0.2.") != 10 {
		t.Errorf("peers: %s", got)
	}
}
