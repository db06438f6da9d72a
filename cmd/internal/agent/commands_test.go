package agent

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/overlayd/overlayd/backend/extension"
	"github.com/overlayd/overlayd/backend/firewall"
	"github.com/overlayd/overlayd/subnet"
)

const (
	allocConfig     = `{"Network":"10.5.0.0/16","Backend":{"Type":"alloc"}}`
	extensionConfig = `{"Network":"10.5.0.0/16","Backend":{"Type":"extension","SyncCommand":"/sync","PreStartupCommand":"/pre"}}`
)

// fakeCommands says what the test has it say.
type fakeCommands struct {
	noCommands
	mu      sync.Mutex
	told    json.RawMessage
	err     error
	sites   []extension.Site
	changed chan struct{}
	applied chan struct{}
}

func (c *fakeCommands) Changed() <-chan struct{} { return c.changed }
func (c *fakeCommands) Applied() <-chan struct{} { return c.applied }

func (c *fakeCommands) Told(cmds extension.Commands) (json.RawMessage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !cmds.Any() {
		return nil, nil
	}
	return c.told, c.err
}

func (c *fakeCommands) Serve(s extension.Site) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sites = append(c.sites, s)
}

func (c *fakeCommands) says(told string, err error) {
	c.mu.Lock()
	c.told, c.err = json.RawMessage(told), err
	c.mu.Unlock()
	c.changed <- struct{}{}
}

// A host waits for PreStartupCommand, says why it fails, and is ready when all commands have run.
func TestExtensionStarts(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	c := &fakeCommands{err: extension.ErrRunning, changed: make(chan struct{}, 1), applied: make(chan struct{})}
	r.cfg.Commands = c
	r.start(t)
	r.member.tell(news(t, extensionConfig, map[string]*subnet.Record{"10.5.73.0-24": record("10.5.73.0/24", "172.30.0.12", "extension", 0)}))
	eventually(t, "the network is known", func() bool { return r.Status().Etcd.Connected })
	if s := r.Status(); s.Ready || len(s.Problems) > 0 {
		t.Errorf("while it runs: ready %t, problems %q", s.Ready, s.Problems)
	}
	c.says("", errors.New("PreStartupCommand: exit status 1"))
	eventually(t, "it is said", func() bool {
		return slices.ContainsFunc(r.Status().Problems, func(p string) bool { return strings.HasSuffix(p, "PreStartupCommand: exit status 1") })
	})
	c.says(`"key"`, nil)
	eventually(t, "the lease says what it printed", func() bool {
		r.member.mu.Lock()
		defer r.member.mu.Unlock()
		n := len(r.member.advertised)
		return n > 0 && string(r.member.advertised[n-1].Endpoints[0].Data) == `"key"`
	})
	eventually(t, "commands are to be run", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := len(c.sites)
		return n > 0 && c.sites[n-1].Sync == "/sync" && c.sites[n-1].Network[0].String() == "10.5.0.0/16"
	})
	if r.Status().Ready {
		t.Error("ready before commands were run")
	}
	close(c.applied)
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	if s := r.Status(); s.Peers[0].Path != "extension" || s.Peers[0].Error != "" {
		t.Errorf("peer %+v", s.Peers[0])
	}
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "there are no commands any more", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.sites[len(c.sites)-1].Any()
	})
}

// Where others carry the packets, peers have no routes, and what they send is let in by all uplinks; while a network moves
// there, each peer is reached as its lease says.
func TestAllocPlans(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.cfg.Shield.Guard = fullGuard
	host := r.cfg.FindHost
	r.cfg.FindHost = func(n subnet.Network, inUse []netip.Addr) (Host, error) {
		h, err := host(n, inUse)
		h.Uplinks = []string{"eth0", "eth1"}
		return h, err
	}
	r.start(t)
	peers := map[string]*subnet.Record{
		"10.5.73.0-24": record("10.5.73.0/24", "172.30.0.12", "alloc", 0),
		"10.5.74.0-24": record("10.5.74.0/24", "172.30.0.13", "vxlan", 0x13),
	}
	r.member.tell(news(t, allocConfig, peers))
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	if got := r.kernel.routes(); len(got) != 1 || !strings.HasPrefix(got[0], "10.5.74.0/24 ") {
		t.Errorf("routes %q", got)
	}
	s := r.Status()
	if s.Peers[0].Path != "others" || s.Peers[1].Path != "vxlan" || s.MTU != 1500 || len(s.Problems) > 0 {
		t.Errorf("status %+v", s)
	}
	let := r.elements.let()
	for _, want := range []string{`near { "eth0" }'`, `near { "eth1" }'`} {
		if !slices.Contains(let, want) {
			t.Errorf("let in: %q, want %s", let, want)
		}
	}
	if !slices.ContainsFunc(r.firewall.wanted(), func(f firewall.Rule) bool { u, ok := f.(firewall.Uplink); return ok && u.Link == "eth1" && u.Peers }) {
		t.Errorf("rules %v: want what comes by eth1 let in", r.firewall.wanted())
	}
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "it is vxlan", func() bool { return r.Status().Network == vxlanConfig })
	if s := r.Status(); s.Peers[0].Path != "others" {
		t.Errorf("of one that has not followed: %+v", s.Peers[0])
	}
}
