package integration

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// vxlanPort is where Linux, and so flannel, sends vxlan to.
const vxlanPort = 8472

// flow is who a packet on a wire goes from and to, and whether it is vxlan.
type flow struct {
	Src, Dst netip.Addr
	VXLAN    bool
}

// Capture counts the packets that pass a segment, by flow.
type Capture struct {
	fd   *os.File
	mu   sync.Mutex
	seen map[flow]int
}

// NewCapture listens on every port of the segment until the test ends.
func (s *Segment) NewCapture() *Capture {
	s.t.Helper()
	c := &Capture{seen: make(map[flow]int)}
	err := s.Do(func() error {
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
		if err == nil {
			c.fd = os.NewFile(uintptr(fd), "packets of "+s.Name)
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.read()
	}()
	s.t.Cleanup(func() {
		c.fd.Close()
		<-ended
	})
	return c
}

func (c *Capture) read() {
	buf := make([]byte, 256) // the headers; the rest is cut off
	for {
		n, err := c.fd.Read(buf)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, syscall.ENETDOWN):
			continue // a port went away
		case err != nil:
			return
		}
		if f, ok := parseFlow(buf[:n]); ok {
			c.mu.Lock()
			c.seen[f]++
			c.mu.Unlock()
		}
	}
}

// Count is how many packets of a flow have passed. One that is forwarded between two ports counts more than once.
func (c *Capture) Count(f flow) int {
	time.Sleep(100 * time.Millisecond) // the socket's queue is drained long before
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[f]
}

// parseFlow reads the flow out of an Ethernet frame.
func parseFlow(frame []byte) (flow, bool) {
	if len(frame) < 14 {
		return flow{}, false
	}
	etherType, p := binary.BigEndian.Uint16(frame[12:]), frame[14:]
	var f flow
	var proto byte
	switch {
	case etherType == unix.ETH_P_IP && len(p) >= 20:
		f.Src, f.Dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
		proto, p = p[9], p[min(len(p), int(p[0]&15)*4):]
	case etherType == unix.ETH_P_IPV6 && len(p) >= 40:
		f.Src, f.Dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		proto, p = p[6], p[40:]
	default:
		return flow{}, false
	}
	f.VXLAN = proto == unix.IPPROTO_UDP && len(p) >= 4 && binary.BigEndian.Uint16(p[2:]) == vxlanPort
	return f, true
}
