package main

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/probe"
)

func TestFillIn(t *testing.T) {
	t.Parallel()
	target := probe.Target{Addr: netip.MustParseAddr("10.5.3.0")}
	answered := probe.Result{Target: target, Sent: 5, Received: 4, Min: time.Millisecond, Avg: 1500 * time.Microsecond, Max: 2 * time.Millisecond}
	silent := probe.Result{Target: target, Sent: 5, Err: syscall.ENETUNREACH}
	probes := []peerProbe{
		{Host: "a", Error: "another backend"}, {Host: "b", Subnet: "10.5.3.0/24", Path: "vxlan", Probed: "10.5.3.0", Fast: api.FastPackets{Sent: 12, Received: 7}},
		{Host: "c", Path: "vxlan", Probed: "10.5.3.0"},
	}
	if !fillIn(probes, []probe.Result{answered, silent}) {
		t.Error("silent peers need no attention")
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	b.WriteString("\n")
	(&app{output: "wide"}).printPeers(w, probes)
	w.Flush()
	want := `
PEER  SUBNET       PATH         LOSS  RTT     FAST  ERROR                   PROBED    MIN     MAX
a     -            not reached  100%  -       -     another backend         -         -       -
b     10.5.3.0/24  vxlan        20%   1.50ms  12/7  -                       10.5.3.0  1.00ms  2.00ms
c     -            vxlan        100%  -       -     network is unreachable  10.5.3.0  -       -
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if fillIn(probes[1:2], []probe.Result{answered}) {
		t.Error("a peer that answers needs attention")
	}
	if diff := cmp.Diff(0.2, probes[1].Lost, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Errorf("lost (-want +got):\n%s", diff)
	}
}
