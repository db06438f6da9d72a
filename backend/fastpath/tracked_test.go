package fastpath

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
)

// Where the kernel does not take up connections in the midst, none that was fast is left to it.
func TestNotLoose(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, true, true)
	for _, s := range []*site{a, b} {
		nstest.Sh(t, s.ns, "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0")
		s.Use("", true, nil)
	}
	s := newStream(t, a.inside, b.inside, "10.1.2.5")
	s.flows(t, "by the slow way")
	stopA, stopB := a.run(t), b.run(t)
	s.flows(t, "with both ends fast")
	time.Sleep(1500 * time.Millisecond) // what conntrack had is gone
	stopA()
	stopB()
	before := s.copied.Load()
	time.Sleep(3 * time.Second)
	if s.copied.Load() == before {
		t.Errorf("nothing comes once it is slow again: %v\n%s", a.packets(), nstest.Sh(t, a.ns, "nft list chain inet track forward"))
	}
}

// Errors about a fast flow come back, though both hosts drop what conntrack takes for invalid.
func TestErrorsOfFastFlows(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, true, true)
	a.run(t)
	b.run(t)
	for _, family := range []string{"IPv4", "IPv6"} {
		l := listenPacket(t, b.inside, b.addr(family))
		go func() {
			b := make([]byte, 100)
			for {
				n, from, err := l.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				l.WriteToUDPAddrPort(b[:n], from)
			}
		}()
		c := dial(t, a.inside, "udp", l.LocalAddr().String())
		defer c.Close()
		buf := make([]byte, 100)
		for begin, before := time.Now(), a.packets()["sent"]; a.packets()["sent"] < before+20; time.Sleep(20 * time.Millisecond) {
			c.Write([]byte("hello"))
			c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(buf); err != nil || time.Since(begin) > 10*time.Second {
				t.Fatal(err, a.packets())
			}
		}
		l.Close()
		var err error
		for begin := time.Now(); !errors.Is(err, syscall.ECONNREFUSED); { // a busy kernel sends some errors not at all (icmp_xmit_lock)
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("%s: with nobody listening: %v", family, err)
			}
			if _, err = c.Write([]byte("hello")); err == nil {
				c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				_, err = c.Read(buf)
			}
		}
	}
}

// What conntrack has of a flow of UDP does not end under it.
func TestDatagramsOutliveTimeouts(t *testing.T) {
	t.Parallel()
	a, b := newRig(t, true, true)
	for _, s := range []*site{a, b} {
		nstest.Sh(t, s.ns, "sysctl -qw net.netfilter.nf_conntrack_udp_timeout=1 net.netfilter.nf_conntrack_udp_timeout_stream=2")
		s.Use("", true, nil)
		s.run(t)
	}
	l := listenPacket(t, b.inside, b.addr("IPv4"))
	c := dial(t, a.inside, "udp", l.LocalAddr().String())
	defer c.Close()
	for begin := time.Now(); time.Since(begin) < 2500*time.Millisecond; time.Sleep(20 * time.Millisecond) {
		c.Write([]byte("hello")) // never answered
	}
	for _, s := range []*site{a, b} {
		if got := s.packets(); got["first"] > 3 || got["sent"]+got["received"] < 30 {
			t.Errorf("host %d, one way: %v", s.number, got)
		}
	}
	before := a.packets()
	done := time.Now().Add(3500 * time.Millisecond)
	pingWhile(t, a.inside, b.inside, b.addr("IPv4"), func(int) bool { time.Sleep(10 * time.Millisecond); return time.Now().Before(done) })
	middle := a.packets()
	if middle["sent"] < before["sent"]+50 {
		t.Errorf("both ways: %v", middle)
	}
	time.Sleep(2200 * time.Millisecond)
	pingWhile(t, a.inside, b.inside, b.addr("IPv4"), func(i int) bool { return i < 1 })
	if got := nstest.Sh(t, a.ns, "grep 'udp .*src=10.1.1.5' /proc/net/nf_conntrack || :"); strings.Count(got, "\n") > 1 {
		t.Errorf("entries do not end after their flows: %s", got)
	}
}
