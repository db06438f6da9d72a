package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// wgBatch is how many peers go in one call: more, and wgctrl sends a message for each (peerBatchChunk in its
// internal/wglinux/configure_linux.go).
const wgBatch = 32

// wgPatience is how long a process may take to answer for its link. The kernel does not let us wait.
const wgPatience = 10 * time.Second

// wgConn speaks to the wireguard links of a namespace, of the kernel and of processes alike.
type wgConn struct{ client *wgctrl.Client }

// dialWG is to be called for each piece of work: wgctrl finds the kernel's wireguard when it is opened, and at a start there
// may be none yet.
func dialWG(ns netns.NsHandle) (c wgConn, err error) {
	err = rtnl.InNetns(ns, func() (err error) {
		c.client, err = wgctrl.New()
		return err
	})
	if err != nil {
		return c, fmt.Errorf("wireguard's netlink: %w", err)
	}
	return c, nil
}

func (c wgConn) close() { c.client.Close() }

// device reads a link with its peers; os.ErrNotExist if it is none of wireguard's.
func (c wgConn) device(name string) (*wgtypes.Device, error) {
	return patiently(func() (*wgtypes.Device, error) { return c.client.Device(name) })
}

// set changes what is said in cfg of a link, and nothing else.
func (c wgConn) set(name string, cfg wgtypes.Config) error {
	_, err := patiently(func() (struct{}, error) { return struct{}{}, c.client.ConfigureDevice(name, cfg) })
	return err
}

// patiently ends after a while though f does not: a process that hangs must not keep us from all the rest.
func patiently[T any](f func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		value, err := f()
		answered <- answer{value, wgError(err)}
	}()
	select {
	case a := <-answered:
		return a.value, a.err
	case <-time.After(wgPatience):
		return *new(T), fmt.Errorf("the process of the link does not answer: %w", os.ErrDeadlineExceeded)
	}
}

// wgError gives errors of processes the numbers that they have, as the kernel's do.
func wgError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ECONNREFUSED) { // nobody is behind the socket: a process that was killed left it
		return os.ErrNotExist
	}
	_, number, ok := strings.Cut(err.Error(), "wguser: errno=")
	if n, parsed := strconv.Atoi(number); ok && parsed == nil {
		return unix.Errno(max(n, -n))
	}
	return err
}

// readDevice reads one link, as wgConn.device does.
func readDevice(ns netns.NsHandle, name string) (*wgtypes.Device, error) {
	c, err := dialWG(ns)
	if err != nil {
		return nil, err
	}
	defer c.close()
	return c.device(name)
}

// setDevice changes one link, as wgConn.set does.
func setDevice(ns netns.NsHandle, name string, cfg wgtypes.Config) error {
	c, err := dialWG(ns)
	if err != nil {
		return err
	}
	defer c.close()
	return c.set(name, cfg)
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the prefix of n; the zero one where it is none.
func prefixOf(n net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

// endpointOf is where a peer is; the zero value if that is not known.
func endpointOf(p *wgtypes.Peer) netip.AddrPort {
	if p.Endpoint == nil {
		return netip.AddrPort{}
	}
	a := p.Endpoint.AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
