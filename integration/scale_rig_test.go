package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/overlayd/overlayd/subnet"
)

// crowd is a network of one family with room for many hosts that exist only as leases.
type crowd struct {
	*Lab
	wire   *Segment
	client *clientv3.Client
	size   int // how many leases there are
	hosts  int // how many real hosts were made
}

// newCrowd makes a network with an etcd whose disk is memory.
func newCrowd(t testing.TB, stack Stack, size int) *crowd {
	t.Helper()
	c := &crowd{Lab: newLab(t, stack)}
	c.wire = c.NewSegment(1)
	c.NewEtcd(c.wire)
	c.StartEtcd()
	config := `{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.240.0.0","Backend":{"Type":"vxlan"}}` // the rest is for the crowd
	if stack.V6 {
		config = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/40","IPv6SubnetLen":64,"Backend":{"Type":"vxlan"}}`
	}
	c.Put(configKey, config)
	var err error
	c.client, err = clientv3.New(clientv3.Config{
		Endpoints: []string{"http://127.0.0.1:2379"}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return c.Etcd.Dial(ctx, "tcp", addr)
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.client.Close() })
	c.grow(size)
	return c
}

// lease is that of host i.
func (c *crowd) lease(i int) (key, value string) {
	c.t.Helper()
	l := subnet.Lease{Backend: "vxlan", HostID: fmt.Sprintf("h%d", i), Host: fmt.Sprintf("host%d.example.net", i)}
	e := subnet.Endpoint{Data: json.RawMessage(fmt.Sprintf(`{"VNI":1,"VtepMAC":"02:01:00:%02x:%02x:%02x"}`, i>>16, i>>8&255, i&255))}
	if c.Stack.V4 {
		e.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		e.PublicIP = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
	} else {
		e.Subnet = netip.MustParsePrefix(fmt.Sprintf("fc00:0:0:%x::/64", i))
		e.PublicIP = netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", i))
	}
	l.Endpoints = []subnet.Endpoint{e}
	raw, err := l.Value()
	if err != nil {
		c.t.Fatal(err)
	}
	return subnetsPrefix + l.Key(), string(raw)
}

// grow adds leases until there are size.
func (c *crowd) grow(size int) {
	c.t.Helper()
	const together = 128 // what etcd takes in a transaction
	var ops []clientv3.Op
	for ; c.size < size; c.size++ {
		key, value := c.lease(c.size + 1)
		ops = append(ops, clientv3.OpPut(key, value))
	}
	for some := range slices.Chunk(ops, together) {
		if _, err := c.client.Txn(c.t.Context()).Then(some...).Commit(); err != nil {
			c.t.Fatal(err)
		}
	}
}

// host makes a host that nobody has used.
func (c *crowd) host() *Host {
	c.t.Helper()
	c.hosts++
	return c.NewHost(c.wire, 10+c.hosts)
}

// startTimed starts overlayd on h and returns how long it took until it said that it is ready.
func startTimed(h *Host, args ...string) time.Duration {
	h.t.Helper()
	path := filepath.Join(h.t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	h.StartEnv([]string{"NOTIFY_SOCKET=" + path}, args...)
	for !strings.Contains(notification(h.t, conn), "READY=1") {
	}
	took := time.Since(begin)
	h.WaitReady() // says the same
	return took
}

// commands are the objects that overlayd would install on h, as input for ip -batch and for bridge -batch.
func commands(h *Host) (ip, bridge string) {
	h.t.Helper()
	out, err := h.Command(h.Args("--dry-run")...).Output()
	if err != nil {
		h.t.Fatalf("overlayd --dry-run: %v", err)
	}
	var b [2]strings.Builder
	for line := range strings.Lines(string(out)) {
		if rest, ok := strings.CutPrefix(line, "ip "); ok {
			b[0].WriteString(rest)
		} else if rest, ok := strings.CutPrefix(line, "bridge "); ok {
			b[1].WriteString(rest)
		}
	}
	return b[0].String(), b[1].String()
}

// batch gives the commands to ip and bridge on h and returns how long they took.
func batch(h *Host, ip, bridge string) time.Duration {
	h.t.Helper()
	dir := h.t.TempDir()
	for name, text := range map[string]string{"ip": ip, "bridge": bridge} {
		writeFile(h, filepath.Join(dir, name), text)
	}
	begin := time.Now()
	h.Exec("ip", "-batch", filepath.Join(dir, "ip"))
	h.Exec("bridge", "-batch", filepath.Join(dir, "bridge"))
	return time.Since(begin)
}

// resident is the memory of the daemon in MB: now, and at its most.
func resident(h *Host) (now, most float64) {
	h.t.Helper()
	for line := range strings.Lines(h.proc("status")) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		kb, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			now = kb / 1024
		case "VmHWM:":
			most = kb / 1024
		}
	}
	return now, most
}

// cpu is what the daemon has used of all CPUs, in its threads and in the kernel for them.
func cpu(h *Host) time.Duration {
	h.t.Helper()
	text := h.proc("stat")
	fields := strings.Fields(text[strings.LastIndex(text, ")"):])
	const ticks = 100 // of a second: USER_HZ
	user, _ := strconv.Atoi(fields[12])
	system, _ := strconv.Atoi(fields[13])
	return time.Duration(user+system) * time.Second / ticks
}

// proc is a file of the daemon's in /proc.
func (h *Host) proc(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", h.Daemon.Pid(), name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

// median of an odd number of durations, in seconds.
func median(all []time.Duration) float64 { return quantile(all, 0.5).Seconds() }

// quantile is the smallest of all that is not below a share q of them.
func quantile(all []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// lockProbe asks the kernel for its network lock again and again, from a namespace of its own, and remembers the longest
// wait: that is how long nobody could change anything.
type lockProbe struct {
	stop chan struct{}
	most chan time.Duration
}

func newLockProbe(n *Node) *lockProbe {
	n.t.Helper()
	ns, err := netns.GetFromName(n.Name)
	if err != nil {
		n.t.Fatal(err)
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns)
	if err != nil {
		n.t.Fatal(err)
	}
	lo, err := handle.LinkByName("lo")
	if err != nil {
		n.t.Fatal(err)
	}
	p := &lockProbe{stop: make(chan struct{}), most: make(chan time.Duration, 1)}
	go func() {
		defer handle.Close()
		var most time.Duration
		for {
			select {
			case <-p.stop:
				p.most <- most
				return
			case <-time.After(time.Millisecond):
			}
			begin := time.Now()
			_ = handle.LinkSetUp(lo) // it is up; only the wait counts
			most = max(most, time.Since(begin))
		}
	}()
	return p
}

func (p *lockProbe) end() time.Duration {
	close(p.stop)
	return <-p.most
}
