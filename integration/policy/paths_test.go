package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// paths is a rig with containers for the ways that are not container to container: two of dev on the first host, of which web has
// published ports, one of prod on the other.
type paths struct {
	*rig
	web, near, far *pod
	here, there    *pod // the hosts themselves
}

// The published ports: of web's port 80, and of its ports of the same numbers, one for the streams of each family.
const (
	published       = 8080
	publishedStream = 7000
)

func newPaths(t *testing.T, args ...string) *paths {
	t.Helper()
	r := newRig(t, args...)
	p := &paths{rig: r, here: r.hostPod(0), there: r.hostPod(1)}
	p.web = r.plainPod(r.hosts[0], "dev", "web", map[string]string{"app": "web"})
	p.web.publish = publish(map[int]int{published: 80, publishedStream: publishedStream, publishedStream + 1: publishedStream + 1})
	p.web.attach()
	p.near = r.newPod(r.hosts[0], "dev", "near", map[string]string{"app": "near"})
	p.far = r.newPod(r.hosts[1], "prod", "far", map[string]string{"app": "far"})
	r.pods = []*pod{p.web, p.near, p.far}
	r.check("no policy")
	return p
}

// publish is CAP_ARGS for ports of the host's to ports of the container's, of TCP and UDP.
func publish(ports map[int]int) string {
	var mappings []string
	for host, container := range ports {
		for _, proto := range []string{"tcp", "udp"} {
			mappings = append(mappings, fmt.Sprintf(`{"hostPort":%d,"containerPort":%d,"protocol":%q}`, host, container, proto))
		}
	}
	return `{"portMappings":[` + strings.Join(mappings, ",") + `]}`
}

// hostPod is a host as a party of probes, with servers of its own.
func (r *rig) hostPod(i int) *pod {
	r.t.Helper()
	p := &pod{node: r.hosts[i].node, rig: r, podName: fmt.Sprintf("host%d", i), addrs: r.hosts[i].addrs}
	p.open()
	return p
}

// at is a party under other addresses: a gateway's, say.
func at(name string, addrs [2]netip.Addr) *pod { return &pod{podName: name, addrs: addrs} }

// gateway is a container's host as it sees it.
func (p *pod) gateway() *pod {
	var g [2]netip.Addr
	for family, subnet := range p.host.subnets() {
		g[family] = subnet.Addr().Next()
	}
	return at("gateway", g)
}

// way is a path, with what is wanted of it.
type way struct {
	from, to *pod
	proto    string
	port     uint16
	want     bool
	only     []int // families; nil: both
}

func (p *paths) judge(what string, ways []way) {
	p.t.Helper()
	var probes []probe
	want := make(map[string]bool)
	for _, w := range ways {
		families := w.only
		if families == nil {
			families = []int{v4, v6}
		}
		for _, f := range families {
			pr := probe{w.from, w.to, f, w.proto, w.port}
			probes = append(probes, pr)
			want[pr.String()] = w.want
		}
	}
	p.expect(what, probes, func(pr probe) bool { return want[pr.String()] })
	total.addCase()
}

// all are the ways by each service.
func all(from, to *pod, want bool) []way {
	var ways []way
	for _, s := range services {
		ways = append(ways, way{from, to, s.proto, s.port, want, nil})
	}
	return ways
}

// byPort are the ways by the published port.
func (p *paths) byPort(from *pod, want bool) []way {
	host := at("published", p.hosts[0].addrs)
	return []way{{from, host, "tcp", published, want, nil}, {from, host, "udp", published, want, nil}}
}

// TestPathsOfHosts finds a host reaching its own containers always, another host not, and containers reaching hosts as their
// policies of egress have it.
func TestPathsOfHosts(t *testing.T) {
	p := newPaths(t)
	loop := at("loopback", [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()})
	open := func(want bool) []way {
		ways := all(p.there, p.web, want)
		for _, to := range []*pod{p.web.gateway(), p.here, p.there, p.outside} {
			ways = append(ways, all(p.web, to, want)...)
		}
		return ways
	}
	exempt := append(all(p.here, p.web, true), way{p.here, loop, "tcp", published, true, []int{v4}})
	exempt = append(exempt, p.byPort(p.here, true)...)
	exempt = append(exempt, p.byPort(p.web, true)...) // hairpin
	exempt = append(exempt, all(p.web, p.web, true)...)
	p.judge("no policy: hosts", append(open(true), exempt...))
	p.apply("dev", netpolText("dev", "deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
	p.judge("all denied: hosts", append(open(false), exempt...))
	p.apply("dev", netpolText("dev", "deny", fmt.Sprintf("{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [{ipBlock: {cidr: %s/32}}, {ipBlock: {cidr: '%s/128'}}], ports: [{port: 80}]}]}",
		p.here.addrs[v4], p.here.addrs[v6])))
	p.judge("one port of the host allowed", []way{{p.web, p.here, "tcp", 80, true, nil}, {p.web, p.here, "tcp", 81, false, nil}, {p.web, p.here, "udp", 80, false, nil},
		{p.web, p.there, "tcp", 80, false, nil}, {p.web, p.web.gateway(), "tcp", 80, false, nil}})
	p.remove("dev/deny")
	p.judge("no policy any more: hosts", append(open(true), exempt...))
}

// TestPublishedPorts finds a published port judged at the container's port, with the client's own address and labels.
func TestPublishedPorts(t *testing.T) {
	p := newPaths(t)
	clients := []*pod{p.outside, p.near, p.far, p.there}
	only := func(allowed ...*pod) []way {
		var ways []way
		for _, c := range clients {
			want := false
			for _, a := range allowed {
				want = want || a == c
			}
			ways = append(ways, p.byPort(c, want)...)
		}
		return append(ways, p.byPort(p.here, true)...)
	}
	// Where nobody is isolated a bridge shows no traffic: an answer to a container beside goes there as it is, with another address
	// than was asked, unless who publishes the port masquerades, as portmap does.
	var unseen []way
	for _, c := range []*pod{p.here, p.outside, p.far, p.there} {
		unseen = append(unseen, p.byPort(c, true)...)
	}
	p.judge("no policy: published", unseen)
	rules := func(from string) string {
		return fmt.Sprintf("{podSelector: {matchLabels: {app: web}}, ingress: [{from: [%s], ports: [{port: 80}, {protocol: UDP, port: 80}]}]}", from)
	}
	for _, c := range []struct {
		what, spec string
		ways       []way
	}{
		{"deny all", "{podSelector: {}}", only()},
		{"the client outside", rules("{ipBlock: {cidr: 172.30.1.50/32}}, {ipBlock: {cidr: 'fd00:30:1::32/128'}}"), only(p.outside)},
		{"a container of the same host", rules("{podSelector: {matchLabels: {app: near}}}"), only(p.near)},
		// A host's own address is outside of the network, so that ip-masq has the container's host ask.
		{"a container of the other host", rules("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}}"), only()},
		{"the other host", rules("{ipBlock: {cidr: 172.30.1.12/32}}, {ipBlock: {cidr: 'fd00:30:1::c/128'}}"), only(p.far, p.there)},
		{"the published port's number", "{podSelector: {}, ingress: [{ports: [{port: 8080}, {protocol: UDP, port: 8080}]}]}", only()},
	} {
		p.apply("dev", netpolText("dev", "p", c.spec))
		p.judge("published: "+c.what, c.ways)
	}
	p.remove("dev/p")
	p.judge("no policy any more: published", unseen)
}
