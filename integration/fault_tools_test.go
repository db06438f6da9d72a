package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/subnet/leasecache"
)

// shortTTL is the shortest --lease-ttl that overlayd takes.
const shortTTL = 10 * time.Second

// The ways of losing etcd, as nft says them.
const (
	swallowed = "drop"
	refused   = "reject with tcp reset"
)

// loseEtcd cuts the host, and nobody else, from etcd at these addresses; none: wherever it is.
func (h *Host) loseEtcd(how string, addrs ...string) {
	h.t.Helper()
	to, from := "", ""
	if len(addrs) > 0 {
		set := "{ " + strings.Join(addrs, ", ") + " } "
		to, from = "ip daddr "+set, "ip saddr "+set
	}
	h.Exec("nft", "add table inet fault;"+
		"add chain inet fault out { type filter hook output priority 0; };"+
		"add chain inet fault in { type filter hook input priority 0; };"+
		"add rule inet fault out "+to+"tcp dport 2379 "+how+";"+
		"add rule inet fault in "+from+"tcp sport 2379 "+how)
}

// findEtcd undoes loseEtcd.
func (h *Host) findEtcd() {
	h.t.Helper()
	h.Exec("nft", "delete", "table", "inet", "fault")
}

// hostStatus is what these tests read of overlayctl status -o json.
type hostStatus struct {
	HostID   string
	Ready    bool
	Degraded bool
	Stage    string
	Problems []string
	Subnets  []string
	Backend  string
	Network  string
	MTU      int
	Lease    struct {
		State, Reason string
		Expires       time.Time
	}
	Peers []struct {
		Host, Path, Error string
		Subnets           []string
	}
	Kernel struct {
		InStep bool
		Failed []string
	}
	Etcd struct {
		Connected bool
		Error     string
	}
	Names    *namesStatus
	Networks []hostNetwork
	FastPath struct {
		Off        string
		Containers int
	}
}

// hostNetwork is what the daemon says of a network that has a name.
type hostNetwork struct {
	Name     string
	Ready    bool
	Stage    string
	Problems []string
	Subnets  []string
	Peers    []struct{ Host, Path, Error string }
	Kernel   struct{ InStep bool }
}

func (h *Host) status() (hostStatus, error) {
	var s hostStatus
	out, err := h.TryOverlayctl("status", "-o", "json", "--run-dir", h.RunDir)
	if out == "" {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s) // the exit code says again whether it is degraded
}

// waitStatus waits until the host's status is as wanted, and returns it.
func (h *Host) waitStatus(what string, ok func(hostStatus) bool) hostStatus {
	h.t.Helper()
	var s hostStatus
	eventually(h.t, h.Name+": "+what, func() (err error) {
		if s, err = h.status(); err == nil && !ok(s) {
			err = fmt.Errorf("status is %+v", s)
		}
		return err
	})
	return s
}

// waitWell waits until nothing needs attention.
func (h *Host) waitWell() hostStatus {
	h.t.Helper()
	return h.waitStatus("all is well", func(s hostStatus) bool {
		return s.Ready && !s.Degraded && s.Etcd.Connected && s.Lease.State == "held"
	})
}

// waitProblem waits until one of the problems in the status has each text in it.
func (h *Host) waitProblem(texts ...string) hostStatus {
	h.t.Helper()
	return h.waitStatus(fmt.Sprintf("a problem that says %q", texts), func(s hostStatus) bool {
		return slices.ContainsFunc(s.Problems, func(p string) bool { return hasAll(p, texts) })
	})
}

func hasAll(s string, texts []string) bool {
	for _, text := range texts {
		if !strings.Contains(s, text) {
			return false
		}
	}
	return true
}

// logs checks that a line of the daemon's log has each text in it.
func (h *Host) logs(texts ...string) {
	h.t.Helper()
	for line := range strings.Lines(h.Daemon.Output.String()) {
		if hasAll(line, texts) {
			return
		}
	}
	h.t.Errorf("no line of the log on %s says %q", h.Name, texts)
}

// metric is a number of /metrics; 0 if it is not there.
func (h *Host) metric(name string) float64 {
	h.t.Helper()
	_, body, err := h.Get("http://127.0.0.1:9417/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				h.t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// counted waits until a kind of lease error is counted.
func (h *Host) counted(kind string) {
	h.t.Helper()
	eventually(h.t, h.Name+" counts "+kind, func() error {
		if h.metric(`overlayd_lease_errors_total{kind="`+kind+`"}`) == 0 {
			return errors.New("0")
		}
		return nil
	})
}

// waitCached waits until the host will know all its peers when it is started without etcd.
func (h *Host) waitCached(peers int) {
	h.t.Helper()
	eventually(h.t, h.Name+" has written its cache", func() error {
		var identity struct{ HostID string }
		b, err := os.ReadFile(filepath.Join(h.State, "identity.json"))
		if err == nil {
			err = json.Unmarshal(b, &identity)
		}
		if v := leasecache.Read(h.State, identity.HostID, leasecache.Now()); err == nil && (len(v.Peers) != peers || v.Own == nil) {
			err = fmt.Errorf("%d peers in it, own %v", len(v.Peers), v.Own)
		}
		return err
	})
}

// subnets are the host's, IPv4 before IPv6.
func (h *Host) subnets() (subnets []string) {
	h.t.Helper()
	for i := range h.Addrs {
		gateway := envValue(h.t, h, []string{"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"}[i])
		subnets = append(subnets, networkOf(gateway))
	}
	return subnets
}

// key is the host's lease in etcd.
func (h *Host) key() string {
	h.t.Helper()
	return subnetKey(h.subnets()...)
}

// measure logs how long it took until f returned, and fails the test if that was more than three times the bound:
// these machines are busy.
func measure(t *testing.T, what string, bound time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	took := time.Since(start)
	t.Logf("measured: %s: %v", what, took.Round(10*time.Millisecond))
	if took > 3*slow*bound {
		t.Errorf("%s took %v, want at most %v on a machine that is idle", what, took, bound)
	}
}

// rig is two hosts with a container each, and packets between them.
type rig struct {
	*Lab
	wire   *Segment
	etcd   *etcdServer
	hosts  []*Host
	a, b   *Container
	stream *Stream
}

// newRig is a network of both families over vxlan; args are overlayd's.
func newRig(t *testing.T, args ...string) *rig {
	t.Helper()
	r := &rig{}
	r.Lab, r.wire, r.etcd = newFaultWire(t, `{"Type":"vxlan"}`)
	r.hosts = r.NewHosts(r.wire, 2)
	startAll(t, r.hosts, args...)
	r.a, r.b = r.hosts[0].NewContainer(), r.hosts[1].NewContainer()
	r.stream = NewStream(r.a, r.b)
	return r
}

// well waits until nothing is wrong any more anywhere, and checks that the hosts have the subnets that they had, and
// that no packet of the stream was lost.
func (r *rig) well(t *testing.T, keys ...string) {
	t.Helper()
	for i, h := range r.hosts {
		h.waitWell()
		h.WaitPeers(len(r.hosts) - 1)
		if i < len(keys) && h.key() != keys[i] {
			t.Errorf("%s has %s, want %s as before", h.Name, h.key(), keys[i])
		}
	}
	r.stream.Pass(250)
	r.stream.Stop()
}

// keys are the leases of the hosts.
func (r *rig) keys() []string {
	r.t.Helper()
	var keys []string
	for _, h := range r.hosts {
		keys = append(keys, h.key())
	}
	return keys
}
