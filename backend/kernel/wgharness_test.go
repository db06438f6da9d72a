package kernel

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// TestMain gives the tests a /run/wireguard of their own: the sockets there are known by the names of links, and every test
// binary of this machine may have one of the same name.
func TestMain(m *testing.M) {
	const alone = "KERNEL_TEST_ALONE"
	if os.Geteuid() == 0 && os.Getenv(alone) == "" {
		if unshare, err := exec.LookPath("unshare"); err == nil {
			os.Setenv(alone, "1")
			script := `mkdir -p /run/wireguard && mount -t tmpfs none /run/wireguard && exec "$0" "$@"`
			err := syscall.Exec(unshare, append([]string{"unshare", "--mount", "/bin/sh", "-ec", script}, os.Args...), os.Environ())
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// inProcess makes wireguard links of wireguard-go in a namespace, as a process beside ours does.
type inProcess struct {
	t  testing.TB
	ns netns.NsHandle

	late atomic.Int64 // how long it takes to answer, in nanoseconds

	mu      sync.Mutex
	devices map[string]*device.Device
	sockets map[string]net.Listener
}

func newInProcess(t testing.TB, ns netns.NsHandle) *inProcess {
	p := &inProcess{t: t, ns: ns, devices: map[string]*device.Device{}, sockets: map[string]net.Listener{}}
	t.Cleanup(func() {
		for name := range p.devices {
			p.kill(name)
		}
	})
	return p
}

// nsBind opens its sockets in a namespace, whoever asks.
type nsBind struct {
	conn.Bind
	ns netns.NsHandle
}

func (b nsBind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	err = rtnl.InNetns(b.ns, func() error {
		fns, actual, err = b.Bind.Open(port)
		return err
	})
	return fns, actual, err
}

func (p *inProcess) WireGuard(name string, mtu int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d := p.devices[name]; d != nil {
		select {
		case <-d.Wait():
			p.hangUp(name)
		default:
			return nil
		}
	}
	return rtnl.InNetns(p.ns, func() error {
		t, err := tun.CreateTUN(name, mtu)
		if err != nil {
			return err
		}
		d := device.NewDevice(t, nsBind{conn.NewDefaultBind(), p.ns}, device.NewLogger(device.LogLevelSilent, ""))
		file, err := ipc.UAPIOpen(name)
		if err != nil {
			return err
		}
		socket, err := ipc.UAPIListen(name, file)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := socket.Accept()
				if err != nil {
					return
				}
				go func() {
					time.Sleep(time.Duration(p.late.Load()))
					d.IpcHandle(c)
				}()
			}
		}()
		p.devices[name], p.sockets[name] = d, socket
		return nil
	})
}

func (p *inProcess) UDP(UDPTun) error                               { return syscall.EOPNOTSUPP }
func (p *inProcess) SetUDPPeers(string, []UDPPeer, []UDPPeer) error { return syscall.EOPNOTSUPP }
func (*inProcess) UDPPeers(string) ([]UDPPeer, error)               { return nil, nil }

// kill ends the link of a name as the end of its process does.
func (p *inProcess) kill(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.devices[name] != nil {
		p.devices[name].Close()
		p.hangUp(name)
		delete(p.devices, name)
	}
}

// hangUp closes the socket by which a link is configured, once: a second time it would close another's file that has the
// number of its own meanwhile (ipc/uapi_linux.go), such as the link of a test beside this one.
func (p *inProcess) hangUp(name string) {
	if s := p.sockets[name]; s != nil {
		delete(p.sockets, name)
		s.Close()
	}
}

// wgHost is a host with a wireguard link.
type wgHost struct {
	*running
	link  WireGuard
	users *inProcess // nil: not started
}

// wgName is a name for a link that no other test has.
func wgName() string {
	var b [4]byte
	rand.Read(b[:])
	return "wg" + hex.EncodeToString(b[:])
}

func newSecret() (s Secret) {
	rand.Read(s[:])
	return s
}

// wgLink is a link as host i has it.
func wgLink() WireGuard {
	return WireGuard{Name: wgName(), Private: newSecret(), Port: 51820, Mark: 0x1000000, MTU: 1420}
}

func startWG(t testing.TB, ns netns.NsHandle, link WireGuard) *wgHost {
	t.Helper()
	users := newInProcess(t, ns)
	return &wgHost{startConfig(t, Config{Namespace: ns, UserSpace: users}, quick), link, users}
}

// quick looks at links often, and loses patience soon; but an endpoint has its turn for longer than it takes wireguard to try
// again.
func quick(r *Reconciler) {
	r.keeper.every, r.keeper.silence, r.keeper.turn = 200*time.Millisecond, 2*time.Second, 7*time.Second
}

// pair is two hosts, 192.0.2.1 and .2, without a Reconciler yet.
func pair(t testing.TB) (a, b netns.NsHandle) {
	t.Helper()
	a, b = nstest.New(t), nstest.New(t)
	nstest.Sh(t, a, `ip link set lo up; ip link add eth0 type veth peer name eth1
ip link set eth1 netns `+nstest.Path(b)+`; ip link set eth0 up; ip address add 192.0.2.1/24 dev eth0; ip address add 192.0.2.11/24 dev eth0
ip address add 2001:db8::1/64 dev eth0 nodad`)
	nstest.Sh(t, b, `ip link set lo up; ip link set eth1 name eth0; ip link set eth0 up
ip address add 192.0.2.2/24 dev eth0; ip address add 192.0.2.12/24 dev eth0; ip address add 2001:db8::2/64 dev eth0 nodad`)
	return a, b
}

func wgSubnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
}
func wgSubnet6(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 6: byte(i >> 8), 7: byte(i)}), 64)
}

// self is a wireguard link as host i has it: with addresses of both families, and a route for each into it.
func (h *wgHost) self(i int) []Object {
	return []Object{
		h.link,
		Address{Link: h.link.Name, Prefix: netip.PrefixFrom(wgSubnet(i).Addr(), 32)},
		Address{Link: h.link.Name, Prefix: netip.PrefixFrom(wgSubnet6(i).Addr(), 128)},
		Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Link: h.link.Name},
		Route{Dst: netip.MustParsePrefix("fd00::/8"), Link: h.link.Name},
	}
}

// peer is host i as h reaches it.
func (h *wgHost) peer(i int, key Secret, endpoints ...string) WGPeer {
	p := WGPeer{Link: h.link.Name, Public: key.Public(), Allowed: [2]netip.Prefix{wgSubnet(i), wgSubnet6(i)}}
	for i, e := range endpoints {
		p.Endpoints[i] = netip.MustParseAddrPort(e)
	}
	return p
}

// device is the link as wgctrl sees it.
func (h *wgHost) device() *wgtypes.Device {
	h.t.Helper()
	d, err := readDevice(h.ns, h.link.Name)
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

// set changes the link behind the Reconciler's back.
func (h *wgHost) set(cfg wgtypes.Config) {
	h.t.Helper()
	if err := setDevice(h.ns, h.link.Name, cfg); err != nil {
		h.t.Fatal(err)
	}
}

// peers is what wg shows of the peers, in lines, without where they are.
func (h *wgHost) peers() (lines []string) {
	for _, p := range h.device().Peers {
		o := peerOf(h.link.Name, &p)
		if o.Allowed[0].Addr().Is6() {
			o.Allowed[0], o.Allowed[1] = o.Allowed[1], o.Allowed[0]
		}
		lines = append(lines, o.String())
	}
	return lines
}

func (h *wgHost) has(peers ...WGPeer) {
	h.t.Helper()
	want := map[string]bool{}
	for _, p := range peers {
		p.Endpoints = [4]netip.AddrPort{}
		want[p.String()] = true
	}
	got := h.peers()
	for _, line := range got {
		if !want[line] {
			h.t.Errorf("peer %s is too much", line)
		}
		delete(want, line)
	}
	for line := range want {
		h.t.Errorf("no peer %s among %s", line, strings.Join(got, "\n"))
	}
}

// eventually waits for what is no status.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not %s within %s", what, within)
		}
	}
}

func (h *wgHost) ping(to netip.Addr) error {
	return rtnl.InNetns(h.ns, func() error {
		out, err := exec.Command("ping", "-c", "1", "-W", "2", to.String()).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ping: %w: %s", err, out)
		}
		return nil
	})
}
