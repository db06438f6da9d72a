package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

const secretConfig = `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}`

// secretHost is testHost with a wireguard key.
func secretHost() Host {
	h := testHost("172.30.0.11")
	h.WireGuard = kernel.Secret{8}
	return h
}

// keyOf is the public key of a peer's, by a number.
func keyOf(n byte) kernel.WGKey { return kernel.Secret{8 * n}.Public() }

// secretLease is a peer's lease that says wireguard, with more data.
func secretLease(number byte, key kernel.WGKey, more string) *subnet.Record {
	r := record(fmt.Sprintf("10.5.%d.0/24", number), fmt.Sprintf("172.30.0.%d", number), "wireguard", number)
	r.Endpoints[0].Data = []byte(fmt.Sprintf(`{"PublicKey":%q,"Port":51820%s}`, key, more))
	return r
}

func secretRig(t *testing.T, config string, peers map[string]*subnet.Record) *rig {
	t.Helper()
	r := newRig(t, t.TempDir())
	r.host = func() (Host, error) { return secretHost(), nil }
	r.start(t)
	r.member.tell(news(t, config, peers))
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	return r
}

// waysOf is how the host sends to a peer, and whether it is a peer of wireguard, in words.
func (k *fakeKernel) waysOf(key string) string {
	var ways []string
	for _, o := range k.objects(key) {
		switch {
		case strings.HasPrefix(o, "wg set"):
			ways = append(ways, "wg")
		case strings.HasPrefix(o, "ip route replace"):
			_, link, _ := strings.Cut(o, " dev ")
			ways = append(ways, strings.Fields(link)[0])
		}
	}
	return strings.Join(ways, " ")
}

// A network that moves to wireguard sends to each peer in the way before until wireguard was seen to pass, and to none in plain
// text when the time of the move is over; and what the lease says of the host follows.
func TestMovesToWireGuard(t *testing.T) {
	t.Parallel()
	const key = "10.5.73.0-24"
	plain := record("10.5.73.0/24", "172.30.0.73", "vxlan", 0x73)
	r := secretRig(t, vxlanConfig, map[string]*subnet.Record{key: plain})
	tell := func(config string, peer *subnet.Record) {
		t.Helper()
		r.member.tell(news(t, config, map[string]*subnet.Record{key: peer}))
		eventually(t, "the news are in", func() bool {
			r.Agent.mu.Lock()
			defer r.Agent.mu.Unlock()
			return string(r.config) == config && r.peers[key] == peer
		})
	}
	ways := func(what, want string) {
		t.Helper()
		if got := r.kernel.waysOf(key); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	says := func(want ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("the lease says %q", want), func() bool {
			r.member.mu.Lock()
			defer r.member.mu.Unlock()
			l := r.member.advertised[len(r.member.advertised)-1]
			said := l.Backend + string(l.Endpoints[0].Data)
			for _, part := range want {
				part, not := strings.CutPrefix(part, "not ")
				if strings.Contains(said, part) == not {
					return false
				}
			}
			return true
		})
	}
	over := func(after time.Duration) {
		r.Agent.mu.Lock()
		defer r.Agent.mu.Unlock()
		r.latest.Own.Record.Lease = r.planner.lease("", "")
		r.bury(time.Now().Add(after + time.Second))
	}
	ways("before", "overlay.1")
	tell(secretConfig, plain)
	ways("a peer that has not followed", "overlay.1")
	says("wireguard", `"Also":{"Type":"vxlan","Data":{"VNI":1,`)
	both := secretLease(73, keyOf(2), `,"Also":{"Type":"vxlan","Data":`+string(plain.Endpoints[0].Data)+`}`)
	tell(secretConfig, both)
	ways("one that follows", "overlay.1 wg")
	if objs := strings.Join(r.kernel.objects(key), "\n"); !strings.Contains(objs, "persistent-keepalive 5") {
		t.Errorf("nothing has it shake hands: %s", objs)
	}
	session := func(at time.Time) {
		r.kernel.mu.Lock()
		r.kernel.sessions = map[kernel.WGPeerID]kernel.Session{{Link: "overlay-wg", Key: keyOf(2)}: {Handshake: at}}
		r.kernel.mu.Unlock()
		r.kernel.came <- struct{}{}
		r.kernel.came <- struct{}{} // the one before is done with
	}
	session(time.Now().Add(-time.Minute))
	ways("one that was met in another life", "overlay.1 wg")
	session(time.Now())
	eventually(t, "it is met", func() bool { return r.kernel.waysOf(key) == "wg" })
	tell(secretConfig, plain)
	ways("one that goes back", "overlay.1")
	over(retireAfter)
	ways("one that has not followed in time", "")
	if err := r.Status().Peers[0].Error; err != "the network is encrypted, and its lease says vxlan: not sent in plain text" {
		t.Error(err)
	}
	says("wireguard", "not Also")
	tell(secretConfig, both)
	ways("one that follows late", "wg")
	if objs := strings.Join(r.kernel.objects(key), "\n"); strings.Contains(objs, "keepalive") {
		t.Errorf("it is kept alive: %s", objs)
	}

	tell(vxlanConfig, both)
	ways("back, and it has not followed", "overlay-wg wg")
	says("vxlan", `"Also":{"Type":"wireguard","Data":{"PublicKey":"`)
	over(retireAfter)
	ways("back, and it has not followed for long", "overlay-wg wg")
	says("vxlan", `"Also":{"Type":"wireguard","Data":{"PublicKey":"`)
	returned := record("10.5.73.0/24", "172.30.0.73", "vxlan", 0x73)
	returned.Endpoints[0].Data = backend.AddAlso(returned.Endpoints[0].Data, "wireguard", secretLease(73, keyOf(2), "").Endpoints[0].Data)
	tell(vxlanConfig, returned)
	ways("back, and it has followed", "overlay.1 wg")
	over(2*retireAfter + 2*time.Second)
	ways("back for good", "overlay.1")
	says("vxlan", "not Also")
	tell(vxlanConfig, secretLease(73, keyOf(2), ""))
	ways("of another kind of network", "")
	r.member.tell(news(t, vxlanConfig, map[string]*subnet.Record{key: nil}))
	eventually(t, "nothing is left of it", func() bool {
		r.Agent.mu.Lock()
		defer r.Agent.mu.Unlock()
		return len(r.peers) == 0 && len(r.claims) == 0 && len(r.retirement.met) == 0
	})
}

// Of two leases with one key the later is refused, by name, and comes into its own when the other goes or has another.
func TestTwoLeasesOfOneKey(t *testing.T) {
	t.Parallel()
	first, later := secretLease(73, keyOf(2), ""), secretLease(74, keyOf(2), "")
	first.HostID, later.HostID, later.CreateRevision = "first", "later", 2000
	later.Endpoints[0].PublicIP = first.Endpoints[0].PublicIP // behind one address
	r := secretRig(t, secretConfig, map[string]*subnet.Record{"10.5.73.0-24": first, "10.5.74.0-24": later})
	refused := func(key string) string {
		for _, p := range r.Status().Peers {
			if p.Subnets[0] == strings.Replace(key, "-24", "/24", 1) {
				return p.Error
			}
		}
		return "no such peer"
	}
	want := "PublicKey " + keyOf(2).String() + " is that of"
	if err := refused("10.5.74.0-24"); !strings.Contains(err, want) || !strings.Contains(err, "overlayctl wireguard rotate") {
		t.Errorf("the later one: %q", err)
	}
	if err := refused("10.5.73.0-24"); err != "" {
		t.Errorf("the first: %q", err)
	}
	rotated := secretLease(73, keyOf(3), "")
	rotated.HostID = "first"
	r.member.tell(news(t, secretConfig, map[string]*subnet.Record{"10.5.73.0-24": rotated}))
	eventually(t, "the later one is reached", func() bool { return refused("10.5.74.0-24") == "" })
	stolen := secretLease(75, kernel.Secret{8}.Public(), "")
	r.member.tell(news(t, secretConfig, map[string]*subnet.Record{"10.5.75.0-24": stolen}))
	eventually(t, "who has this host's key is refused", func() bool { return refused("10.5.75.0-24") != "" })
}

// A key in two leases, whatever way each is reached, leaves no claim behind.
func TestClaimsEnd(t *testing.T) {
	t.Parallel()
	r := secretRig(t, hostGWConfig, nil)
	r.kernel.far = map[netip.Addr]bool{}
	also := secretLease(73, keyOf(2), `,"Also":{"Type":"host-gw"}`)
	r.member.tell(news(t, secretConfig, map[string]*subnet.Record{"10.5.73.0-24": also}))
	eventually(t, "it is a peer", func() bool { return r.kernel.waysOf("10.5.73.0-24") == "eth0 wg" })
	r.member.tell(news(t, secretConfig, map[string]*subnet.Record{"10.5.73.0-24": nil}))
	eventually(t, "nothing is left of it", func() bool {
		r.Agent.mu.Lock()
		defer r.Agent.mu.Unlock()
		return len(r.peers) == 0 && len(r.claims) == 0
	})
}

// What a dry run prints makes links and peers, and shows no key.
func TestPreviewOfWireGuard(t *testing.T) {
	t.Parallel()
	host, psk := secretHost(), kernel.Secret{1, 2, 3}
	network, err := subnet.ParseNetwork([]byte(`{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard","PSK":"` + psk.Base64() + `"}}`))
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPreview(network, host, Shield{Guard: fullGuard}, nil)
	if err != nil {
		t.Fatal(err)
	}
	peer, plain := secretLease(73, keyOf(2), ""), record("10.5.74.0/24", "172.30.0.74", "vxlan", 0x74)
	lines, problems := p.Plan("", []netip.Prefix{netip.MustParsePrefix("10.5.72.0/24")}, []subnet.Record{*peer, *plain})
	text := strings.Join(lines, "\n")
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "not sent in plain text") {
		t.Errorf("problems: %v", problems)
	}
	at := 0
	for _, part := range []string{
		"ip link add overlay-wg mtu 1420 type wireguard && wg set overlay-wg listen-port 51820 fwmark 0x1000000 private-key STATE/wireguard.key && ip link set overlay-wg up\n",
		"ip address replace 10.5.72.0/32 dev overlay-wg\n",
		"wg set overlay-wg peer " + keyOf(2).String() + " preshared-key FILE endpoint 172.30.0.73:51820 allowed-ips \"10.5.73.0/24\"\n",
		"ip route replace 10.5.0.0/16 dev overlay-wg",
		"ip route replace unreachable 10.5.0.0/16",
		"meta mark 0x1000000 oifname { \"overlay-wg\" } drop",
		"meta iifkind {", `add element inet overlayd links { "overlay-wg" }`,
	} {
		i := strings.Index(text[at:], part)
		if i < 0 {
			t.Errorf("no %q behind\n%s\nin\n%s", part, text[:at], text)
			continue
		}
		at += i
	}
	for _, secret := range []kernel.Secret{psk, host.WireGuard} {
		if strings.Contains(text, secret.Base64()) {
			t.Errorf("a key is shown:\n%s", text)
		}
	}
}

// How a peer is sent to, and what else it may send by, for each network, lease and time of a move. Where the network encrypts and
// does not move, nothing but wireguard is ever chosen.
func TestWays(t *testing.T) {
	t.Parallel()
	lease := func(first, second string) subnet.Lease {
		data := []byte(`{"VNI":1}`)
		if second != "" {
			data = backend.AddAlso(data, second, []byte(`{}`))
		}
		return subnet.Lease{Backend: first, Endpoints: []subnet.Endpoint{{Subnet: netip.MustParsePrefix("10.5.2.0/24"), Data: data}}}
	}
	const refused = "refused"
	for _, test := range []struct {
		network, before string
		met             bool
		first, second   string // of the peer's lease
		send, receive   string
	}{
		{"vxlan", "", false, "vxlan", "", "vxlan", ""},
		{"vxlan", "", false, "wireguard", "", refused, ""},
		{"vxlan", "", false, "wireguard", "vxlan", "vxlan", ""}, // it has followed a change, this host has not
		{"vxlan", "", false, "vxlan", "wireguard", "vxlan", ""},
		{"vxlan", "wireguard", false, "vxlan", "", "vxlan", ""},
		{"vxlan", "wireguard", false, "vxlan", "wireguard", "vxlan", "wireguard"},
		{"vxlan", "wireguard", true, "vxlan", "wireguard", "vxlan", "wireguard"},
		{"vxlan", "wireguard", false, "wireguard", "", "wireguard", ""},
		{"vxlan", "wireguard", false, "wireguard", "vxlan", "wireguard", ""},
		{"wireguard", "vxlan", false, "vxlan", "", "vxlan", ""},
		{"wireguard", "vxlan", true, "vxlan", "", "vxlan", ""},
		{"wireguard", "vxlan", false, "wireguard", "vxlan", "vxlan", "wireguard"},
		{"wireguard", "vxlan", true, "wireguard", "vxlan", "wireguard", ""},
		{"wireguard", "vxlan", false, "vxlan", "wireguard", "vxlan", "wireguard"},
		{"wireguard", "vxlan", true, "vxlan", "wireguard", "wireguard", ""},
		{"wireguard", "vxlan", false, "wireguard", "", "wireguard", ""},
		{"wireguard", "", false, "wireguard", "", "wireguard", ""},
		{"wireguard", "", false, "wireguard", "vxlan", "wireguard", ""},
		{"wireguard", "", false, "vxlan", "wireguard", "wireguard", ""},
		{"wireguard", "", false, "vxlan", "", refused, ""},
		{"wireguard", "", true, "vxlan", "", refused, ""},
		{"wireguard", "", false, "host-gw", "", refused, ""},
		{"wireguard", "", false, "", "", refused, ""},
	} {
		p := &planner{before: test.before, others: map[string]backend.Backend{}}
		p.network.Backend.Type = test.network
		for _, kind := range []string{test.network, test.before} {
			if kind == backend.WireGuard {
				p.others[kind] = struct{ backend.Backend }{} // nobody asks it
			}
		}
		send, receive, err := p.ways(lease(test.first, test.second), test.met)
		got := [2]string{send.Backend, receive.Backend}
		if err != nil {
			got[0] = refused
		}
		if want := [2]string{test.send, test.receive}; got != want {
			t.Errorf("%+v: sends by %q, and receives by %q", test, got[0], got[1])
		}
	}
}
