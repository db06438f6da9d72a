package fastpath

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// counted is a stream of numbered datagrams that come back.
type counted struct {
	c               net.Conn
	sent, came, bad atomic.Int64
	stop            chan struct{}
	over            chan struct{}
}

func newCounted(t testing.TB, a, b *site, family string) *counted {
	t.Helper()
	l := listenPacket(t, b.inside, b.addr(family))
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := l.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			l.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	s := &counted{c: dial(t, a.inside, "udp", l.LocalAddr().String()), stop: make(chan struct{}), over: make(chan struct{})}
	roomy(t, s.c.(*net.UDPConn))
	t.Cleanup(func() { s.c.Close() })
	go func() {
		b := make([]byte, 1000)
		for {
			select {
			case <-s.stop:
				close(s.over)
				return
			case <-time.After(500 * time.Microsecond):
				binary.BigEndian.PutUint64(b, uint64(s.sent.Add(1)))
				s.c.Write(b)
			}
		}
	}()
	go func() {
		b := make([]byte, 2000)
		last := uint64(0)
		for {
			if _, err := s.c.Read(b); err != nil {
				return
			}
			n := binary.BigEndian.Uint64(b)
			if n < last {
				s.bad.Add(1)
			}
			last = n
			s.came.Add(1)
		}
	}()
	return s
}

// none fails if any was lost.
func (s *counted) none(t *testing.T, family string) {
	t.Helper()
	close(s.stop)
	<-s.over
	for begin := time.Now(); s.came.Load() < s.sent.Load() && time.Since(begin) < 2*time.Second; time.Sleep(10 * time.Millisecond) {
	}
	if sent, came := s.sent.Load(), s.came.Load(); sent != came || sent < 500 {
		t.Errorf("%s: %d of %d datagrams came back", family, came, sent)
	}
	t.Logf("%s: %d datagrams, %d overtook others", family, s.sent.Load(), s.bad.Load())
}

// state is what a daemon in a process of its own is told.
type state struct {
	Own        Own
	Claims     []Claim
	Containers []Container
	Tracked    bool
}

// TestDaemon is no test, but the daemon of TestNothingLost.
func TestDaemon(t *testing.T) {
	text := os.Getenv("OVERLAYD_TEST_DAEMON")
	if text == "" {
		return
	}
	var s state
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	ns, err := netns.GetFromPath("/proc/self/fd/3")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Config{Namespace: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p.SetOwn(s.Own)
	p.Replace(s.Claims)
	p.SetContainers(s.Containers)
	p.Use("", s.Tracked, nil)
	go func() {
		for p.packets()["sent"] == 0 || p.packets()["received"] == 0 {
			time.Sleep(time.Millisecond)
		}
		os.Stdout.WriteString("fast\n")
	}()
	p.Run(context.Background())
}

// daemon runs the fast path of a host in a process of its own, until kill.
func (s *site) daemon(t *testing.T) (kill func()) {
	t.Helper()
	text, err := json.Marshal(state{s.own, []Claim{s.peer}, []Container{s.c}, true})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDaemon$")
	cmd.Env = append(os.Environ(), "OVERLAYD_TEST_DAEMON="+string(text))
	ns, err := os.Open(nstest.Path(s.ns))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	cmd.ExtraFiles = []*os.File{ns}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "fast"; {
		t.Log(lines.Text())
	}
	return func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// Not a datagram is lost, and no TCP connection stands still, while daemons come, are killed, are followed by others, and have
// a policy make the container slow: though both hosts drop what conntrack takes for invalid.
func TestNothingLost(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, true, true)
	if beforeTCX() { // the first start costs something there
		for _, s := range []*site{a, b} {
			s.run(t)()
			s.start(t, true, true)
		}
	}
	families := []string{"IPv4", "IPv6"}
	datagrams, streams := map[string]*counted{}, map[string]*stream{}
	for _, family := range families {
		ping(t, a.inside, b.inside, b.addr(family), 1) // neighbours are known
		datagrams[family] = newCounted(t, a, b, family)
		streams[family] = newStream(t, a.inside, b.inside, b.addr(family).String())
	}
	flow := func(when string) {
		for family, s := range streams {
			s.flows(t, family+" "+when)
		}
	}
	flow("by the slow way")
	time.Sleep(2 * time.Second) // conntrack takes the datagrams for a stream
	stopB := b.run(t)
	for range 2 {
		kill := a.daemon(t)
		flow("by a daemon")
		kill()
		flow("with it killed")
	}
	stopA := a.run(t)
	flow("by another")
	for range 3 {
		all := []netip.Addr{a.addr("IPv4"), a.addr("IPv6")}
		a.Slow(all, true)
		flow("slow by a policy")
		a.Slow(all, false)
		flow("fast again")
		a.start(t, true, true)
		next := a.run(t)
		flow("with two daemons")
		stopA()
		stopA = next
		flow("with the new one")
		b.Use("switched off", true, nil)
		flow("with the other host slow")
		b.Use("", true, nil)
	}
	stopB()
	stopA()
	flow("by the slow way again")
	for family, s := range datagrams {
		s.none(t, family)
	}
}

// beforeTCX says whether the kernel is older than 6.6.
func beforeTCX() bool {
	var name unix.Utsname
	var major, minor int
	_ = unix.Uname(&name) // it fails for a bad pointer only
	_, _ = fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return major < 6 || major == 6 && minor < 6
}

// Before Linux 6.6 the programs need a qdisc, and each time that one is added or removed, its link drops packets for a moment: the
// one that is there stays, and only the first start makes one.
func TestNothingLostByQdisc(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, true, true)
	sites := []*site{a, b}
	for _, s := range sites {
		s.cfg.noTCX = true
		s.run(t)()
	}
	ping(t, a.inside, b.inside, b.addr("IPv4"), 1)
	datagrams := newCounted(t, a, b, "IPv4")
	for range 10 {
		for _, s := range sites {
			s.start(t, true, true)
			s.cfg.noTCX = true
			stop := s.run(t)
			time.Sleep(30 * time.Millisecond)
			stop()
		}
	}
	datagrams.none(t, "IPv4")
}
