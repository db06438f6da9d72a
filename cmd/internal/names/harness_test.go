package names

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet"
)

// The hosts: this one, one on its link, and two behind routers.
const (
	own, nearHost, farHost, farther = "ownhost", "nearhost", "farhost", "farther"
)

// leaseOf is the lease of host number n, 10.5.n.0/24 and fc00:5:0:n::/64.
func leaseOf(t testing.TB, n int, id, publicIP string) *subnet.Record {
	t.Helper()
	return &subnet.Record{Lease: subnet.Lease{HostID: id, Endpoints: []subnet.Endpoint{
		{Subnet: netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n)), PublicIP: netip.MustParseAddr(publicIP)},
		{Subnet: netip.MustParsePrefix(fmt.Sprintf("fc00:5:0:%d::/64", n))},
	}}}
}

// newTestServer returns one that listens nowhere, of a host among others, that knows all of namespace default.
func newTestServer(t testing.TB) *Server {
	t.Helper()
	s := New(Config{ResolvConf: "/nonexistent", Dir: t.TempDir(), Registerer: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	s.Own(leaseOf(t, 1, own, "192.0.2.1"))
	s.Links([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	s.Peers(map[string]*subnet.Record{
		"10.5.2.0-24": leaseOf(t, 2, nearHost, "192.0.2.2"), "10.5.3.0-24": leaseOf(t, 3, farHost, "198.51.100.3"),
		"10.5.4.0-24": leaseOf(t, 4, farther, "198.51.100.4"),
	})
	s.Known([]string{"default"})
	return s
}

// endpoint is one with a name, labels and addresses.
func endpointOf(namespace, name string, labels map[string]string, ips ...string) policy.Endpoint {
	ep := policy.Endpoint{Identity: policy.Identity{Namespace: namespace, Name: name, Labels: labels}}
	for _, ip := range ips {
		ep.IPs = append(ep.IPs, netip.MustParseAddr(ip))
	}
	return ep
}

// put has a host's endpoint known.
func (s *Server) put(host string, revision int64, ep policy.Endpoint) (key string) {
	key = policy.EndpointKey(ep.Namespace, host, ep.IPs[0])
	s.Put(key, ep, revision)
	return key
}

// locals has this host have endpoints.
func (s *Server) locals(all ...policy.Endpoint) {
	by := map[string]policy.Endpoint{}
	for _, ep := range all {
		by[policy.EndpointKey(ep.Namespace, own, ep.IPs[0])] = ep
	}
	s.Local(by)
}

func service(name string) map[string]string {
	return map[string]string{"com.docker.compose.service": name, "com.docker.compose.project": "shop"}
}

// asks asks a question from an address, by UDP, and returns the answer.
func (s *Server) asks(t testing.TB, from, name string, kind uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	return s.exchange(t, from, m, false)
}

func (s *Server) exchange(t testing.TB, from string, m *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	query, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	answer, later := s.handle(t.Context(), query, asker{addr: netip.MustParseAddr(from)}, tcp)
	if later != nil {
		answer = later(query)
	}
	reply := new(dns.Msg)
	if err := reply.Unpack(answer); err != nil {
		t.Fatalf("%v: answer %x: %v", m.Question, answer, err)
	}
	if reply.Id != m.Id || !reply.Response {
		t.Fatalf("%v: answer %v", m.Question, reply)
	}
	return reply
}

// said is what an answer says: addresses and names sorted, or its code.
func said(m *dns.Msg) []string {
	all := saidInOrder(m)
	slices.Sort(all)
	return all
}

func saidInOrder(m *dns.Msg) (all []string) {
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			all = append(all, rr.A.String())
		case *dns.AAAA:
			all = append(all, rr.AAAA.String())
		case *dns.PTR:
			all = append(all, rr.Ptr)
		default:
			all = append(all, rr.String())
		}
	}
	if len(all) == 0 {
		return []string{dns.RcodeToString[m.Rcode]}
	}
	return all
}
