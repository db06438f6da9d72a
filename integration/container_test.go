package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Container is a network namespace that the CNI plugin has attached to a host.
type Container struct {
	*Node
	Host     *Host
	Addrs    []netip.Addr // IPv4 before IPv6
	Gateways []netip.Addr // the host's, of each address
	conf     string       // the name of its configuration; empty: overlay
	ifName   string       // empty: eth0
}

// NewContainer makes a container on the host, attaches it, and waits until it reaches the host. The first container
// of a host has to wait for its bridge: the kernel answers for the bridge's IPv6 address only after a second or two, in
// which it looks for duplicates of it.
func (h *Host) NewContainer() *Container {
	h.t.Helper()
	h.seq++
	c := &Container{Node: newNode(h.t, fmt.Sprintf("%s-c%d", h.Name, h.seq)), Host: h}
	c.Attach()
	for _, gateway := range c.Gateways {
		eventually(h.t, c.Name+" reaches its gateway", func() error {
			_, err := c.Try("ping", "-n", "-c", "1", "-W", "1", gateway.String())
			return err
		})
	}
	return c
}

// Attach runs ADD, with more in the environment, and returns the nameservers of the result; the container is detached with the
// test if nobody does it before.
func (c *Container) Attach(env ...string) (nameservers []netip.Addr) {
	c.t.Helper()
	out, err := c.cnitool("add", env...)
	if err != nil {
		c.t.Fatalf("cnitool add %s: %v", c.Name, err)
	}
	var result struct {
		IPs []struct {
			Address netip.Prefix
			Gateway netip.Addr
		}
		DNS struct{ Nameservers []netip.Addr }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		c.t.Fatalf("cnitool add %s: %v in\n%s", c.Name, err, out)
	}
	c.Addrs, c.Gateways = nil, nil
	for _, ip := range result.IPs {
		c.Addrs, c.Gateways = append(c.Addrs, ip.Address.Addr()), append(c.Gateways, ip.Gateway)
	}
	if want := len(c.Host.Addrs); len(c.Addrs) != want {
		c.t.Fatalf("container has addresses %v, want one for each of %d families", c.Addrs, want)
	}
	return result.DNS.Nameservers
}

// Detach runs DEL.
func (c *Container) Detach() {
	c.t.Helper()
	if _, err := c.cnitool("del"); err != nil {
		c.t.Fatalf("cnitool del %s: %v", c.Name, err)
	}
}

// cnitool runs cnitool on the host, with /var/lib and its state replaced by the host's own, and more in its environment. It
// returns standard output; the error holds standard error.
func (h *Host) cnitool(verb, netnsPath string, env ...string) (string, error) {
	return h.cnitoolIn("overlay", verb, netnsPath, env...)
}

// cnitool runs it for the container, with its configuration and its link.
func (c *Container) cnitool(verb string, env ...string) (string, error) {
	return c.Host.cnitoolIn(or(c.conf, "overlay"), verb, c.Path(), append(env, "CNI_IFNAME="+or(c.ifName, "eth0"))...)
}

// cnitoolIn is cnitool with the configuration of a name.
func (h *Host) cnitoolIn(conf, verb, netnsPath string, env ...string) (string, error) {
	cmd := h.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1" /var/lib && shift && exec "$@"`, "sh",
		h.varLib, bin("cnitool"), verb, conf, netnsPath)
	cmd.Env = append(append(cmd.Env, env...), "CNI_PATH="+bin(""), "NETCONFPATH="+h.confs)
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("%w: %s%s", err, out, exit.Stderr)
	}
	return string(out), err
}

// headers is what an ICMP echo adds to its payload in each family.
func headers(a netip.Addr) int {
	if a.Is4() {
		return 28
	}
	return 48
}

// PingSize sends one unfragmentable echo request whose IP packet is size bytes long, three times.
func (c *Container) PingSize(dst netip.Addr, size int) error {
	out, err := c.Try("ping", "-n", "-c", "3", "-i", "0.1", "-W", "5", "-M", "do",
		"-s", strconv.Itoa(size-headers(dst)), dst.String())
	if err == nil && !strings.Contains(out, " 0% packet loss") {
		err = fmt.Errorf("packets lost")
	}
	if err != nil {
		return fmt.Errorf("ping %s with %d bytes from %s: %w\n%s", dst, size, c.Name, err, out)
	}
	return nil
}

// Transfer sends a number of bytes over TCP to an address of another node, and returns the address that the
// receiver saw them come from.
func (n *Node) Transfer(to *Node, dst netip.Addr, size int64) (seen netip.Addr, err error) {
	var l net.Listener
	err = to.Do(func() error {
		l, err = net.Listen("tcp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	if err != nil {
		return seen, err
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() { sent <- n.send(l.Addr().String(), size) }()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		return seen, err
	}
	conn, err := l.Accept()
	if err != nil {
		return seen, fmt.Errorf("accept on %s: %w", l.Addr(), err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return seen, err
	}
	got, err := io.Copy(io.Discard, conn)
	if err == nil && got != size {
		err = fmt.Errorf("received %d bytes of %d", got, size)
	}
	if err == nil {
		err = <-sent
	}
	return conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), err
}

func (n *Node) send(addr string, size int64) error {
	conn, err := n.Dial(n.t.Context(), "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err = io.CopyN(conn, zeros{}, size)
	return err
}

// zeros is an endless source of nothing.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
