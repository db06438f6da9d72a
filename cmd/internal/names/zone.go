package names

import (
	"context"
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/overlayd/overlayd/policy"
)

const (
	// Zone is where the names of containers are.
	Zone = "overlay."
	// ttl, in seconds, of all answers: nobody must go on with a container that is gone.
	ttl = 1
	// defaultNamespace is where containers are of which nobody says more, and from where the host itself asks.
	defaultNamespace = "default"
)

// zone answers for names of containers, and their addresses. It asks nobody.
type zone struct {
	index  *Index
	demand *Demand
}

// asker is who asks.
type asker struct {
	addr netip.Addr
	host bool // it is this host itself
}

// owns says whether a question, its name in lower case, is one for the zone. An address of the network's has no name elsewhere.
func (z zone) owns(q dns.Question, name string) bool {
	if dns.IsSubDomain(Zone, name) {
		return true
	}
	ip := reversed(name)
	if !ip.IsValid() {
		return false
	}
	own, others := z.index.InNetwork(ip)
	return own || others
}

// needs is the namespace whose endpoints must be known for an answer.
func (z zone) needs(name string, from asker) (namespace string, some bool) {
	if ip := reversed(name); ip.IsValid() {
		if z.index.Has(ip) {
			return "", false
		}
		_, others := z.index.InNetwork(ip) // this host's own are known
		return everything, others
	}
	_, namespace = z.split(name, from)
	return namespace, namespace != ""
}

// split takes a name of the zone apart: web.overlay. is in the asker's namespace. One that can be no container's has no namespace.
func (z zone) split(name string, from asker) (label, namespace string) {
	labels := dns.SplitDomainName(strings.TrimSuffix(name, Zone))
	switch len(labels) {
	case 1:
		if namespace = z.index.NamespaceOf(from.addr); namespace == "" {
			namespace = defaultNamespace
		}
		return labels[0], namespace
	case 2:
		if policy.ValidateNamespace(labels[1]) == nil {
			return labels[0], labels[1]
		}
	}
	return "", ""
}

// answer makes of a question for the zone its answer. Complete says whether all that has to do with it is known.
func (z zone) answer(m *dns.Msg, name string, from asker, complete bool) {
	q := m.Question[0]
	m.Authoritative = true
	found := false
	if ip := reversed(name); ip.IsValid() {
		if namespace, called, ok := z.index.NameOf(ip); ok {
			found = true
			if q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY {
				m.Answer = append(m.Answer, &dns.PTR{Hdr: header(q, dns.TypePTR), Ptr: called + "." + namespace + "." + Zone})
			}
		}
	} else {
		found = z.addresses(m, name, from)
	}
	switch {
	case found && len(m.Answer) > 0:
	case !complete && !found:
		m.Authoritative, m.Rcode = false, dns.RcodeServerFailure
	default:
		if !found {
			m.Rcode = dns.RcodeNameError
		}
		m.Ns = append(m.Ns, soa())
	}
}

// addresses answers with those of a name, and says whether there is such a name.
func (z zone) addresses(m *dns.Msg, name string, from asker) (found bool) {
	q := m.Question[0]
	if name == Zone {
		if q.Qtype == dns.TypeSOA {
			m.Answer = append(m.Answer, soa())
		}
		return true
	}
	label, namespace := z.split(name, from)
	for f, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		addrs, ok := z.index.Lookup(namespace, label, f)
		found = found || ok
		if q.Qtype != kind && q.Qtype != dns.TypeANY {
			continue
		}
		for _, addr := range addrs {
			m.Answer = append(m.Answer, record(q, addr))
		}
	}
	// What has names below it is there (RFC 8020).
	return found || strings.Count(name, ".") == 2 && z.index.Holds(strings.TrimSuffix(name, "."+Zone))
}

func header(q dns.Question, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

func record(q dns.Question, addr netip.Addr) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: header(q, dns.TypeA), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(q, dns.TypeAAAA), AAAA: addr.AsSlice()}
}

// soa says how long it is true that something is not there.
func soa() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: Zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  "ns." + Zone, Mbox: "hostmaster." + Zone, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}
}

// reversed is the address that a name below in-addr.arpa. or ip6.arpa. stands for; the zero Addr: none.
func reversed(name string) netip.Addr {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		if len(labels) != 4 {
			return netip.Addr{}
		}
		ip, _ := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return ip
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	if !ok || len(rest) != 63 {
		return netip.Addr{}
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if b.WriteByte(rest[i]); i%8 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	ip, _ := netip.ParseAddr(b.String())
	return ip
}

// complete says whether what is needed to answer is known.
func (z zone) complete(name string, from asker) bool {
	namespace, some := z.needs(name, from)
	if !some {
		return true
	}
	known, _, _ := z.demand.ask(namespace)
	return known
}

// await waits for that, and says whether it came.
func (z zone) await(ctx context.Context, name string, from asker) bool {
	namespace, some := z.needs(name, from)
	return !some || z.demand.await(ctx, namespace)
}
