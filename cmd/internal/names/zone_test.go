package names

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

// TestZone asks for all that there is, and for what there is not.
func TestZone(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.Known([]string{everything})
	s.locals(endpointOf("default", "cli", nil, "10.5.1.2", "fc00:5:0:1::2"), endpointOf("prod", "job", nil, "10.5.1.3"))
	s.put(nearHost, 5, endpointOf("default", "Web", nil, "10.5.2.2", "fc00:5:0:2::2"))
	s.put(farHost, 6, endpointOf("prod", "web", nil, "10.5.3.3"))
	s.put(farHost, 7, endpointOf("prod", "a.b", nil, "10.5.3.4"))
	s.put(farHost, 8, endpointOf("six", "only", nil, "fc00:5:0:3::9"))
	const cli, job, stranger = "10.5.1.2", "10.5.1.3", "10.5.1.77"
	for _, c := range []struct {
		from, name string
		kind       uint16
		want       string
	}{
		{cli, "web.overlay.", dns.TypeA, "10.5.2.2"},
		{cli, "wEB.OverLay.", dns.TypeA, "10.5.2.2"},
		{cli, "web.overlay.", dns.TypeAAAA, "fc00:5:0:2::2"},
		{cli, "web.overlay.", dns.TypeANY, "10.5.2.2 fc00:5:0:2::2"},
		{cli, "web.overlay.", dns.TypeMX, "NOERROR"},
		{cli, "web.default.overlay.", dns.TypeA, "10.5.2.2"},
		{cli, "web.prod.overlay.", dns.TypeA, "10.5.3.3"},
		{cli, "web.prod.overlay.", dns.TypeAAAA, "NOERROR"},
		{cli, "only.six.overlay.", dns.TypeA, "NOERROR"},
		{cli, "only.six.overlay.", dns.TypeAAAA, "fc00:5:0:3::9"},
		{job, "web.overlay.", dns.TypeA, "10.5.3.3"}, // its own namespace's
		{job, "cli.overlay.", dns.TypeA, "NXDOMAIN"},
		{stranger, "web.overlay.", dns.TypeA, "10.5.2.2"},
		{cli, "prod.overlay.", dns.TypeA, "NOERROR"}, // there are names below it
		{cli, "nobody.overlay.", dns.TypeA, "NXDOMAIN"},
		{cli, "web.nowhere.overlay.", dns.TypeA, "NXDOMAIN"},
		{cli, "a.b.prod.overlay.", dns.TypeA, "NXDOMAIN"},
		{cli, `a\.b.prod.overlay.`, dns.TypeA, "NXDOMAIN"},
		{cli, `web.prod/x.overlay.`, dns.TypeA, "NXDOMAIN"},
		{cli, "*.overlay.", dns.TypeA, "NXDOMAIN"},
		{cli, "overlay.", dns.TypeA, "NOERROR"},
		{cli, "2.2.5.10.in-addr.arpa.", dns.TypePTR, "web.default.overlay."},
		{cli, "3.3.5.10.in-addr.arpa.", dns.TypePTR, "web.prod.overlay."},
		{cli, "2.2.5.10.in-addr.arpa.", dns.TypeA, "NOERROR"},
		{cli, "4.3.5.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"}, // no name of DNS
		{cli, "99.2.5.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{cli, "9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.0.0.0.0.0.5.0.0.0.0.0.C.F.ip6.arpa.", dns.TypePTR, "only.six.overlay."},
		{cli, "1.1.168.192.in-addr.arpa.", dns.TypePTR, "SERVFAIL"}, // the resolvers' matter, of whom there are none
		{cli, "example.com.", dns.TypeA, "SERVFAIL"},
		{cli, "myoverlay.", dns.TypeA, "SERVFAIL"},
	} {
		m := s.asks(t, c.from, c.name, c.kind)
		if got := strings.Join(said(m), " "); got != c.want {
			t.Errorf("%s asks for %s %s: %s, want %s", c.from, c.name, dns.TypeToString[c.kind], got, c.want)
		}
		if ours := m.Rcode != dns.RcodeServerFailure; ours && (!m.Authoritative || m.Question[0].Name != c.name || len(m.Answer) == 0 && len(m.Ns) != 1) {
			t.Errorf("%s asks for %s: %v", c.from, c.name, m)
		}
		for _, rr := range append(m.Answer, m.Ns...) {
			if rr.Header().Ttl > 5 {
				t.Errorf("%s: %v", c.name, rr)
			}
		}
	}
	if m := s.asks(t, cli, "overlay.", dns.TypeSOA); len(m.Answer) != 1 {
		t.Errorf("SOA: %v", m)
	}
}

// TestNearestFirst has a service on all hosts: this host's come first, then those on its link, and those that are as near in turn.
func TestNearestFirst(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.locals(endpointOf("default", "shop-web-1", service("web"), "10.5.1.2"), endpointOf("default", "shop-web-2", service("web"), "10.5.1.3"))
	s.put(farHost, 3, endpointOf("default", "shop-web-3", service("web"), "10.5.3.2"))
	s.put(farther, 4, endpointOf("default", "shop-web-4", service("web"), "10.5.4.2"))
	gone := s.put(nearHost, 5, endpointOf("default", "shop-web-5", service("web"), "10.5.2.2"))
	firsts := map[string]int{}
	for range 200 {
		got := saidInOrder(s.asks(t, "10.5.1.2", "web.overlay.", dns.TypeA))
		firsts[got[0]]++
		if len(got) != 5 || got[2] != "10.5.2.2" || !slices.Contains(got[:2], "10.5.1.2") || !slices.Contains(got[3:], "10.5.4.2") {
			t.Fatalf("web: %v", got)
		}
	}
	if firsts["10.5.1.2"] < 50 || firsts["10.5.1.3"] < 50 {
		t.Errorf("the first: %v", firsts)
	}
	s.Delete(gone)
	s.locals(endpointOf("default", "shop-web-2", service("web"), "10.5.1.3"))
	if got := said(s.asks(t, "10.5.1.3", "web.overlay.", dns.TypeA)); !slices.Equal(got, []string{"10.5.1.3", "10.5.3.2", "10.5.4.2"}) {
		t.Errorf("after two are gone: %v", got)
	}
}

// TestClaimOfAnothersName has containers call themselves what others are called: whoever took the name first has it, and those of
// one service share it. It is said, and reversed names are no others'.
func TestClaimOfAnothersName(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	asks := func(what, name, want string) {
		t.Helper()
		if got := strings.Join(said(s.asks(t, "10.5.1.9", name, dns.TypeA)), " "); got != want {
			t.Errorf("%s: %s is %s, want %s", what, name, got, want)
		}
	}
	first := s.put(farHost, 10, endpointOf("default", "db", nil, "10.5.3.2"))
	claim := s.put(nearHost, 20, endpointOf("default", "db", nil, "10.5.2.2"))
	asks("the name of another", "db.overlay.", "10.5.3.2")
	s.locals(endpointOf("default", "DB", nil, "10.5.1.2"))
	asks("this host claims it too", "db.overlay.", "10.5.3.2")
	s.put(farther, 30, endpointOf("default", "x", service("db"), "10.5.4.2"))
	asks("a service claims it", "db.overlay.", "10.5.3.2")
	if diff := cmp.Diff([]api.Contested{{Namespace: "default", Name: "db", Owner: "host farhost",
		Others: []string{"compose shop", "host nearhost", "host ownhost"}}}, s.Status().Contested); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if m := s.asks(t, "10.5.1.9", "2.2.5.10.in-addr.arpa.", dns.TypePTR); m.Rcode != dns.RcodeNameError {
		t.Errorf("who claims a name has it reversed: %v", m)
	}
	s.put(farHost, 11, endpointOf("default", "db", map[string]string{"a": "b"}, "10.5.3.2"))
	asks("the first has other labels", "db.overlay.", "10.5.3.2")
	s.Revise(claim, 5)
	asks("the other's is older in truth", "db.overlay.", "10.5.2.2")
	s.Revise(claim, 20)
	s.Delete(first)
	asks("the first is gone", "db.overlay.", "10.5.2.2")
	s.Delete(claim)
	asks("the second is gone", "db.overlay.", "10.5.4.2")
	s.Revise("default/ownhost/10.5.1.2", 25)
	asks("etcd has ours since before", "db.overlay.", "10.5.1.2")

	s.put(farHost, 40, endpointOf("default", "shop-web-1", service("web"), "10.5.3.5"))
	s.put(nearHost, 41, endpointOf("default", "evil", map[string]string{"com.docker.compose.service": "web", "com.docker.compose.project": "other"}, "10.5.2.5"))
	asks("another project's service", "web.overlay.", "10.5.3.5")
}

// TestManyOfOneName cuts an answer that does not fit, so that whoever wants all comes by TCP.
func TestManyOfOneName(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	for i := range 200 {
		s.put(farHost, int64(i+1), endpointOf("default", fmt.Sprint("web", i), service("web"), fmt.Sprintf("10.5.3.%d", i+2)))
	}
	for _, size := range []uint16{0, 512, 1232, 65535} {
		m := new(dns.Msg)
		m.SetQuestion("web.overlay.", dns.TypeA)
		most := 512
		if size > 0 {
			m.SetEdns0(size, false)
			most = min(int(size), mostBytes)
		}
		reply := s.exchange(t, "10.5.1.2", m, false)
		reply.Compress = true
		if reply.Len() > most || !reply.Truncated || len(reply.Answer) < most/20 || (reply.IsEdns0() != nil) != (size > 0) {
			t.Errorf("in %d bytes: %d of them, cut: %t, %d addresses", most, reply.Len(), reply.Truncated, len(reply.Answer))
		}
		if reply := s.exchange(t, "10.5.1.2", m, true); reply.Truncated || len(reply.Answer) != 200 {
			t.Errorf("by TCP: %d", len(reply.Answer))
		}
	}
}

// TestUnknownNamespace asks for a namespace of which nothing is known yet: it is wanted, and waited for, but only so long.
func TestUnknownNamespace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t)
		s.locals(endpointOf("prod", "here", nil, "10.5.1.3"))
		start := time.Now()
		ask := func(name string) string { return strings.Join(said(s.asks(t, "10.5.1.9", name, dns.TypeA)), " ") }
		go func() {
			time.Sleep(time.Second)
			s.put(farHost, 4, endpointOf("dev", "web", nil, "10.5.3.2"))
			s.Known([]string{"default", "dev"})
		}()
		if got := ask("web.dev.overlay."); got != "10.5.3.2" || time.Since(start) != time.Second {
			t.Errorf("%s after %v", got, time.Since(start))
		}
		if _, wanted := s.Wanted(); !slices.Equal(wanted, []string{"dev"}) {
			t.Errorf("wanted: %v", wanted)
		}
		start = time.Now()
		if got := ask("web.prod.overlay."); got != "SERVFAIL" || time.Since(start) != listedWithin {
			t.Errorf("etcd does not say: %s after %v", got, time.Since(start))
		}
		if got := ask("here.prod.overlay."); got != "10.5.1.3" || time.Since(start) != listedWithin {
			t.Errorf("what is here: %s after %v", got, time.Since(start))
		}
		if got := ask("9.3.5.10.in-addr.arpa."); got != "SERVFAIL" {
			t.Errorf("an address of another host: %s", got)
		}
		if all, _ := s.Wanted(); !all {
			t.Error("not all are wanted for an address")
		}
		time.Sleep(staysWanted + time.Second)
		if all, wanted := s.Wanted(); all || len(wanted) > 0 {
			t.Errorf("after a while: all %t, %v", all, wanted)
		}
		for i := range 3 * mostWanted {
			s.ask(fmt.Sprint("ns", i))
		}
		if all, _ := s.Wanted(); !all || len(s.asked) > mostWanted+1 {
			t.Errorf("of many: all %t, %d apart", all, len(s.asked))
		}
	})
}
