package agent

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

const udpConfig = `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`

// udpLink is the host's own link for flannel's udp; the zero IPIP if there is none.
func (k *fakeKernel) udpLink() (l kernel.IPIP) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, o := range k.owners[self] {
		if i, ok := o.(kernel.IPIP); ok {
			l = i
		}
	}
	return l
}

// While flannel has a host in a network of udp, which names no backend and reads packets from a socket, inner checksums are
// finished; when it is gone, they need not be.
func TestUDPAmongFlannels(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	ours, flannels := record("10.5.73.0/24", "172.30.0.12", "udp", 0), record("10.5.74.0/24", "172.30.0.13", "", 0)
	ours.Endpoints[0].Data, flannels.HostID = json.RawMessage(`{"Port":8285,"Unfinished":true}`), ""
	r.member.tell(news(t, udpConfig, map[string]*subnet.Record{ours.Key(): ours}))
	eventually(t, "offload is on among ours", func() bool { return r.kernel.udpLink().Unfinished })
	r.member.tell(news(t, udpConfig, map[string]*subnet.Record{ours.Key(): ours, flannels.Key(): flannels}))
	eventually(t, "offload is off for flannel's host, which is reached", func() bool {
		reached := func(p api.Peer) bool { return p.Path == "udp" && p.Subnets[0] == "10.5.74.0/24" }
		l := r.kernel.udpLink()
		return l.Port == 8285 && !l.Unfinished && slices.ContainsFunc(r.Status().Peers, reached)
	})
	r.kernel.mu.Lock()
	for owner, objs := range r.kernel.owners {
		if owner != self && slices.ContainsFunc(objs, func(o kernel.Object) bool { return o.Kind() == kernel.KindLink }) {
			t.Errorf("%s claims a link of its own: %v", owner, objs)
		}
	}
	r.kernel.mu.Unlock()
	r.member.tell(news(t, udpConfig, map[string]*subnet.Record{flannels.Key(): nil}))
	eventually(t, "offload is on again", func() bool { return r.kernel.udpLink().Unfinished })
}

// A lease that names no backend is flannel's udp in a network of udp, and in one that was that a moment ago; else nobody knows.
func TestUnnamedBackend(t *testing.T) {
	t.Parallel()
	own, peer := record("10.5.72.0/24", "172.30.0.11", "vxlan", 0x11).Lease, record("10.5.73.0/24", "172.30.0.12", "", 0).Lease
	for name, tt := range map[string]struct {
		config string
		former []kernel.Object
		path   string
	}{
		"udp":      {udpConfig, nil, "udp"},
		"alloc":    {`{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}`, nil, "others"},
		"vxlan":    {vxlanConfig, nil, ""},
		"was udp":  {vxlanConfig, []kernel.Object{kernel.UDPTun{Name: kernel.UDPName, Port: 8285}}, "udp"},
		"was ipip": {vxlanConfig, []kernel.Object{kernel.IPIP{Name: kernel.IPIPName}}, ""},
	} {
		network, err := subnet.ParseNetwork([]byte(tt.config))
		if err != nil {
			t.Fatal(err)
		}
		host := testHost("172.30.0.11")
		host.Former = tt.former
		p, err := newPlanner(network, host)
		if err != nil {
			t.Fatal(err)
		}
		if path, _, err := p.peer(own, peer, func(netip.Addr) bool { return false }, false); path != tt.path || (err == nil) != (path != "") {
			t.Errorf("%s: path %q, %v, want %q", name, path, err, tt.path)
		}
	}
}

// Peers hear of a new way once the guard lets it in; where there is no guard nothing waits for one.
func TestAnnouncesWhatTheGuardLetsIn(t *testing.T) {
	t.Parallel()
	for name, unguarded := range map[string]error{"guarded": nil, "no nft": errors.New("no nft")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, t.TempDir())
			r.cfg.Shield.Guard = firewall.Guard{Tunnel: true}
			r.cfg.Unguarded = func() error { return unguarded }
			r.start(t)
			r.member.tell(news(t, vxlanConfig, nil))
			eventually(t, "the host is ready", func() bool { return r.Status().Ready })
			r.firewall.becomes(task.Status{Pending: true, Err: errors.New("nft hangs")})
			r.member.tell(news(t, udpConfig, nil))
			says := func() string {
				r.member.mu.Lock()
				defer r.member.mu.Unlock()
				return r.member.advertised[len(r.member.advertised)-1].Backend
			}
			eventually(t, "the kernel has the new way", func() bool { return r.kernel.udpLink() != kernel.IPIP{} })
			if unguarded == nil {
				if got := says(); got != "vxlan" {
					t.Errorf("peers were told %s before the guard lets it in", got)
				}
				r.firewall.becomes(task.Status{})
			}
			eventually(t, "peers are told", func() bool { return says() == "udp" })
		})
	}
}

// A network moves from wireguard to udp, and meanwhile a host comes that needs inner checksums finished: what the lease says of the
// way before stays, until the move is over.
func TestOffloadChangesInAMove(t *testing.T) {
	t.Parallel()
	flannels := record("10.5.74.0/24", "172.30.0.13", "", 0)
	flannels.HostID = ""
	r := secretRig(t, secretConfig, nil)
	r.member.tell(news(t, udpConfig, nil))
	eventually(t, "offload is on", func() bool { return r.kernel.udpLink().Unfinished })
	r.member.tell(news(t, udpConfig, map[string]*subnet.Record{flannels.Key(): flannels}))
	eventually(t, "offload is off", func() bool { l := r.kernel.udpLink(); return l.Port == 8285 && !l.Unfinished })
	says := func(also bool) {
		t.Helper()
		r.meddle(func() {
			l := r.planner.lease("", "")
			if second, _ := backend.Also(l); (second.Backend == backend.WireGuard) != also {
				t.Errorf("besides udp the lease says %q", second.Backend)
			}
			r.latest.Own.Record.Lease = l
		})
	}
	says(true)
	eventually(t, "peers are told", func() (told bool) {
		r.meddle(func() { told = !r.unannounced })
		return told
	})
	r.meddle(func() { r.bury(time.Now().Add(retireAfter + time.Second)) })
	says(false)
}
