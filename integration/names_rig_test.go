package integration

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// resolver is the host's, on the underlay: it knows what other names are, and says so.
type resolver struct {
	*Node
	addr netip.Addr
}

// newResolver runs one on the segment that says for every name its own address.
func newResolver(t *testing.T, s *Segment, number int) *resolver {
	t.Helper()
	r := &resolver{s.lab.node(fmt.Sprint("dns", number)), s.Addrs(number)[0].Addr()}
	s.Plug(r.Node, "eth0", number)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetReply(m)
		hdr := dns.RR_Header{Name: m.Question[0].Name, Class: dns.ClassINET, Ttl: 60}
		switch {
		case m.Question[0].Qtype == dns.TypeA && r.addr.Is4():
			hdr.Rrtype = dns.TypeA
			reply.Answer = append(reply.Answer, &dns.A{Hdr: hdr, A: r.addr.AsSlice()})
		case m.Question[0].Qtype == dns.TypeAAAA && r.addr.Is6():
			hdr.Rrtype = dns.TypeAAAA
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: hdr, AAAA: r.addr.AsSlice()})
		case m.Question[0].Qtype == dns.TypeTXT:
			hdr.Rrtype = dns.TypeTXT
			for range 60 {
				reply.Answer = append(reply.Answer, &dns.TXT{Hdr: hdr, Txt: []string{strings.Repeat("x", 100)}})
			}
		}
		if w.RemoteAddr().Network() == "udp" {
			reply.Truncate(dns.MinMsgSize)
		}
		_ = w.WriteMsg(reply)
	})
	var udp net.PacketConn
	var tcp net.Listener
	at := netip.AddrPortFrom(r.addr, 53).String()
	if err := r.Do(func() (err error) {
		if udp, err = net.ListenPacket("udp", at); err == nil {
			tcp, err = net.Listen("tcp", at)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*dns.Server{{PacketConn: udp, Handler: handler}, {Listener: tcp, Handler: handler}} {
		go func() { _ = d.ActivateAndServe() }()
		t.Cleanup(func() { _ = d.Shutdown() })
	}
	return r
}

// startNaming starts overlayd on a host that has an /etc/resolv.conf of its own, which can be replaced with setResolvConf.
func (h *Host) startNaming(resolvConf string, args ...string) {
	h.t.Helper()
	for _, dir := range []string{"etc", "etc.work"} {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(h.RunDir), dir), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	script := `mount -t overlay overlay -o "lowerdir=/etc,upperdir=$0/etc,workdir=$0/etc.work" /etc && rm -f /etc/resolv.conf && ` +
		`printf %s "$1" >/etc/resolv.conf && shift && exec "$@"`
	h.Daemon = h.Spawn("overlayd on "+h.Name, nil, append([]string{"unshare", "--mount", "sh", "-c", script, filepath.Dir(h.RunDir), resolvConf}, h.Args(args...)...)...)
}

// setResolvConf replaces the daemon's resolv.conf, as resolvconf and NetworkManager do.
func (h *Host) setResolvConf(text string) {
	h.t.Helper()
	cmd := exec.Command("nsenter", "--mount", "--target", fmt.Sprint(h.Daemon.Pid()), "sh", "-c", `printf %s "$0" >/etc/resolv.conf.new && mv /etc/resolv.conf.new /etc/resolv.conf`, text)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
}

// newNamed makes a container of which CNI_ARGS say what it is.
func (h *Host) newNamed(args string) *Container {
	h.t.Helper()
	h.seq++
	c := &Container{Node: newNode(h.t, fmt.Sprintf("%s-c%d", h.Name, h.seq)), Host: h}
	c.attachNamed(args)
	return c
}

func (c *Container) attachNamed(args string) (nameservers []netip.Addr) {
	c.t.Helper()
	return c.Attach("CNI_ARGS=IgnoreUnknown=1;" + args)
}

// query asks from a node, a question at a time, and waits for half a second more than it may take.
func (n *Node) query(network string, at netip.Addr, name string, kind uint16) (*dns.Msg, error) {
	return n.queryFrom(netip.Addr{}, network, at, name, kind)
}

func (n *Node) queryFrom(source netip.Addr, network string, at netip.Addr, name string, kind uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	var reply *dns.Msg
	err := n.Do(func() error {
		d := &net.Dialer{Timeout: 2 * time.Second}
		if source.IsValid() && network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		} else if source.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
		}
		conn, err := d.Dial(network, netip.AddrPortFrom(at, 53).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		reply, _, err = (&dns.Client{Net: network, Timeout: 5 * time.Second}).ExchangeWithConn(m, &dns.Conn{Conn: conn})
		return err
	})
	return reply, err
}

// ask asks the container's gateway, by UDP, and returns what it says: addresses and names, or the code.
func (c *Container) ask(name string, kind uint16) string {
	m, err := c.query("udp", c.Gateways[0], name, kind)
	if err != nil {
		return err.Error()
	}
	return saidBy(m)
}

func saidBy(m *dns.Msg) string {
	var all []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			all = append(all, rr.A.String())
		case *dns.AAAA:
			all = append(all, rr.AAAA.String())
		case *dns.PTR:
			all = append(all, rr.Ptr)
		}
	}
	if len(all) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// waitAsk waits until a question is answered so.
func (c *Container) waitAsk(name string, kind uint16, want string) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%s: %s is %s", c.Name, name, want), func() error {
		if got := c.ask(name, kind); got != want {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

// names is what the daemon says of them.
func (h *Host) names() (*namesStatus, error) {
	s, err := h.status()
	return s.Names, err
}

// waitNames waits until the daemon says so.
func (h *Host) waitNames(what string, ok func(*namesStatus) bool) {
	h.t.Helper()
	eventually(h.t, what, func() error {
		s, err := h.names()
		if err == nil && (s == nil || !ok(s)) {
			err = fmt.Errorf("names: %+v", s)
		}
		return err
	})
}

// namesStatus is what the daemon says of names.
type namesStatus struct {
	Listening []string
	Endpoints int
	Followed  []string
	Contested []struct {
		Namespace, Name, Owner string
		Others                 []string
	}
	Error string
}
