package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

var count atomic.Int64

const network = `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}`

// wellHost is what overlayd makes of a host with one peer, in ip's words; %d is 1 here and 2 there, %[2]d the other.
const wellHost = `
ip link set lo up
ip address add 172.30.0.%[1]d/24 dev eth0
ip link set eth0 up
sysctl -qw net.ipv4.ip_forward=1
ip link add overlay.1 address 02:00:00:00:00:0%[1]d type vxlan id 1 local 172.30.0.%[1]d dev eth0 dstport 8472 nolearning
ip address add 10.5.%[1]d.0/32 dev overlay.1
ip link set overlay.1 up
ip neighbour add 10.5.%[2]d.0 lladdr 02:00:00:00:00:0%[2]d nud permanent dev overlay.1
bridge fdb add 02:00:00:00:00:0%[2]d dst 172.30.0.%[2]d dev overlay.1
ip route add 10.5.%[2]d.0/24 via 10.5.%[2]d.0 dev overlay.1 onlink proto 111 metric 5000
`

// ward is two namespaces with a wire between them: the patient's, and its one peer's.
type ward struct {
	t           *testing.T
	here, there string
}

func newWard(t *testing.T) ward {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	id := fmt.Sprintf("ovdoctor%d-%d-", os.Getpid(), count.Add(1))
	w := ward{t, id + "a", id + "b"}
	for _, ns := range []string{w.here, w.there} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { run(t, "ip", "netns", "delete", ns) })
	}
	run(t, "ip", "-n", w.here, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", w.there)
	w.sh(w.here, fmt.Sprintf(wellHost, 1, 2))
	w.sh(w.there, fmt.Sprintf(wellHost, 2, 1))
	return w
}

// sh runs a script in a namespace, and stops the test where a line of it fails.
func (w ward) sh(ns, script string) {
	w.t.Helper()
	run(w.t, "ip", "netns", "exec", ns, "sh", "-ec", script)
}

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// examine makes the checks on a thread that is in the patient's namespace, and ends there.
func (w ward) examine(h *Host, some ...check) map[string]Finding {
	w.t.Helper()
	return w.examineWithin(w.t.Context(), h, some...)
}

func (w ward) examineWithin(ctx context.Context, h *Host, some ...check) map[string]Finding {
	w.t.Helper()
	found := map[string]Finding{}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		ns, err := netns.GetFromName(w.here)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err == nil {
			for _, c := range some {
				found[c.name] = c.look(ctx, h)
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
	return found
}

// well is what a host knows of itself that lacks nothing.
func well(t *testing.T) *Host {
	t.Helper()
	n, err := subnet.ParseNetwork([]byte(network))
	if err != nil {
		t.Fatal(err)
	}
	return &Host{
		Status: &api.Status{
			Guard:   api.Guard{Parts: []string{"containers", "overlay", "tunnel"}},
			Version: "v1.2.3", Ready: true, Stage: "serving", Network: network, Backend: "vxlan", MTU: 1450,
			Subnets: []string{"10.5.1.0/24"}, Underlay: "eth0", PublicIP: []string{"172.30.0.1"},
			Lease:    api.Lease{State: "held"},
			FastPath: api.FastPath{Mode: api.FastPathAuto},
			Kernel:   api.Kernel{InStep: true, Objects: map[string]int{"route": 1, "link": 1}},
			Peers: []api.Peer{{
				Host: "there", Subnets: []string{"10.5.2.0/24"}, PublicIPs: []string{"172.30.0.2"}, Backend: "vxlan", Path: "vxlan",
			}},
		},
		Network: n, EtcdTook: time.Millisecond, Now: time.Now(), Root: "/",
	}
}
