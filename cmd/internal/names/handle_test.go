package names

import (
	"net/netip"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// TestBadQueries sends what is no question, or not one for us.
func TestBadQueries(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.withResolvers(t, &resolver{says: right("192.0.2.8")})
	question := func(change func(*dns.Msg)) []byte {
		m := new(dns.Msg)
		m.SetQuestion("web.overlay.", dns.TypeA)
		change(m)
		data, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	loop := append(question(func(*dns.Msg) {})[:headerLen:headerLen], 0xc0, 0x0c, 0, 1, 0, 1)
	for _, c := range []struct {
		what  string
		query []byte
		want  string
		host  bool
	}{
		{"nothing", nil, "", false},
		{"half a header", make([]byte, 11), "", false},
		{"an answer", question(func(m *dns.Msg) { m.Response = true }), "", false},
		{"half a question", question(func(*dns.Msg) {})[:20], "FORMERR", false},
		{"no question", question(func(m *dns.Msg) { m.Question = nil }), "FORMERR", false},
		{"two questions", question(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR", false},
		{"a name that is itself", loop, "FORMERR", false},
		{"an update", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), "NOTIMP", false},
		{"a transfer", question(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR }), "REFUSED", false},
		{"another EDNS", question(func(m *dns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }), "BADVERS", false},
		{"from the host, for others", question(func(m *dns.Msg) { m.Question[0].Name = "example.com." }), "REFUSED", true},
		{"from the host", question(func(*dns.Msg) {}), "NXDOMAIN", true},
	} {
		answer, later := s.handle(t.Context(), c.query, asker{netip.MustParseAddr("10.5.1.2"), c.host}, false)
		if later != nil {
			t.Errorf("%s is passed on", c.what)
			continue
		}
		var m dns.Msg
		if c.want == "" {
			if answer != nil {
				t.Errorf("%s: answer %x", c.what, answer)
			}
			continue
		}
		if err := m.Unpack(answer); err != nil || dns.RcodeToString[m.Rcode] != c.want && !(c.want == "BADVERS" && m.Rcode == dns.RcodeBadVers) {
			t.Errorf("%s: %v %v, want %s", c.what, err, &m, c.want)
		}
	}
}

// TestFlood has one container ask more than it may: others are answered as before.
func TestFlood(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	hang := make(chan struct{})
	r := &resolver{says: func(w dns.ResponseWriter, m *dns.Msg) {
		if m.Question[0].Name == "slow.example." {
			<-hang
		}
		right("192.0.2.8")(w, m)
	}}
	s.withResolvers(t, r)
	defer close(hang)
	var waiting sync.WaitGroup
	q := new(dns.Msg)
	q.SetQuestion("slow.example.", dns.TypeA)
	query, _ := q.Pack()
	flooder := asker{addr: netip.MustParseAddr("10.5.1.66")}
	full := 0
	for range 3 * mostWaiting {
		answer, later := s.handle(t.Context(), query, flooder, false)
		if later != nil {
			waiting.Go(func() { later(query) })
			continue
		}
		var m dns.Msg
		if full++; m.Unpack(answer) != nil || m.Rcode != dns.RcodeServerFailure {
			t.Fatalf("too many: %v", &m)
		}
	}
	if full != 2*mostWaiting {
		t.Errorf("%d refused", full)
	}
	if got := said(s.asks(t, "10.5.1.2", "example.com.", dns.TypeA)); got[0] != "192.0.2.8" {
		t.Errorf("another is answered %v", got)
	}
	heard := 0
	for range 3 * mostQuestions {
		if s.limits.hear(flooder.addr) {
			heard++
		}
	}
	if heard < mostQuestions || heard > 2*mostQuestions+mostQuestions/2 || !s.limits.hear(netip.MustParseAddr("10.5.1.2")) {
		t.Errorf("of a flood %d are heard", heard)
	}
	for i := range 3 * mostKnown {
		s.limits.hear(netip.AddrFrom4([4]byte{10, 6, byte(i >> 8), byte(i)}))
	}
	if len(s.limits.by) > mostKnown+mostWaiting {
		t.Errorf("%d askers are kept apart", len(s.limits.by))
	}
	waiting.Wait()
}

func FuzzHandle(f *testing.F) {
	q := new(dns.Msg)
	q.SetQuestion("web.default.overlay.", dns.TypeA)
	query, _ := q.Pack()
	f.Add(query)
	q.SetQuestion("2.2.5.10.in-addr.arpa.", dns.TypePTR)
	query, _ = q.Pack()
	f.Add(query)
	s := newTestServer(f)
	s.Known([]string{everything})
	f.Fuzz(func(t *testing.T, data []byte) {
		answer, _ := s.handle(t.Context(), data, asker{addr: netip.MustParseAddr("10.5.1.2")}, false)
		if len(answer) > 0 && len(answer) < headerLen {
			t.Errorf("%x", answer)
		}
		question(data)
		if len(data) >= headerLen {
			answers(data, data)
			cut(data, headerLen)
		}
	})
}
