package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const composeArgs = "LABELS=com.docker.compose.service:%s,com.docker.compose.project:shop"

// TestNames has containers on three hosts find each other by name, and everybody else by the host's resolver.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, stack := range stacks {
		t.Run(stack.Name, func(t *testing.T) {
			t.Parallel()
			lab, wire := newWire(t, stack.Stack, `{"Type":"vxlan"}`)
			r := newResolver(t, wire, 200)
			hosts := lab.NewHosts(wire, 3)
			for _, h := range hosts {
				h.startNaming("nameserver " + r.addr.String() + "\n")
			}
			for _, h := range hosts {
				h.WaitReady()
				h.WaitPeers(2)
			}
			web := hosts[0].newNamed("NAME=web")
			cli := &Container{Node: newNode(t, hosts[1].Name+"-cli"), Host: hosts[1]}
			if ns := cli.attachNamed("NAME=cli"); !slices.Equal(ns, cli.Gateways) {
				t.Errorf("the result's nameservers are %v, the gateways %v", ns, cli.Gateways)
			}
			kind, addrOf := uint16(dns.TypeA), func(c *Container) string { return c.Addrs[0].String() }
			if !stack.V4 {
				kind = dns.TypeAAAA
			}
			cli.waitAsk("web.overlay.", kind, addrOf(web))
			cli.waitAsk("web.default.overlay.", kind, addrOf(web))
			cli.waitAsk("cli.overlay.", kind, addrOf(cli))
			reversed, _ := dns.ReverseAddr(addrOf(web))
			cli.waitAsk(reversed, dns.TypePTR, "web.default.overlay.")
			cli.waitAsk("nobody.overlay.", kind, "NXDOMAIN")
			if stack.V4 && stack.V6 {
				cli.waitAsk("web.overlay.", dns.TypeAAAA, web.Addrs[1].String())
				if m, err := cli.query("udp", cli.Gateways[1], "web.overlay.", kind); err != nil || saidBy(m) != addrOf(web) {
					t.Errorf("at the other gateway: %v %v", err, m)
				}
			} else {
				cli.waitAsk("web.overlay.", dns.TypeA+dns.TypeAAAA-kind, "NOERROR")
			}

			cli.waitAsk("www.example.com.", kind, r.addr.String())
			if m, err := cli.query("udp", cli.Gateways[0], "long.example.com.", dns.TypeTXT); err != nil || !m.Truncated {
				t.Errorf("a long answer by UDP: %v %v", err, m)
			}
			if m, err := cli.query("tcp", cli.Gateways[0], "long.example.com.", dns.TypeTXT); err != nil || m.Truncated || len(m.Answer) != 60 {
				t.Errorf("a long answer by TCP: %v %v", err, m)
			}
			if m, err := cli.query("tcp", cli.Gateways[0], "web.overlay.", kind); err != nil || saidBy(m) != addrOf(web) {
				t.Errorf("by TCP: %v %v", err, m)
			}
			out, err := cli.Try("unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && getent ahosts web.overlay`, hosts[1].resolvConf())
			if err != nil || !strings.Contains(out, addrOf(web)+" ") {
				t.Errorf("getent: %v: %s", err, out)
			}

			// A service has one on each host; the own one is the first.
			var all []string
			for i, h := range hosts {
				all = append(all, addrOf(h.newNamed(fmt.Sprintf("NAME=shop_api_%d;"+composeArgs, i, "api"))))
			}
			slices.Sort(all)
			cli.waitAsk("api.overlay.", kind, strings.Join(all, " "))
			if m, err := cli.query("udp", cli.Gateways[0], "api.overlay.", kind); err != nil || !cli.inOwnSubnet(m.Answer[0]) {
				t.Errorf("the nearest is not the first: %v %v", err, m)
			}

			// It is another namespace's.
			other := hosts[2].newNamed("NAME=web;NAMESPACE=prod")
			cli.waitAsk("web.prod.overlay.", kind, addrOf(other))
			cli.waitAsk("web.overlay.", kind, addrOf(web))
			other.waitAsk("web.overlay.", kind, addrOf(other))

			web.Detach()
			cli.waitAsk("web.overlay.", kind, "NXDOMAIN")
		})
	}
}

// inOwnSubnet says whether an answer is an address on the container's own host.
func (c *Container) inOwnSubnet(rr dns.RR) bool {
	addr, _ := netip.ParseAddr(strings.TrimPrefix(rr.String(), rr.Header().String()))
	bits := 24
	if addr.Is6() {
		bits = 64
	}
	own, _ := c.Addrs[0].Prefix(bits)
	return own.Contains(addr)
}

// resolvConf is the file that says where containers ask.
func (h *Host) resolvConf() string { return filepath.Join(h.RunDir, "resolv.conf") }

// namedHosts are two hosts that answer for names, a container on each, and the resolver. web is on the first.
func namedHosts(t *testing.T, args ...string) (lab *Lab, wire *Segment, r *resolver, hosts []*Host, web, cli *Container) {
	t.Helper()
	lab, wire = newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	r = newResolver(t, wire, 200)
	hosts = lab.NewHosts(wire, 2)
	for _, h := range hosts {
		h.startNaming("nameserver "+r.addr.String()+"\n", args...)
	}
	for _, h := range hosts {
		h.WaitReady()
		h.WaitPeers(1)
	}
	web, cli = hosts[0].newNamed("NAME=web"), hosts[1].newNamed("NAME=cli")
	cli.waitAsk("web.overlay.", dns.TypeA, web.Addrs[0].String())
	return lab, wire, r, hosts, web, cli
}

// TestNamesAreForOwnContainers has others ask: containers of another host, who is on the underlay, and who is there and says that it
// is a container. The host itself is answered for containers' names alone. It has no guard, so that the packets come through.
func TestNamesAreForOwnContainers(t *testing.T) {
	t.Parallel()
	lab, wire, _, hosts, web, cli := namedHosts(t, "--guard=")
	gateway := web.Gateways[0]
	answered := func() float64 {
		return hosts[0].metric(`overlayd_names_queries_total{outcome="answered"}`) + hosts[0].metric(`overlayd_names_queries_total{outcome="forwarded"}`)
	}
	before := answered()
	stranger := lab.node("stranger")
	wire.Plug(stranger, "eth0", 77)
	stranger.Exec("ip", "route", "add", "10.5.0.0/16", "via", hosts[0].Addrs[0].String())
	stranger.Exec("ip", "address", "add", web.Addrs[0].String()+"/32", "dev", "lo")
	hosts[0].Sysctl("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")
	for _, name := range []string{"web.overlay.", "www.example.com."} {
		for _, network := range []string{"udp", "tcp"} {
			if m, err := cli.query(network, gateway, name, dns.TypeA); err == nil {
				t.Errorf("another host's container is answered by %s: %v", network, m)
			}
			if m, err := stranger.query(network, gateway, name, dns.TypeA); err == nil {
				t.Errorf("a stranger is answered by %s: %v", network, m)
			}
			if m, err := stranger.queryFrom(web.Addrs[0], network, gateway, name, dns.TypeA); err == nil {
				t.Errorf("who says that it is web is answered by %s: %v", network, m)
			}
		}
	}
	if n := answered() - before; n != 0 {
		t.Errorf("%v questions of others were answered", n)
	}
	if n := hosts[0].metric(`overlayd_names_queries_total{outcome="refused"}`); n < 6 {
		t.Errorf("%v questions were refused", n)
	}
	for name, want := range map[string]string{"web.overlay.": web.Addrs[0].String(), "www.example.com.": "REFUSED"} {
		for _, network := range []string{"udp", "tcp"} {
			if m, err := hosts[0].query(network, gateway, name, dns.TypeA); err != nil || saidBy(m) != want {
				t.Errorf("the host asks for %s by %s: %v %v", name, network, err, m)
			}
		}
	}
}

// TestNamesWithoutEtcd has etcd be away: names that were asked for are known, others cannot be; who starts knows its own.
func TestNamesWithoutEtcd(t *testing.T) {
	t.Parallel()
	lab, _, r, hosts, web, cli := namedHosts(t)
	lab.StopEtcd()
	cli.waitAsk("web.overlay.", dns.TypeA, web.Addrs[0].String())
	cli.waitAsk("web.prod.overlay.", dns.TypeA, "SERVFAIL")
	cli.waitAsk("www.example.com.", dns.TypeA, r.addr.String())
	late := hosts[1].newNamed("NAME=late")
	cli.waitAsk("late.overlay.", dns.TypeA, late.Addrs[0].String())
	hosts[1].Daemon.Kill()
	hosts[1].Daemon.Wait()
	if m, err := cli.query("udp", cli.Gateways[0], "cli.overlay.", dns.TypeA); err == nil {
		t.Errorf("without a daemon there is an answer: %v", m)
	}
	hosts[1].startNaming("nameserver " + r.addr.String() + "\n")
	cli.waitAsk("late.overlay.", dns.TypeA, late.Addrs[0].String())
	cli.waitAsk("www.example.com.", dns.TypeA, r.addr.String())
	lab.ResumeEtcd()
	cli.waitAsk("web.overlay.", dns.TypeA, web.Addrs[0].String())
}

// TestResolvConfChangesUnderNames has the host's resolv.conf replaced: by one that names another resolver, ourselves, a container
// that asks us in turn, and nobody.
func TestResolvConfChangesUnderNames(t *testing.T) {
	t.Parallel()
	_, wire, r, hosts, _, cli := namedHosts(t)
	other := newResolver(t, wire, 201)
	cli.waitAsk("www.example.com.", dns.TypeA, r.addr.String())
	h := hosts[1]
	h.setResolvConf("nameserver " + other.addr.String() + "\n")
	if got := cli.ask("www.example.com.", dns.TypeA); got != other.addr.String() {
		t.Errorf("after it was replaced: %s", got)
	}
	for what, addr := range map[string]netip.Addr{"ourselves": cli.Gateways[0], "who asks": cli.Addrs[0], "nobody": netip.MustParseAddr("172.30.1.250")} {
		h.setResolvConf("nameserver " + addr.String() + "\n")
		if got := cli.ask("www.example.com.", dns.TypeA); got != "SERVFAIL" {
			t.Errorf("it names %s: %s", what, got)
		}
	}
	if n := h.metric(`overlayd_names_queries_total{outcome="silent"}`); n != 3 {
		t.Errorf("%v questions in all: they went round", n)
	}
	h.setResolvConf("nameserver " + cli.Gateways[0].String() + "\nnameserver " + r.addr.String() + "\n")
	cli.waitAsk("www.example.com.", dns.TypeA, r.addr.String())
}

// TestPort53IsTaken has another program have the port on all addresses: it is said, containers are told to ask nobody, and as soon
// as it is free they are answered.
func TestPort53IsTaken(t *testing.T) {
	t.Parallel()
	_, _, r, hosts, _, cli := namedHosts(t)
	h := hosts[0]
	h.Daemon.Kill()
	h.Daemon.Wait()
	var taker net.PacketConn
	if err := h.Do(func() (err error) { taker, err = net.ListenPacket("udp4", "0.0.0.0:53"); return err }); err != nil {
		t.Fatal(err)
	}
	defer taker.Close()
	h.startNaming("nameserver " + r.addr.String() + "\n")
	s := h.waitProblem("port 53", "another program's", "names: false")
	if !s.Ready || s.Names == nil || s.Names.Error == "" {
		t.Errorf("status %+v", s)
	}
	if _, err := os.Stat(h.resolvConf()); !os.IsNotExist(err) {
		t.Errorf("containers are told to ask: %v", err)
	}
	late := &Container{Node: newNode(t, h.Name+"-late"), Host: h}
	if ns := late.attachNamed("NAME=late"); len(ns) > 0 {
		t.Errorf("nameservers %v", ns)
	}
	cli.waitAsk("late.overlay.", dns.TypeA, late.Addrs[0].String())
	taker.Close()
	late.waitAsk("cli.overlay.", dns.TypeA, cli.Addrs[0].String())
	h.waitWell()
}

// TestNamesAreOff turns them off, on a host where they were on: nobody listens, is told to ask, or is told of its containers.
func TestNamesAreOff(t *testing.T) {
	t.Parallel()
	lab, _, _, hosts, _, _ := namedHosts(t)
	h := hosts[0]
	published := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d containers are in etcd", n), func() error {
			if keys := lab.Keys("/coreos.com/network/overlayd/endpoints/"); len(keys) != n {
				return fmt.Errorf("%v", keys)
			}
			return nil
		})
	}
	published(2)
	h.Daemon.Kill()
	h.Daemon.Wait()
	h.startNaming("", "--names=false")
	h.WaitReady()
	if s, err := h.names(); err != nil || s != nil {
		t.Errorf("status: %v %+v", err, s)
	}
	if _, err := os.Stat(h.resolvConf()); !os.IsNotExist(err) {
		t.Errorf("containers are told to ask: %v", err)
	}
	if out := h.Exec("ss", "-lnut"); strings.Contains(out, ":53 ") {
		t.Errorf("somebody listens:\n%s", out)
	}
	published(1)
}

// TestContainerClaimsAnothersName has one on another host call itself web: the first has the name, and it is said, until it is gone.
func TestContainerClaimsAnothersName(t *testing.T) {
	t.Parallel()
	_, _, _, hosts, web, cli := namedHosts(t)
	claim := hosts[1].newNamed("NAME=web")
	hosts[1].waitNames("the claim is told of", func(s *namesStatus) bool {
		return len(s.Contested) == 1 && s.Contested[0].Name == "web" && strings.HasPrefix(s.Contested[0].Owner, "host ")
	})
	cli.waitAsk("web.overlay.", dns.TypeA, web.Addrs[0].String())
	if out := hosts[1].Overlayctl("status", "--run-dir", hosts[1].RunDir); !strings.Contains(out, "web") || !strings.Contains(out, "claim") {
		t.Errorf("status:\n%s", out)
	}
	web.Detach()
	cli.waitAsk("web.overlay.", dns.TypeA, claim.Addrs[0].String())
}

// TestPolicyDeniesNames has a policy deny all egress: as in Kubernetes that is names too, until a policy allows port 53.
func TestPolicyDeniesNames(t *testing.T) {
	t.Parallel()
	_, _, r, hosts, web, cli := namedHosts(t)
	apply := func(name, spec string) {
		t.Helper()
		cmd := hosts[1].Command(bin("overlayctl"), "--config", "/dev/null", "--etcd-endpoints", hosts[1].lab.endpoint(), "policy", "apply", "-f", "-")
		cmd.Stdin = strings.NewReader("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: " + name + ", namespace: default}\nspec: " + spec + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	apply("deny", "{podSelector: {}, policyTypes: [Egress]}")
	eventually(t, "names are denied", func() error {
		if m, err := cli.query("udp", cli.Gateways[0], "web.overlay.", dns.TypeA); err == nil {
			return fmt.Errorf("answer %v", m)
		}
		return nil
	})
	if m, err := cli.query("tcp", cli.Gateways[0], "web.overlay.", dns.TypeA); err == nil {
		t.Errorf("by TCP there is an answer: %v", m)
	}
	apply("names", "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}]}")
	cli.waitAsk("web.overlay.", dns.TypeA, web.Addrs[0].String())
	cli.waitAsk("www.example.com.", dns.TypeA, r.addr.String())
	if m, err := cli.query("tcp", cli.Gateways[0], "web.overlay.", dns.TypeA); err != nil {
		t.Errorf("by TCP: %v %v", err, m)
	}
}

// TestNamesOfNetworks has web in two networks: each answers its own containers, by its own bridge, with its own web.
func TestNamesOfNetworks(t *testing.T) {
	t.Parallel()
	lab, wire := newWire(t, Stack{V4: true}, `{"Type":"vxlan"}`)
	lab.putNetwork("blue", vxlanOf(blueV4, 7))
	hosts := lab.NewHosts(wire, 2)
	for _, h := range hosts {
		h.startNaming("", "--networks=blue")
	}
	for _, h := range hosts {
		h.WaitReady()
		h.waitNamed("blue", 1)
	}
	web, cli := hosts[0].newNamed("NAME=web"), hosts[1].newNamed("NAME=cli")
	for _, h := range hosts {
		h.in("blue")
	}
	blueWeb, blueCli := hosts[0].newNamed("NAME=web"), hosts[1].newNamed("NAME=blue-cli")
	cli.waitAsk("web.overlay.", dns.TypeA, web.Addrs[0].String())
	blueCli.waitAsk("web.overlay.", dns.TypeA, blueWeb.Addrs[0].String())
	cli.waitAsk("blue-cli.overlay.", dns.TypeA, "NXDOMAIN")
	blueCli.waitAsk("cli.overlay.", dns.TypeA, "NXDOMAIN")
	for _, network := range []string{"udp", "tcp"} {
		for at, c := range map[netip.Addr]*Container{cli.Gateways[0]: blueCli, blueCli.Gateways[0]: cli} {
			if m, err := c.query(network, at, "web.overlay.", dns.TypeA); err == nil {
				t.Errorf("%s is answered at %v by %s: %v", c.Name, at, network, m)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(hosts[0].RunDir, "blue", "resolv.conf")); err != nil {
		t.Error(err)
	}
}
