package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/userspace"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cmd/internal/certs"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// illness is something that one check must find.
type illness struct {
	name        string
	check       string
	here, there string      // scripts that bring it about
	know        func(*Host) // or what the host knows
	level       Level
	text        string // part of it
	advice      string // part of it
}

// illnesses on a host as newWard makes it.
var illnesses = []illness{
	{name: "link down", check: "interface", here: "ip link set eth0 down", level: Fail, text: "eth0 is down", advice: "ip link set eth0 up"},
	{name: "no carrier", check: "interface", there: "ip link set eth0 down", level: Fail, text: "no carrier"},
	{name: "link gone", check: "interface", here: "ip link delete eth0", level: Fail, text: "eth0: Link not found"},
	{name: "link too narrow", check: "interface", here: "ip link set eth0 mtu 1400", level: Fail, text: "carries 1400 bytes", advice: "mtu 1450"},
	{name: "address elsewhere", check: "interface", know: func(h *Host) { h.Status.PublicIP = []string{"203.0.113.9"} }, level: OK, text: "203.0.113.9, which must be led here"},

	{name: "no forwarding", check: "ip_forward", here: "sysctl -qw net.ipv4.ip_forward=0", level: Fail, text: "net.ipv4.ip_forward is 0", advice: "sysctl -w net.ipv4.ip_forward=1"},
	{name: "no IPv6 forwarding", check: "ip_forward", know: dual, level: Fail, text: "net.ipv6.conf.all.forwarding is 0"},

	{name: "strict, peer answered elsewhere", check: "rp_filter", level: Fail, text: "172.30.0.2 is answered by other", advice: "rp_filter=2",
		here: "sysctl -qw net.ipv4.conf.eth0.rp_filter=1; ip link add other type veth peer name other2; ip link set other up; ip route add 172.30.0.2/32 dev other"},
	{name: "strict for all, peer answered elsewhere", check: "rp_filter", level: Fail, text: "answered by other",
		here: "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=0; ip link add other type veth peer name other2; ip link set other up; ip route add 172.30.0.2/32 dev other"},
	{name: "strict, and no harm", check: "rp_filter", here: "sysctl -qw net.ipv4.conf.eth0.rp_filter=1", level: OK, text: "strict on eth0, and all"},
	{name: "loose wins", check: "rp_filter", here: "sysctl -qw net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.eth0.rp_filter=1", level: OK, text: "not strict"},

	{name: "bridged packets pass iptables", check: "bridge netfilter", here: "sysctl -qw net.bridge.bridge-nf-call-iptables=1", level: OK, text: "on: "},

	{name: "no guard", check: "guard", know: func(h *Host) { h.Status.Guard.Parts = nil }, level: Warn, text: "off", advice: "take guard out of"},
	{name: "guard cannot be", check: "guard", know: func(h *Host) { h.Status.Guard = api.Guard{Parts: []string{"tunnel"}, Missing: "no nft"} }, level: Fail, text: "no nft", advice: "apt-get install nftables"},
	{name: "guard in part", check: "guard", know: func(h *Host) {
		h.Status.Guard = api.Guard{Parts: []string{"tunnel"}, Dropped: map[string]uint64{"stranger": 3, "frame": 0}}
	}, level: OK, text: "without containers, overlay; dropped: 3 stranger"},
	{name: "guard has nothing to do", check: "guard", level: OK, text: "dropped: nothing"},

	{name: "foreign route to a peer", check: "routes", here: "ip route add 10.5.2.0/24 dev eth0", level: Fail, text: "10.5.2.0/24 by eth0", advice: "another range"},
	{name: "narrower route", check: "routes", here: "ip route add 10.5.2.64/26 via 172.30.0.99", level: Fail, text: "10.5.2.64/26 by eth0 through 172.30.0.99"},
	{name: "address of a bridge inside", check: "routes", here: "ip link add docker0 type bridge; ip address add 10.5.9.1/24 dev docker0; ip link set docker0 up", level: Warn, text: "10.5.9.0/24 by docker0", advice: "leases reserve"},
	{name: "own containers, wider routes", check: "routes", here: "ip link add cni0 type bridge; ip address add 10.5.1.1/24 dev cni0; ip link set cni0 up; ip route add 10.0.0.0/8 dev eth0", level: OK},

	{name: "kernel refuses", check: "kernel objects", know: func(h *Host) { h.Status.Kernel.Failed = []string{"route: no such device"} }, level: Fail, text: "refuses 1 objects: route: no such device"},
	{name: "kernel behind", check: "kernel objects", know: func(h *Host) { h.Status.Kernel.InStep, h.Status.Kernel.Pending = false, 3 }, level: Warn, text: "3 objects are not there yet"},
	{name: "healed", check: "kernel objects", know: func(h *Host) { h.Status.Kernel.Healed = map[string]int{"route": 2} }, level: Warn, text: "2 times", advice: "NetworkManager"},

	{name: "wireguard's port taken", check: "wireguard", know: func(h *Host) {
		h.Status.Kernel.Failed = []string{"ip link add overlay-wg mtu 1420 type wireguard && wg set overlay-wg listen-port 51820: UDP port 51820 is taken (ss -lnup sport = 51820 says by whom): address already in use"}
	}, level: Fail, text: "UDP port 51820 is taken", advice: "ListenPort"},
	{name: "no wireguard", check: "wireguard", level: Skip, text: "no wireguard link"},
	{name: "no process", check: "user space", level: Skip, text: "no process carries packets"},
	{name: "a process", check: "user space", know: served("2"), level: OK, text: "carries overlay-wg and overlay.udp, where the kernel has not what it takes: it is slower, and has 30 MB"},
	{name: "a process of before", check: "user space", know: served("1"), level: Warn, text: "is of version 1, and not 2", advice: "systemctl restart overlayd-tun"},
	{name: "a process that hangs", check: "user space", know: func(h *Host) { h.UserSpace.Err = errors.New("i/o timeout") }, level: Warn, text: "i/o timeout", advice: "journalctl -u overlayd-tun"},

	{name: "wireguard", check: "wireguard", know: tunnelled(nil), level: OK, text: "3 peers, 1 up, in the kernel"},
	{name: "wireguard never heard", check: "wireguard", know: tunnelled(func(wg *api.WireGuard) { wg.Peers[1].Sent = 148 }), level: Fail,
		text: "they never shook hands: there (172.30.0.2:51820)", advice: "let UDP 51820 through in both directions, on every firewall between the hosts; does overlayctl wireguard there show this host's key, a=?"},
	{name: "a laptop that is closed", check: "wireguard", know: tunnelled(func(wg *api.WireGuard) { wg.Peers[2].Sent = 148 }), level: OK, text: "3 peers, 1 up"},
	{name: "wireguard's key open", check: "wireguard", know: tunnelled(func(wg *api.WireGuard) { wg.KeyFile = "/etc/passwd" }), level: Fail,
		text: "others may read the private key: /etc/passwd has mode 0644", advice: "chmod 600 /etc/passwd"},
	{name: "wireguard in a process", check: "wireguard", know: tunnelled(func(wg *api.WireGuard) { wg.Links[0].UserSpace = true }), level: OK, text: "a process carries overlay-wg"},
	{name: "wireguard in a process, and large", check: "wireguard", know: tunnelled(func(wg *api.WireGuard) {
		wg.Links[0].UserSpace, wg.Peers = true, make([]api.WireGuardPeer, 3000)
	}), level: Warn, text: "takes 70 MB for 3000 peers", advice: "linux-modules-extra"},

	{name: "fast path wanted", check: "fast path", know: func(h *Host) { h.Status.FastPath = api.FastPath{Mode: api.FastPathOn, Off: "no BTF"} }, level: Warn, text: "off: no BTF", advice: "fast-path: auto"},
	{name: "fast path not needed", check: "fast path", know: func(h *Host) { h.Status.FastPath.Off = "no BTF" }, level: OK, text: "off: no BTF"},

	{name: "port blocked", check: "peers", there: "iptables -A INPUT -p udp --dport 8472 -j DROP", level: Fail, text: "not through vxlan: there (172.30.0.2)", advice: "UDP 8472"},
	{name: "own port blocked", check: "peers", here: "nft 'add table ip f; add chain ip f in { type filter hook input priority 0; }; add rule ip f in udp dport 8472 drop'", level: Fail, text: "not through vxlan"},
	{name: "peer gone", check: "peers", there: "ip link set eth0 down", level: Fail, text: "no answer from there", advice: "leases release"},
	{name: "a peer outside is away", check: "peers", there: "ip link set eth0 down", know: func(h *Host) { h.Status.Peers[0].Outside = true }, level: Skip, text: "there are none"},
	{name: "peer of another kind", check: "peers", know: func(h *Host) { h.Status.Peers[0].Path, h.Status.Peers[0].Error = "", "another backend" }, level: Fail, text: "there: another backend"},
	{name: "reserved", check: "peers", know: func(h *Host) { h.Status.Peers[0].Path, h.Status.Peers[0].Backend = "", "" }, level: Skip, text: "there are none"},
	{name: "no peers", check: "peers", know: func(h *Host) { h.Status.Peers = nil }, level: Skip, text: "there are none"},

	{name: "narrow way", check: "MTU", there: "ip link set eth0 mtu 1420", level: Fail, text: " of 1500 bytes to there (172.30.0.2)", advice: `"MTU": 142`},
	{name: "nobody to ask for the MTU", check: "MTU", there: "ip link set eth0 down", level: Skip, text: "no host answers"},

	{name: "UDP lost inside vxlan", check: "checksums", there: "nft 'add table ip f; add chain ip f in { type filter hook input priority 0; }; add rule ip f in iifname overlay.1 meta l4proto udp drop'", level: Warn, text: "UDP does not: there", advice: "ethtool -K eth0"},
	{name: "UDP lost everywhere", check: "checksums", there: "iptables -A INPUT -p udp --dport 33434 -j DROP", level: OK},
	{name: "nobody to ask for checksums", check: "checksums", there: "ip link set eth0 down", level: Skip},
}

// tunnelled is a host with wireguard, otherwise than usual: one peer is up, one is idle, and one outside the network away.
func tunnelled(otherwise func(*api.WireGuard)) func(*Host) {
	return func(h *Host) {
		h.Status.WireGuard = &api.WireGuard{
			PublicKey: "a=", KeyFile: "/nowhere", Links: []api.WireGuardLink{{Name: "overlay-wg", Port: 51820}},
			Peers: []api.WireGuardPeer{{Host: "up", Handshake: new(h.Now.Add(-time.Minute))}, {Host: "there", Endpoint: "172.30.0.2:51820"}, {Host: "laptop", Outside: true}},
		}
		if otherwise != nil {
			otherwise(h.Status.WireGuard)
		}
	}
}

// served has a process of a version serve links.
func served(version string) func(*Host) {
	return func(h *Host) {
		h.UserSpace = UserSpace{Latest: "2", Answer: userspace.Answer{
			Version: version, Resident: 30 << 20, WireGuard: []userspace.WireGuard{{Name: "overlay-wg"}}, UDP: []userspace.UDP{{Name: "overlay.udp"}},
		}}
	}
}

func dual(h *Host) {
	h.Network.Pools = append(h.Network.Pools, subnet.Pool{Prefix: netip.MustParsePrefix("fd00:5::/48")})
}

func find(t *testing.T, name string) check {
	t.Helper()
	for _, c := range checks {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("no check is called %q", name)
	return check{}
}

func TestIllnesses(t *testing.T) {
	t.Parallel()
	for _, ill := range illnesses {
		t.Run(ill.name, func(t *testing.T) {
			t.Parallel()
			w, h := newWard(t), well(t)
			w.sh(w.here, ill.here)
			w.sh(w.there, ill.there)
			if ill.know != nil {
				ill.know(h)
			}
			got := w.examine(h, find(t, ill.check))[ill.check]
			if got.Level != ill.level || !strings.Contains(got.Text, ill.text) || !strings.Contains(got.Advice, ill.advice) {
				t.Errorf("got %+v, want %s with %q and %q", got, ill.level, ill.text, ill.advice)
			}
			if bad := got.Level == Warn || got.Level == Fail; bad != (got.Advice != "") {
				t.Errorf("%+v: advice belongs to what is bad, and only to that", got)
			}
		})
	}
}

// TestWell finds nothing on a host that lacks nothing: each illness is told from health.
func TestWell(t *testing.T) {
	t.Parallel()
	w := newWard(t)
	levels := map[string]Level{}
	for name, f := range w.examine(well(t), checks...) {
		levels[name] = f.Level
		if f.Level == Warn || f.Level == Fail {
			t.Logf("%s: %+v", name, f)
		}
	}
	want := map[string]Level{}
	for _, c := range checks {
		want[c.name] = OK
	}
	want["certificate"] = Skip // none is set
	want["wireguard"], want["user space"] = Skip, Skip
	want["clock"] = levels["clock"] // that of the machine
	if diff := cmp.Diff(want, levels); diff != "" {
		t.Errorf("levels (-want +got):\n%s", diff)
	}
}

// TestWithoutDaemon makes all checks where nobody knows anything.
func TestWithoutDaemon(t *testing.T) {
	t.Parallel()
	h := &Host{StatusErr: errors.New("overlayd is not running"), EtcdErr: errors.New("etcd cannot be reached"), Now: time.Now()}
	failed := map[string]string{}
	err := Run(t.Context(), h, func(f Finding) {
		if f.Level == Fail {
			failed[f.Check] = f.Text
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"daemon": "overlayd is not running", "etcd": "etcd cannot be reached"}, failed); diff != "" {
		t.Errorf("failed (-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, h, func(Finding) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestKnown(t *testing.T) {
	t.Parallel()
	record := func(key, hostID, ip, mac string) subnet.Record {
		return subnet.Record{Lease: subnet.Lease{HostID: hostID, Endpoints: []subnet.Endpoint{{
			Subnet: netip.MustParsePrefix(key), PublicIP: netip.MustParseAddr(ip), Data: []byte(`{"VNI":1,"VtepMAC":"` + mac + `"}`),
		}}}}
	}
	for name, test := range map[string]struct {
		look  func(context.Context, *Host) Finding
		know  func(*Host)
		level Level
		text  string
	}{
		"not ready":  {daemon, func(h *Host) { h.Status.Ready, h.Status.Stage = false, "claiming a subnet" }, Fail, "not ready: claiming a subnet"},
		"degraded":   {daemon, func(h *Host) { h.Status.Problems = []string{"a", "b"} }, Warn, "a; b"},
		"no network": {etcd, func(h *Host) { h.EtcdErr = fmt.Errorf("%w at /x/config", etcdstore.ErrNoNetwork) }, Fail, "it has no network config at /x/config"},
		"etcd away":  {etcd, func(h *Host) { h.EtcdErr = errors.New("etcd cannot be reached") }, Fail, "cannot be reached"},
		"etcd slow":  {etcd, func(h *Host) { h.EtcdTook = 700 * time.Millisecond }, Warn, "700ms"},
		"etcd in the clear": {access, func(h *Host) { h.EtcdURLs = []string{"http://127.0.0.1:2379", "http://192.0.2.1:2379"} },
			Fail, "in the clear at http://192.0.2.1:2379: who reaches that"},
		"etcd served in the clear": {access, func(h *Host) { h.EtcdURLs, h.Insecure = []string{"unix:///run/overlayd/etcd.sock"}, "0.0.0.0:2379" }, Fail, "http://0.0.0.0:2379"},
		"etcd for all users":       {access, func(h *Host) { h.EtcdURLs, h.EtcdOpen = []string{"http://localhost:2379"}, true }, Warn, "every user of this host"},
		"etcd with users":          {access, func(h *Host) { h.EtcdURLs = []string{"http://[::1]:2379"} }, OK, "this host alone"},
		"etcd by a socket":         {access, func(h *Host) { h.EtcdURLs, h.EtcdOpen = []string{"unix:///run/overlayd/etcd.sock"}, true }, OK, "unix socket"},
		"etcd for all hosts":       {access, func(h *Host) { h.EtcdURLs, h.EtcdOpen = []string{"https://192.0.2.1:2379"}, true }, Warn, "what no host may"},
		"etcd with rights":         {access, func(h *Host) { h.EtcdURLs = []string{"https://192.0.2.1:2379"} }, OK, "each host has its own rights"},
		"etcd's access unknown":    {access, func(h *Host) { h.EtcdURLs, h.EtcdErr = []string{"https://192.0.2.1:2379"}, errors.New("away") }, Skip, "does not answer"},
		"lease taken":              {leases, func(h *Host) { h.Status.Lease = api.Lease{State: "taken", Reason: "held by b"} }, Fail, "this host's is taken: held by b"},
		"foreign key":              {leases, func(h *Host) { h.Listing.Skipped = []etcdstore.Skipped{{Key: "x", Err: errors.New("no subnet")}} }, Warn, "x (no subnet)"},
		"leases unknown":           {leases, func(h *Host) { h.EtcdErr = errors.New("away") }, Skip, "without etcd"},
		"two of one address": {leases, func(h *Host) {
			h.Listing.Records = []subnet.Record{record("10.5.1.0/24", "a", "172.30.0.1", "02:00:00:00:00:01"), record("10.5.2.0/24", "b", "172.30.0.1", "02:00:00:00:00:02")}
		}, Fail, "address 172.30.0.1 is in 2 leases: 10.5.1.0-24, 10.5.2.0-24"},
		"two behind one address": {leases, func(h *Host) {
			for i, key := range []string{"10.5.1.0/24", "10.5.2.0/24"} {
				r := record(key, key, "198.51.100.1", "")
				r.Endpoints[0].Data = []byte(fmt.Sprintf(`{"PublicKey":"%d","Port":51820,"NAT":true}`, i))
				h.Listing.Records = append(h.Listing.Records, r)
			}
		}, OK, "2, no two of one host"},
		"a copied host": {leases, func(h *Host) {
			h.Listing.Records = []subnet.Record{record("10.5.1.0/24", "a", "172.30.0.1", "02:00:00:00:00:01"), record("10.5.2.0/24", "b", "172.30.0.2", "02:00:00:00:00:01")}
		}, Fail, "VTEP MAC 02:00:00:00:00:01 is in 2 leases: 10.5.1.0-24, 10.5.2.0-24"},
		"a host that is to move": {leases, func(h *Host) {
			h.Listing.Records = []subnet.Record{record("10.5.1.0/24", "a", "172.30.0.1", "02:00:00:00:00:01"), record("10.5.2.0/24", "a", "172.30.0.1", "02:00:00:00:00:01")}
		}, Warn, "host id a is in 2 leases: 10.5.1.0-24, 10.5.2.0-24"},
		"different hosts": {leases, func(h *Host) {
			h.Listing.Records = []subnet.Record{record("10.5.1.0/24", "", "172.30.0.1", "02:00:00:00:00:01"), record("10.5.2.0/24", "", "172.30.0.2", "02:00:00:00:00:02")}
		}, OK, "2, no two of one host"},
		"no vxlan":        {features, func(h *Host) { h.Root = kernelWith(t, "kernel/x.ko: y\n") }, Fail, "the kernel has no vxlan"},
		"vxlan there":     {features, func(h *Host) { h.Root = kernelWith(t, "kernel/net/vxlan.ko.zst: y\n") }, OK, "vxlan, nft"},
		"vxlan not known": {features, func(h *Host) { h.Root = t.TempDir() }, Skip, "no lists of modules"},
		"no wireguard": {features, func(h *Host) {
			h.Root, h.Network.Backend.Type = kernelWith(t, "kernel/x.ko: y\n"), "wireguard"
		}, Warn, "the kernel has no wireguard: a process"},
		"wireguard there": {features, func(h *Host) {
			h.Root, h.Network.Backend.Type = kernelWith(t, "kernel/drivers/net/wireguard/wireguard.ko.xz: y\n"), "wireguard"
		}, OK, "wireguard, nft"},
		"host-gw":         {features, func(h *Host) { h.Root, h.Network.Backend.Type = t.TempDir(), "host-gw" }, OK, "nft"},
		"network unknown": {features, func(h *Host) { h.Network = subnet.Network{} }, Skip, "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := well(t)
			test.know(h)
			got := test.look(t.Context(), h)
			if got.Level != test.level || !strings.Contains(got.Text, test.text) {
				t.Errorf("got %+v, want %s with %q", got, test.level, test.text)
			}
		})
	}
}

// kernelWith is a root where the running kernel has only the modules of a modules.dep.
func kernelWith(t *testing.T, modules string) string {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	dir := filepath.Join(root, "lib/modules", strings.TrimSpace(string(release)))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(modules), 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestHasModule(t *testing.T) {
	t.Parallel()
	for modules, want := range map[string]bool{
		"":                              false,
		"kernel/net/vxlanx.ko: a\n":     false,
		"kernel/net/xvxlan.ko: a\n":     false,
		"kernel/x.ko: net/vxlan.ko\n":   false,
		"kernel/net/vxlan.ko\n":         true,
		"kernel/net/vxlan.ko.xz: a b\n": true,
	} {
		if got, err := hasModule(kernelWith(t, modules), "vxlan"); got != want || err != nil {
			t.Errorf("%q: %t, %v; want %t", modules, got, err, want)
		}
	}
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	d := certs.Dir{Path: t.TempDir() + "/pki", Now: time.Now}
	if _, err := d.Init(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Issue("a", certs.Names{}, 365*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	file, _ := d.Files("a")
	for name, test := range map[string]struct {
		file  string
		after time.Duration
		level Level
	}{
		"none":       {"", 0, Skip},
		"missing":    {d.Path + "/b.crt", 0, Fail},
		"clock back": {file, -48 * time.Hour, Fail},
		"ended":      {file, 366 * 24 * time.Hour, Fail},
		"ends soon":  {file, 340 * 24 * time.Hour, Warn},
		"good":       {file, 0, OK},
	} {
		h := &Host{CertFile: test.file, Now: time.Now().Add(test.after)}
		if got := certificate(t.Context(), h); got.Level != test.level {
			t.Errorf("%s: %+v, want %s", name, got, test.level)
		}
	}
}

func TestClock(t *testing.T) {
	t.Parallel()
	if got := judgeClock(unix.STA_UNSYNC | unix.STA_PLL); got.Level != Warn {
		t.Errorf("not synchronised: %+v", got)
	}
	if got := judgeClock(unix.STA_PLL); got.Level != OK {
		t.Errorf("synchronised: %+v", got)
	}
}
