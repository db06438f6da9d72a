package names

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// resolver is one of the host's, at 127.0.0.n.
type resolver struct {
	asked atomic.Int32
	says  func(w dns.ResponseWriter, m *dns.Msg)
}

func (r *resolver) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	r.asked.Add(1)
	r.says(w, m)
}

// right answers with an address.
func right(addr string) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetReply(m)
		reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.ParseIP(addr)}}
		_ = w.WriteMsg(reply)
	}
}

func code(rcode int) func(dns.ResponseWriter, *dns.Msg) {
	return func(w dns.ResponseWriter, m *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetRcode(m, rcode)) }
}

func never(dns.ResponseWriter, *dns.Msg) {}

// withResolvers has the host of s have resolvers, of which a nil one does not run, and returns its resolv.conf.
func (s *Server) withResolvers(t testing.TB, all ...*resolver) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "resolv.conf")
	text := "# comment\nsearch example.com\n"
	var at uint16
	for i, r := range all {
		host := netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)})
		text += "nameserver " + host.String() + "\n"
		if r == nil {
			continue
		}
		if at == 0 {
			at = freePort(t)
		}
		for _, network := range []string{"udp", "tcp"} {
			started := make(chan struct{})
			d := &dns.Server{Addr: netip.AddrPortFrom(host, at).String(), Net: network, Handler: r, NotifyStartedFunc: sync.OnceFunc(func() { close(started) })}
			go func() { _ = d.ListenAndServe() }()
			<-started
			t.Cleanup(func() { _ = d.Shutdown() })
		}
	}
	write(t, path, text)
	s.forward = forwarder{newResolvers(path), at}
	return path
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func freePort(t testing.TB) uint16 {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := l.Addr().(*net.TCPAddr).AddrPort().Port()
		l.Close()
		if c, err := net.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at).String()); err == nil {
			c.Close()
			return at
		}
	}
}

// TestResolvers has the host's resolvers be of all kinds.
func TestResolvers(t *testing.T) {
	t.Parallel()
	forged := func(change func(*dns.Msg)) func(dns.ResponseWriter, *dns.Msg) {
		return func(w dns.ResponseWriter, m *dns.Msg) {
			reply := new(dns.Msg)
			reply.SetReply(m)
			reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP("6.6.6.6")}}
			change(reply)
			_ = w.WriteMsg(reply)
		}
	}
	garbage := func(w dns.ResponseWriter, _ *dns.Msg) {
		_, _ = w.Write([]byte("\xff\xff"))
		_, _ = w.Write(make([]byte, 12))
		_, _ = w.Write([]byte(strings.Repeat("\xc0", 600)))
	}
	lies := func(w dns.ResponseWriter, m *dns.Msg) {
		forged(func(r *dns.Msg) { r.Id++ })(w, m)
		forged(func(r *dns.Msg) { r.Question[0].Name = "other.example." })(w, m)
		forged(func(r *dns.Msg) { r.Question[0].Qtype = dns.TypeMX })(w, m)
		forged(func(r *dns.Msg) { r.Response = false })(w, m)
		right("192.0.2.9")(w, m)
	}
	ok := right("192.0.2.8")
	for _, c := range []struct {
		what string
		says []func(dns.ResponseWriter, *dns.Msg)
		want string
		most time.Duration
	}{
		{"one that is right", []func(dns.ResponseWriter, *dns.Msg){ok}, "192.0.2.8", patience},
		{"one that does not run", []func(dns.ResponseWriter, *dns.Msg){nil, ok}, "192.0.2.8", patience},
		{"one that is silent", []func(dns.ResponseWriter, *dns.Msg){never, ok}, "192.0.2.8", patienceAll},
		{"garbage", []func(dns.ResponseWriter, *dns.Msg){garbage, ok}, "192.0.2.8", patienceAll},
		{"lies, before the truth", []func(dns.ResponseWriter, *dns.Msg){lies, ok}, "192.0.2.9", patience},
		{"SERVFAIL", []func(dns.ResponseWriter, *dns.Msg){code(dns.RcodeServerFailure), ok}, "192.0.2.8", patience},
		{"REFUSED", []func(dns.ResponseWriter, *dns.Msg){code(dns.RcodeRefused), ok}, "192.0.2.8", patience},
		{"REFUSED by all", []func(dns.ResponseWriter, *dns.Msg){code(dns.RcodeRefused), code(dns.RcodeRefused)}, "REFUSED", patience},
		{"NXDOMAIN is an answer", []func(dns.ResponseWriter, *dns.Msg){code(dns.RcodeNameError), ok}, "NXDOMAIN", patience},
		{"nobody", []func(dns.ResponseWriter, *dns.Msg){never}, "SERVFAIL", 5 * time.Second},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			s := newTestServer(t)
			var all []*resolver
			for _, says := range c.says {
				if says == nil {
					all = append(all, nil)
				} else {
					all = append(all, &resolver{says: says})
				}
			}
			s.withResolvers(t, all...)
			start := time.Now()
			m := s.asks(t, "10.5.1.2", "www.ExamPle.com.", dns.TypeA)
			if got := strings.Join(said(m), " "); got != c.want || m.Question[0].Name != "www.ExamPle.com." {
				t.Errorf("answer %v", m)
			}
			if took := time.Since(start); took > c.most+time.Second {
				t.Errorf("after %v", took)
			}
		})
	}
}

// TestSilentResolverIsShunned has one not answer: the next question is asked of the other.
func TestSilentResolverIsShunned(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	mute, ok := &resolver{says: never}, &resolver{says: right("192.0.2.8")}
	s.withResolvers(t, mute, ok)
	for range 3 {
		if got := said(s.asks(t, "10.5.1.2", "example.com.", dns.TypeA)); got[0] != "192.0.2.8" {
			t.Fatal(got)
		}
	}
	if mute.asked.Load() != 1 || ok.asked.Load() != 3 {
		t.Errorf("asked %d and %d times", mute.asked.Load(), ok.asked.Load())
	}
}

// TestResolvConfChanges has the host's resolv.conf change under it: written over, replaced, gone, and full of nonsense.
func TestResolvConfChanges(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	path := s.withResolvers(t, &resolver{says: right("192.0.2.1")}, &resolver{says: right("192.0.2.2")}, &resolver{says: right("192.0.2.3")})
	asks := func(what, want string) {
		t.Helper()
		if got := said(s.asks(t, "10.5.1.2", "example.com.", dns.TypeA)); got[0] != want {
			t.Errorf("%s: %v, want %s", what, got, want)
		}
	}
	asks("as it was", "192.0.2.1")
	write(t, path, "nameserver 127.0.0.2\n")
	asks("written over", "192.0.2.2")
	write(t, path+".new", "nameserver 127.0.0.3\n")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	asks("replaced", "192.0.2.3")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	asks("gone", "SERVFAIL")
	write(t, path, "nameserver\nnameserver x\nnameserver 1.2.3.4.5\n;nameserver 127.0.0.1\nnameserver 127.0.0.2 # ours\n"+strings.Repeat("x", 1<<20))
	asks("nonsense", "192.0.2.2")
	write(t, path, "nameserver 10.5.1.2\nnameserver 127.0.0.2\n")
	asks("who asks is one of them", "192.0.2.2")
	s.listeners[netip.MustParseAddr("127.0.0.2")] = nil
	s.listeners[netip.MustParseAddr("127.0.0.1")] = &listener{}
	write(t, path, "nameserver 127.0.0.1\n")
	asks("ourselves", "SERVFAIL")
}

// TestTruncated has answers that do not fit: what the resolver cut stays cut, what is too long for who asked is cut, and by TCP all comes.
func TestTruncated(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.withResolvers(t, &resolver{says: func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetReply(m)
		for range 40 {
			reply.Answer = append(reply.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{strings.Repeat("x", 100)}})
		}
		if m.Question[0].Name == "cut.example." && w.RemoteAddr().Network() == "udp" {
			reply.Answer, reply.Truncated = nil, true
		}
		_ = w.WriteMsg(reply)
	}})
	for _, name := range []string{"cut.example.", "long.example."} {
		m := s.asks(t, "10.5.1.2", name, dns.TypeTXT)
		if !m.Truncated || len(m.Answer) > 0 || m.Question[0].Name != name {
			t.Errorf("%s by UDP: %v", name, m)
		}
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeTXT)
		if m := s.exchange(t, "10.5.1.2", q, true); m.Truncated || len(m.Answer) != 40 {
			t.Errorf("%s by TCP: %v", name, m)
		}
	}
}
