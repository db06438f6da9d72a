package enforce

import (
	"net"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/policy/compile"
)

// TestFlooded sends to all of a bridge: who is isolated hears nothing, and neighbours are found all the same.
func TestFlooded(t *testing.T) {
	s := newSite(t)
	bridged(t, s, compile.Change{Make: map[compile.GroupID][]compile.Match{"i1": {{Proto: 1}, {Proto: 58}}}, Set: isolate("i1", "", a4, a6)})
	var in, out net.PacketConn
	err := rtnl.InNetns(s.a, func() (err error) { in, err = net.ListenPacket("udp", ":9999"); return err })
	if err == nil {
		err = rtnl.InNetns(s.b, func() (err error) { out, err = net.ListenPacket("udp", ":0"); return err })
	}
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	nstest.Sh(t, s.b, "ip route add 224.0.0.0/4 dev eth0; ip neigh flush dev eth0")
	for _, to := range []string{"10.5.1.255", "224.0.0.1", "ff02::1"} {
		dst := &net.UDPAddr{IP: net.ParseIP(to), Port: 9999}
		if dst.IP.To4() == nil {
			dst.Zone = "eth0"
		}
		err := rtnl.InNetns(s.b, func() error { _, err := out.WriteTo([]byte("hi"), dst); return err })
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
	}
	// What came after it has arrived, so that what was to arrive would have.
	probes(t, "neighbours", both(s.b, "icmp", "10.5.1.2", "fd00:5:0:1::2", "", true))
	in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, from, err := in.ReadFrom(make([]byte, 9)); err == nil {
		t.Errorf("an isolated container hears %v", from)
	}
}
