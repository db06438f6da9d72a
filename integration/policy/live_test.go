package policy

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// cutWithin is how soon a connection that is no longer allowed has to be dead.
const cutWithin = 500 * time.Millisecond

// limit is cutWithin where the machine is ours alone; among the other tests, what it takes.
func limit() time.Duration {
	if everything() {
		return cutWithin
	}
	return 5 * time.Second
}

// living opens streams, each by a port of its own.
type living struct {
	t    *testing.T
	port uint16
}

func (l *living) open(proto string, client, server *pod, family int) *stream {
	l.t.Helper()
	l.port++
	s := openStream(l.t, proto, client, server, netip.AddrPortFrom(server.addrs[family], l.port), l.port)
	return s
}

// TestLiveConnections has connections of all kinds under way while policies come: those that are forbidden end, in both
// directions, and no other loses anything.
func TestLiveConnections(t *testing.T) {
	p := newPaths(t)
	l := &living{t: t, port: 7100}
	var ownWay, forbidden, allowed []*stream
	for f := range families {
		for _, proto := range []string{"tcp", "udp"} {
			forbidden = append(forbidden, l.open(proto, p.near, p.web, f), p.openPublished(t, proto, f))
			allowed = append(allowed, l.open(proto, p.far, p.web, f))
			ownWay = append(ownWay, l.open(proto, p.web, p.near, f), l.open(proto, p.web, p.far, f), l.open(proto, p.web, p.outside, f))
		}
	}
	const from = "ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}}]}]"
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: web}}, "+from+"}"))
	since := time.Now()
	for _, s := range forbidden {
		s.diedWithin(t, since, limit())
	}
	p.apply("dev", netpolText("dev", "q", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}"))
	since = time.Now()
	for _, s := range ownWay {
		s.diedWithin(t, since, limit())
	}
	for _, s := range allowed {
		s.lossless(t)
	}
	p.remove("dev/p", "dev/q")
	total.addCase()
}

// TestConnectionsThatStay has connections that a policy allows go on without the loss of a datagram: between hosts, on one, by a
// published port, and masqueraded.
func TestConnectionsThatStay(t *testing.T) {
	p := newPaths(t)
	l := &living{t: t, port: 7100}
	var allowed []*stream
	for f := range families {
		for _, proto := range []string{"tcp", "udp"} {
			allowed = append(allowed, l.open(proto, p.near, p.web, f), l.open(proto, p.far, p.web, f), p.openPublished(t, proto, f),
				l.open(proto, p.web, p.near, f), l.open(proto, p.web, p.far, f), l.open(proto, p.web, p.outside, f))
		}
	}
	p.apply("dev", netpolText("dev", "p", "{podSelector: {}, "+both+", ingress: [{from: [{namespaceSelector: {}}]}, {from: [{ipBlock: {cidr: 172.30.1.50/32}}, {ipBlock: {cidr: 'fd00:30:1::32/128'}}]}], "+
		"egress: [{to: [{namespaceSelector: {}}, {ipBlock: {cidr: 172.30.1.0/24}}, {ipBlock: {cidr: 'fd00:30:1::/64'}}]}]}"))
	for i := range 5 { // each a narrowing, so that all are judged again
		p.apply("prod", netpolText("prod", "other", fmt.Sprintf("{podSelector: {}, "+both+", ingress: [{ports: [{port: %d}]}, {from: [{namespaceSelector: {}}]}], egress: [{}]}", 9000+i)))
	}
	for _, s := range allowed {
		s.lossless(t)
	}
	p.remove("dev/p", "prod/other")
	total.addCase()
}

// TestConnectionsOfBefore has connections that were there before the host had any policy, and before anything was tracked: the
// forbidden end, the allowed go on.
func TestConnectionsOfBefore(t *testing.T) {
	p := newPaths(t, "--ip-masq=false")
	l := &living{t: t, port: 7100}
	var forbidden, allowed []*stream
	for f := range families {
		for _, proto := range []string{"tcp", "udp"} {
			forbidden = append(forbidden, l.open(proto, p.near, p.web, f), l.open(proto, p.there, p.web, f))
			allowed = append(allowed, l.open(proto, p.far, p.web, f), l.open(proto, p.web, p.far, f))
		}
	}
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}}]}]}"))
	since := time.Now()
	for _, s := range forbidden {
		s.diedWithin(t, since, limit())
	}
	for _, s := range allowed {
		s.lossless(t)
	}
	p.remove("dev/p")
	total.addCase()
}

// openPublished is a stream from outside to web's published port. Only one protocol and family each.
func (p *paths) openPublished(t *testing.T, proto string, family int) *stream {
	t.Helper()
	return openStream(t, proto, p.outside, p.web, netip.AddrPortFrom(p.hosts[0].addrs[family], publishedStream+uint16(family)), publishedStream+uint16(family))
}
