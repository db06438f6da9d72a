package policy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// isolated lets containers of dev be reached by prod alone, on port 80.
const isolated = "{podSelector: {}, ingress: [{ports: [{port: 80}], from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: prod}}}]}]}"

// policyStatus is what a host's daemon says of policies.
func (h *host) policyStatus() (s struct {
	Enforcing, InStep, Remembered, Routed bool
	Policies, Refused                     int
	Pending                               []string
	Unreadable                            map[string]string
	Doubted, Error                        string
}) {
	h.t.Helper()
	out, err := h.try("curl", "-fsS", "--max-time", "5", "--unix-socket", h.runDir+"/overlayd.sock", "http://overlayd/v1/status")
	var all struct{ Policy json.RawMessage }
	if err == nil {
		err = json.Unmarshal([]byte(out), &all)
	}
	if err == nil {
		err = json.Unmarshal(all.Policy, &s)
	}
	if err != nil {
		h.t.Fatalf("%s: status: %v: %s", h.name, err, out)
	}
	return s
}

// says waits until a host's daemon says something of policies.
func (h *host) says(what string, ok func() bool) {
	h.t.Helper()
	eventually(h.t, h.name+": "+what, func() error {
		if ok() {
			return nil
		}
		return fmt.Errorf("it says %+v", h.policyStatus())
	})
}

// TestPoliciesWithoutEtcd has etcd go away, and a host be started anew meanwhile with nothing in its kernel: all is in force as it
// was, for a container that comes meanwhile too.
func TestPoliciesWithoutEtcd(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "p", isolated))
	p.check("before")
	time.Sleep(4 * time.Second) // what is remembered is two seconds old at most
	p.server.Kill()
	p.check("etcd is away")
	h := p.hosts[0]
	h.daemon.Kill()
	h.exec("nft", "flush", "ruleset")
	h.start()
	h.waitReady()
	h.says("from memory", func() bool { s := h.policyStatus(); return s.Enforcing && s.Remembered && s.InStep })
	p.check("started without etcd")
	c := p.newPod(h, "dev", "late", map[string]string{"app": "late"})
	p.pods = append(p.pods, c)
	p.check("another container, without etcd")
	p.serveEtcd(p.etcdDir)
	h.says("etcd is back", func() bool { return !h.policyStatus().Remembered })
	p.apply("prod", netpolText("prod", "q", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: late}}}]}]}"))
	p.check("etcd is back")
	total.addCase()
}

// TestWipedAndRestored has etcd lose everything, and come back from a backup: policies stay until they are deleted, or an operator
// confirms.
func TestWipedAndRestored(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "p", isolated))
	p.check("before")
	p.server.Kill()
	full, backup := p.etcdDir, t.TempDir()
	if err := os.CopyFS(backup, os.DirFS(full)); err != nil {
		t.Fatal(err)
	}
	p.serveEtcd(t.TempDir())
	p.put("/coreos.com/network/config", networkConfig)
	for _, h := range p.hosts {
		h.says("wiped", func() bool { return strings.Contains(h.policyStatus().Doubted, "policy confirm") })
	}
	p.check("wiped")
	p.hosts[0].daemon.Kill()
	p.hosts[0].start()
	p.hosts[0].waitReady()
	p.hosts[0].says("still wiped", func() bool { return p.hosts[0].policyStatus().Doubted != "" })
	p.check("wiped, and a daemon started")
	p.must("", "policy", "confirm")
	p.world.policies = map[string]netpol{}
	for _, h := range p.hosts {
		h.says("confirmed", func() bool { s := h.policyStatus(); return s.Doubted == "" && !s.Enforcing })
	}
	p.check("confirmed")
	p.apply("dev", netpolText("dev", "deny", "{podSelector: {}}"))
	p.check("another policy")
	p.server.Kill()
	p.serveEtcd(backup)
	for _, h := range p.hosts {
		h.says("restored", func() bool { return h.policyStatus().Doubted != "" })
	}
	p.check("restored")
	total.addCase()
}

// TestGarbagePolicies has etcd hold policies that cannot be read: their namespace is isolated, others are not, and all is as before
// when they are gone.
func TestGarbagePolicies(t *testing.T) {
	p := newPaths(t)
	for _, junk := range []string{"", "junk", `{"namespace":"dev","name":"x","spec":{"podSelector":{"matchLabels":7}}}`, strings.Repeat("x", 64<<10)} {
		p.put("/coreos.com/network/overlayd/policy/dev/x", junk)
		for _, h := range p.hosts {
			h.says("unreadable", func() bool { return h.policyStatus().Unreadable["dev/x"] != "" })
		}
		p.expect("a policy that cannot be read", p.pairs(), func(pr probe) bool { return pr.from == pr.to || pr.from.ns != "dev" && pr.to.ns != "dev" })
	}
	if out, err := p.etcdctl("del", "/coreos.com/network/overlayd/policy/dev/x"); err != nil {
		t.Fatal(err, out)
	}
	for _, h := range p.hosts {
		h.says("gone", func() bool { return len(h.policyStatus().Unreadable) == 0 })
	}
	p.check("it is gone")
	total.addCase()
}

// TestMegabyteOfPolicies applies a thousand policies of a kilobyte each, and then one that means somebody.
func TestMegabyteOfPolicies(t *testing.T) {
	p := newPaths(t)
	var many strings.Builder
	for i := range 1000 {
		var blocks []string
		for j := range 20 {
			blocks = append(blocks, fmt.Sprintf("{ipBlock: {cidr: 192.%d.%d.%d/32}}", j, i/250, i%250))
		}
		many.WriteString(netpolText("dev", fmt.Sprintf("many-%d", i),
			fmt.Sprintf("{podSelector: {matchLabels: {app: nobody-%d}}, ingress: [{ports: [{port: 80}], from: [%s]}]}", i, strings.Join(blocks, ", "))))
	}
	p.must(many.String(), "policy", "apply", "-f", "-")
	for _, h := range p.hosts {
		h.says("a thousand", func() bool { s := h.policyStatus(); return s.Policies == 1000 && s.InStep })
	}
	p.check("a thousand that mean nobody")
	p.apply("dev", netpolText("dev", "p", isolated))
	p.check("one more")
	total.addCase()
}

// TestForgedEndpoint has a host announce endpoints with addresses of others', and as others: they do not count.
func TestForgedEndpoint(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: friend}}}]}]}"))
	p.check("before")
	state, err := os.ReadFile(p.hosts[1].state + "/identity.json")
	var identity struct{ HostID string }
	if err == nil {
		err = json.Unmarshal(state, &identity)
	}
	if err != nil || identity.HostID == "" {
		t.Fatalf("the other host's id: %v, %s", err, state)
	}
	for i, addr := range []netip.Addr{p.far.addrs[v4], p.far.addrs[v6], p.near.addrs[v4], p.outside.addrs[v4]} {
		// On no lease: the first two are the host's own.
		p.put(fmt.Sprintf("/coreos.com/network/overlayd/endpoints/prod/%s/%s", identity.HostID, addr),
			fmt.Sprintf(`{"ips":[%q],"name":"forged","labels":{"app":"friend"}}`, addr))
		p.hosts[0].says("refused", func() bool { return p.hosts[0].policyStatus().Refused == i+1 })
	}
	p.check("forged")
	total.addCase()
}

// TestManyContainersAtOnce attaches a flood of containers that are isolated: each has its policies when its ADD is done.
func TestManyContainersAtOnce(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "p", isolated))
	p.check("before")
	const many = 24
	pods := make([]*pod, many)
	for i := range pods {
		pods[i] = p.plainPod(p.hosts[0], "dev", fmt.Sprintf("many-%d", i), map[string]string{"app": "many"})
	}
	var group sync.WaitGroup
	errs := make([]error, many)
	for i, c := range pods {
		group.Go(func() { errs[i] = c.tryAttach() })
	}
	group.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("container %d: %v", i, err)
		}
	}
	if s := p.hosts[0].policyStatus(); len(s.Pending) > 0 {
		t.Errorf("pending are %v", s.Pending)
	}
	p.pods = append(p.pods, pods[0], pods[many/2], pods[many-1])
	p.check("all")
	for _, c := range pods {
		c.detach()
	}
	total.addCase()
}

// TestAddressIsReusedWhileTheDaemonIsDown has a container leave, and another get its address, with nobody there to see it: it gets
// nothing of what the first was sent, or might send.
func TestAddressIsReusedWhileTheDaemonIsDown(t *testing.T) {
	p := newPaths(t)
	p.apply("dev", netpolText("dev", "p", "{podSelector: {matchLabels: {app: second}}}"))
	base := p.pods
	first := p.plainPod(p.hosts[0], "dev", "first", map[string]string{"app": "first"})
	first.attach()
	p.pods = append(base[:len(base):len(base)], first)
	p.check("the first")
	answered := p.far.insist(t, first.addrs[v4])
	eventually(t, "the first answers", func() error {
		if answered.Load() == 0 {
			return fmt.Errorf("no answer")
		}
		return nil
	})
	h := p.hosts[0]
	h.daemon.Kill()
	first.detach()
	second := p.plainPod(h, "dev", "second", map[string]string{"app": "second"})
	second.publish = fmt.Sprintf(`{"ips":[%q,%q]}`, first.addrs[v4], first.addrs[v6])
	second.attach()
	if second.addrs != first.addrs {
		t.Fatalf("the second has %v, not %v", second.addrs, first.addrs)
	}
	h.start()
	h.waitReady()
	answered.Store(0)
	p.pods = append(base[:len(base):len(base)], second)
	p.check("the second, with the first's addresses")
	if answered.Load() != 0 {
		t.Error("the second answers on a connection of the first's")
	}
	second.detach()
	total.addCase()
}
