package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// marker tells when policies are in force, from packets alone: a policy about a container on each host that nothing else is about
// opens another port with each step. A host hears of policies in order; so once that port is open, what came with it or before is
// in force, and what passes from then on and should not is a fault, and no matter of time.
type marker struct {
	pods [2]*pod
	port uint16
}

// markerBase is below the first port.
const markerBase = 20000

// mark has the rig's steps marked from here on.
func (r *rig) mark() {
	r.t.Helper()
	r.marker = &marker{port: markerBase}
	for i, h := range r.hosts {
		r.marker.pods[i] = r.newPod(h, "marker", fmt.Sprintf("m%d", i), nil)
	}
}

// next is the text of the marker's policy with the next port.
func (m *marker) next() string {
	m.port++
	return netpolText("marker", "marker", fmt.Sprintf("{podSelector: {}, ingress: [{ports: [{port: %d}]}]}", m.port))
}

// unmark deletes the marker's policy.
func (r *rig) unmark() {
	r.t.Helper()
	r.must("", "policy", "delete", "-n", "marker", "marker")
	r.marker = nil
}

// awaitMark waits until the port of the last step is open on each host.
func (r *rig) awaitMark() {
	r.t.Helper()
	if r.marker == nil || r.marker.port == markerBase {
		return
	}
	for i, p := range r.marker.pods {
		r.control[i].agent.do(func() {
			for deadline := time.Now().Add(patience); !refusesTCP(p.addrs[v4], r.marker.port); {
				if time.Now().After(deadline) {
					r.t.Errorf("what was applied last is not in force on %s after %v", r.hosts[i].name, patience)
					return
				}
			}
		})
	}
}

// refusesTCP tells whether a connection is refused, by who would have it, within 20 ms.
func refusesTCP(to netip.Addr, port uint16) bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, sockaddr(to, port)); errors.Is(err, unix.ECONNREFUSED) {
		return true
	}
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 20)
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return err == nil && unix.Errno(code) == unix.ECONNREFUSED
}
