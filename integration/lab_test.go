package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// labCount tells the laboratories of one run apart.
var labCount atomic.Int64

// Stack is the address families that a network or an underlay has.
type Stack struct{ V4, V6 bool }

// stacks are the ones that overlayd serves, by name.
var stacks = []struct {
	Name string
	Stack
}{
	{"IPv4", Stack{V4: true}},
	{"IPv6", Stack{V6: true}},
	{"dual", Stack{V4: true, V6: true}},
}

// Lab is some hosts on some wires, and one etcd. Everything in it goes away with the test, and two never meet.
type Lab struct {
	t      testing.TB
	prefix string
	Stack  Stack // of the underlay and of the overlay
	Etcd   *Node
	etcd   *Process

	etcdURL string // where the hosts find etcd; empty: on the node Etcd
}

// newLab makes an empty laboratory.
func newLab(t testing.TB, stack Stack) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	return &Lab{t: t, prefix: fmt.Sprintf("%s%d-%d-", namePrefix, os.Getpid(), labCount.Add(1)), Stack: stack}
}

// node makes a namespace whose name is unique to the laboratory.
func (l *Lab) node(name string) *Node {
	l.t.Helper()
	return newNode(l.t, l.prefix+name)
}

// Segment is an underlay: a bridge in a namespace of its own.
type Segment struct {
	*Node
	lab   *Lab
	index int
}

// NewSegment makes a wire; index is in its addresses, 172.30.<index>.0/24 and fd00:30:<index>::/64.
func (l *Lab) NewSegment(index int) *Segment {
	l.t.Helper()
	n := l.node(fmt.Sprintf("seg%d", index))
	n.Exec("ip", "link", "add", "br0", "type", "bridge")
	n.Exec("ip", "link", "set", "br0", "up")
	return &Segment{Node: n, lab: l, index: index}
}

// Addrs are the addresses of number n on the segment, IPv4 before IPv6.
func (s *Segment) Addrs(n int) []netip.Prefix {
	var addrs []netip.Prefix
	if s.lab.Stack.V4 {
		addrs = append(addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, byte(s.index), byte(n)}), 24))
	}
	if s.lab.Stack.V6 {
		addrs = append(addrs, netip.MustParsePrefix(fmt.Sprintf("fd00:30:%d::%x/64", s.index, n)))
	}
	return addrs
}

// Plug connects a node to the segment under number n, by a link named dev.
func (s *Segment) Plug(n *Node, dev string, number int) {
	s.t.Helper()
	port := fmt.Sprintf("p%d", number)
	s.Exec("ip", "link", "add", port, "type", "veth", "peer", "name", dev, "netns", n.Name)
	s.Exec("ip", "link", "set", port, "master", "br0", "up")
	n.Exec("ip", "link", "set", dev, "up")
	s.Address(n, dev, number)
}

// Address gives a node's link the addresses of a number.
func (s *Segment) Address(n *Node, dev string, number int) {
	s.t.Helper()
	for _, a := range s.Addrs(number) {
		args := []string{"ip", "address", "add", a.String(), "dev", dev}
		if a.Addr().Is6() {
			args = append(args, "nodad")
		}
		n.Exec(args...)
	}
}

// gatewayNumber is the router's number on every segment.
const gatewayNumber = 1

// DefaultRoute sends what the node has no route for to the segment's gateway, be there one or not.
func (s *Segment) DefaultRoute(n *Node, dev string) {
	s.t.Helper()
	for _, a := range s.Addrs(gatewayNumber) {
		n.Exec("ip", "route", "add", "default", "via", a.Addr().String(), "dev", dev)
	}
}

// NewRouter makes a router between segments.
func (l *Lab) NewRouter(segments ...*Segment) *Node {
	l.t.Helper()
	r := l.node("router")
	if l.Stack.V6 {
		r.Sysctl("net.ipv6.conf.all.forwarding=1")
	}
	r.Sysctl("net.ipv4.ip_forward=1")
	for i, s := range segments {
		s.Plug(r, fmt.Sprintf("eth%d", i), gatewayNumber)
	}
	return r
}

// etcdNumber is etcd's number on its segment.
const etcdNumber = 100

// NewEtcd makes the node for etcd on the segment; StartEtcd starts it.
func (l *Lab) NewEtcd(s *Segment) {
	l.t.Helper()
	l.Etcd = l.node("etcd")
	s.Plug(l.Etcd, "eth0", etcdNumber)
	s.DefaultRoute(l.Etcd, "eth0")
}

// StartEtcd starts Debian's etcd with an empty store and waits until it serves.
func (l *Lab) StartEtcd() {
	l.t.Helper()
	path, err := exec.LookPath("etcd")
	if err != nil {
		l.t.Fatal("needs an etcd: apt-get install etcd-server")
	}
	l.etcd = l.Etcd.Spawn("etcd", nil, path, "--data-dir", l.t.TempDir(), "--log-level", "error",
		"--listen-client-urls", "http://[::]:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380",
		"--initial-cluster", "default=http://127.0.0.1:2380")
	eventually(l.t, "etcd serves", func() error {
		status, body, err := l.Etcd.Get("http://127.0.0.1:2379/health")
		if err == nil && (status != 200 || !strings.Contains(body, "true")) {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
}

// StopEtcd freezes etcd as a lost host does: connections stay, answers do not come. StartEtcd again is not meant.
func (l *Lab) StopEtcd() { l.etcd.Signal(syscall.SIGSTOP) }

// ResumeEtcd undoes StopEtcd.
func (l *Lab) ResumeEtcd() { l.etcd.Signal(syscall.SIGCONT) }

// endpoint is etcd's address as the hosts know it.
func (l *Lab) endpoint() string {
	if l.etcdURL != "" {
		return l.etcdURL
	}
	a := (&Segment{lab: l, index: 1}).Addrs(etcdNumber)[0].Addr()
	return "http://" + netip.AddrPortFrom(a, 2379).String()
}

// The keys of flannel's schema.
const (
	configKey     = "/coreos.com/network/config"
	subnetsPrefix = "/coreos.com/network/subnets/"
)

// Put writes a key by etcd's JSON gateway, so that what is under test is not what looks at it.
func (l *Lab) Put(key, value string) {
	l.t.Helper()
	l.etcdCall("put", map[string]string{"key": b64(key), "value": b64(value)})
}

// Delete removes a key.
func (l *Lab) Delete(key string) {
	l.t.Helper()
	l.etcdCall("deleterange", map[string]string{"key": b64(key)})
}

// Keys are the keys under a prefix that ends in a slash, with their values.
func (l *Lab) Keys(prefix string) map[string]string {
	l.t.Helper()
	end := prefix[:len(prefix)-1] + string(rune(prefix[len(prefix)-1]+1))
	body := l.etcdCall("range", map[string]string{"key": b64(prefix), "range_end": b64(end)})
	var reply struct {
		Kvs []struct{ Key, Value []byte }
	}
	if err := json.Unmarshal([]byte(body), &reply); err != nil {
		l.t.Fatalf("etcd: %v: %s", err, body)
	}
	keys := make(map[string]string)
	for _, kv := range reply.Kvs {
		keys[string(kv.Key)] = string(kv.Value)
	}
	return keys
}

func (l *Lab) etcdCall(verb string, request map[string]string) string {
	l.t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		l.t.Fatal(err)
	}
	status, reply, err := l.Etcd.Post("http://127.0.0.1:2379/v3/kv/"+verb, string(body))
	if err != nil || status != 200 {
		l.t.Fatalf("etcd %s: status %d, %v: %s", verb, status, err, reply)
	}
	return reply
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// The overlay's pools.
const (
	overlayV4 = "10.5.0.0/16"
	overlayV6 = "fc00:5::/48"
)

// Config is the network's configuration with the given Backend object.
func (l *Lab) Config(backend string) string {
	c := map[string]any{"EnableIPv4": l.Stack.V4, "Backend": json.RawMessage(backend)}
	if l.Stack.V4 {
		c["Network"] = overlayV4
	}
	if l.Stack.V6 {
		c["EnableIPv6"], c["IPv6Network"] = true, overlayV6
	}
	b, err := json.Marshal(c)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(b)
}

// newWire is the usual laboratory: one segment with an etcd that holds the configuration.
func newWire(t testing.TB, stack Stack, backend string) (*Lab, *Segment) {
	t.Helper()
	l := newLab(t, stack)
	s := l.NewSegment(1)
	l.NewEtcd(s)
	l.StartEtcd()
	l.Put(configKey, l.Config(backend))
	return l, s
}
