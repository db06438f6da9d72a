package firewall

import (
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// What wireguard itself sends never goes into its own link, wherever routes lead it; all else does, and it may go elsewhere.
func TestMarked(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	nstest.Sh(t, ns, `ip link set lo up
		for l in overlay-wg eth0; do ip link add $l type veth peer name $l.far; ip link set $l up; ip link set $l.far up; done
		ip addr add 192.0.2.1/24 dev overlay-wg; ip neigh add 192.0.2.2 dev overlay-wg lladdr 02:00:00:00:00:02
		ip addr add 198.51.100.1/24 dev eth0; ip neigh add 198.51.100.2 dev eth0 lladdr 02:00:00:00:00:02`)
	rule := Marked{Mark: 0x1000000, Links: `"overlay-wg", "overlay6-wg"`}
	f := newFirewall(ns)
	apply(t, f, 1, rule)
	apply(t, f, 0, rule)
	send := func(to string, mark int) error {
		mark0 := func(_, _ string, c syscall.RawConn) (err error) {
			_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
			return err
		}
		return rtnl.InNetns(ns, func() error {
			c, err := (&net.Dialer{Control: mark0}).DialContext(t.Context(), "udp", to+":51820")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
	}
	for _, tt := range []struct {
		to   string
		mark int
		sent bool
	}{{"192.0.2.2", 0x1000000, false}, {"192.0.2.2", 0, true}, {"192.0.2.2", 0x3000000, true}, {"198.51.100.2", 0x1000000, true}} {
		// The kernel tells the sender of a packet that is dropped here.
		if err := send(tt.to, tt.mark); (err == nil) != tt.sent || err != nil && !strings.Contains(err.Error(), "not permitted") {
			t.Errorf("to %s with mark %#x: %v, want it sent: %t", tt.to, tt.mark, err, tt.sent)
		}
	}
}
