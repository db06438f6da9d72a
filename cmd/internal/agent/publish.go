package agent

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// publish tells the world where the host stands: subnet.env for runtimes, READY and STATUS for systemd. The order
// is a promise: who sees READY can attach a container, and it will reach every peer. It says whether the host became
// ready.
func (a *Agent) publish() (news bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.publishEnv()
	ready, stage := a.judge()
	if a.stuck = !ready && a.isStuck(time.Now()); a.stuck {
		a.cfg.Share.begin()
	}
	if stage != a.stage {
		a.stage = stage
		a.cfg.Notify("STATUS=" + stage) // before READY: then systemctl start returns, and is asked for it
		if !ready && !a.ready {         // else it is said below
			a.cfg.Log.Info("stage", "stage", stage)
		}
	}
	if ready != a.ready {
		a.ready, news = ready, ready
		if ready {
			a.cfg.Log.Info("ready", "subnets", subnets(a.own.Lease), "backend", a.network.Backend.Type, "peers", len(a.peers))
			a.cfg.Notify("READY=1")
		} else {
			a.cfg.Log.Warn("not ready", "stage", stage)
		}
	}
	return news
}

// isStuck says whether a host that has no lease waits for what nobody but the operator, or another host, can do. What a claim that goes
// on waits for it does not wait for long.
func (a *Agent) isStuck(now time.Time) bool {
	if a.own != nil || a.planner == nil || a.latest.Own.Reason == "" {
		a.waits = time.Time{}
	} else if a.waits.IsZero() {
		a.waits = now
	}
	told := a.latest.Complete && a.latest.Connected || now.Sub(a.started) > knownWithin
	return a.own == nil && (a.problems[problemConfig] != "" || told && a.latest.Err != nil || !a.waits.IsZero() && now.Sub(a.waits) > knownWithin)
}

// judge says whether containers can be attached and reach every peer that can be reached at all, and what the
// daemon is doing or waiting for.
func (a *Agent) judge() (ready bool, stage string) {
	k := a.cfg.Kernel.Status()
	switch {
	case a.planner == nil && a.problems[problemConfig] != "":
		return false, a.problems[problemConfig]
	case a.planner == nil && a.latest.Err != nil:
		return false, a.latest.Err.Error()
	case a.own == nil && a.latest.Own.Reason != "":
		return false, a.latest.Own.Reason
	case a.own == nil:
		return false, "claiming a subnet"
	case a.lags(k):
		return false, fmt.Sprintf("programming the kernel, %d objects to go", k.Pending+a.ownFailures(k)+a.unheld())
	case a.problems[problemEnv] != "":
		return false, a.problems[problemEnv]
	case !a.refused.IsZero():
		return true, "degraded: no new containers: " + cmp.Or(a.latest.Own.Reason, "claiming another subnet")
	case a.latest.Remembered:
		return true, fmt.Sprintf("degraded: etcd does not answer, serving %s, %s, as last seen", a.serving(), a.countPeers())
	}
	return true, fmt.Sprintf("serving %s, %s", a.serving(), a.countPeers())
}

func (a *Agent) serving() string { return strings.Join(subnets(a.own.Lease), ", ") }

func (a *Agent) countPeers() string {
	count := fmt.Sprintf("%d peers", len(a.peers))
	if len(a.peers) == 1 {
		count = "1 peer"
	}
	if n := len(a.errs); n > 0 {
		count += fmt.Sprintf(" (%d cannot be reached)", n)
	}
	return count
}

// lags says whether the kernel is not complete; of a host that was ready, for longer than an event takes.
func (a *Agent) lags(k kernel.Status) bool {
	if a.programmed && k.Pending+a.ownFailures(k)+a.unheld() == 0 {
		a.behind = time.Time{}
		return false
	}
	if a.behind.IsZero() {
		a.behind = time.Now()
	}
	return !a.ready || time.Since(a.behind) > patience
}

// ownFailures counts the objects that the kernel refuses, but for those of peers alone, whoever of them claimed them
// first. Those are the peers' trouble: a lease that lies must not make this host unready.
func (a *Agent) ownFailures(k kernel.Status) int {
	var own []string
	if a.planner != nil && len(k.Failed) > 0 {
		for _, o := range a.planner.self(a.own.Lease) {
			own = append(own, o.String())
		}
	}
	n := 0
	for _, f := range k.Failed {
		if f.Owner == self || f.Owner == "" || slices.Contains(own, f.Object) {
			n++
		}
	}
	return n
}

// publishEnv keeps subnet.env as it should be from when the kernel is complete. From when another host holds our subnet
// until we hold one again there is a refusal in its place: who starts containers now would give them addresses that are
// not ours to give.
func (a *Agent) publishEnv() {
	k := a.cfg.Kernel.Status()
	var err error
	switch {
	case a.latest.Own.State == etcdstore.Taken, a.moving, a.latest.Remembered && a.latest.Own.State != etcdstore.Held:
		err = a.refuse(a.latest.Own.Reason)
	case a.own == nil || !a.programmed:
		return
	case !a.refused.IsZero() && a.latest.Own.State != etcdstore.Held:
	case a.offered || k.Pending+a.ownFailures(k)+a.unheld() == 0:
		err = a.offer()
	}
	if err != nil {
		err = fmt.Errorf("cannot write subnet.env: %w", err)
	}
	a.attend(problemEnv, err)
}

// RefusalName is beside subnet.env; the CNI plugin reads it.
const RefusalName = "subnet.refused"

func (a *Agent) refuse(reason string) error {
	if err := remove(a.cfg.SubnetFile); err != nil {
		return err
	}
	a.offered = false
	if a.refused.IsZero() {
		a.refused = time.Now()
	}
	text := []byte(reason + "\n")
	if have, err := subnet.ReadFile(a.refusal()); err == nil && bytes.Equal(have, text) {
		return nil
	}
	return renameio.WriteFile(a.refusal(), text, 0o644)
}

func (a *Agent) refusal() string { return filepath.Join(filepath.Dir(a.cfg.SubnetFile), RefusalName) }

// offer writes subnet.env if it differs from what stands in the file.
func (a *Agent) offer() error {
	env := subnet.Env{MTU: a.planner.own.MTU(), IPMasq: a.cfg.Shield.Masquerade}
	for _, pool := range a.network.Pools {
		env.Networks = append(env.Networks, pool.Prefix)
	}
	for _, e := range a.own.Endpoints {
		env.Subnets = append(env.Subnets, subnet.Gateway(e.Subnet))
	}
	if have, err := subnet.ReadFile(a.cfg.SubnetFile); err != nil || !bytes.Equal(have, env.Format()) {
		if err := subnet.WriteEnv(a.cfg.SubnetFile, env); err != nil {
			return err
		}
	}
	a.offered, a.refused = true, time.Time{}
	return remove(a.refusal())
}

// remove removes a file that may be absent.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// attend notes what needs attention, or that nothing does (nil), and logs what is news of it.
func (a *Agent) attend(p problem, err error) {
	was := a.problems[p]
	switch {
	case err == nil && was != "":
		a.cfg.Log.Info("needs no attention any more", "was", was)
		delete(a.problems, p)
	case err != nil && err.Error() != was:
		a.cfg.Log.Error("needs attention", "err", err)
		a.problems[p] = err.Error()
	}
}

// Ready says whether containers can be attached, and what the daemon is doing.
func (a *Agent) Ready() (ready bool, stage string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ready, a.stage
}

// Stuck says whether the network waits for what nobody but its operator, or another host, can do; and whether etcd has none.
func (a *Agent) Stuck() (stuck, none bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stuck, a.stuck && a.planner == nil && a.latest.Network == nil && errors.Is(a.latest.Err, etcdstore.ErrNoNetwork)
}

// Status says everything about the host, for overlayctl.
func (a *Agent) Status() api.Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.cfg.Kernel.Status()
	s := api.Status{
		Version: a.cfg.Version,
		HostID:  a.cfg.State.HostID,
		Host:    a.cfg.HostName,
		Started: a.started,
		Ready:   a.ready,
		Stage:   a.stage,
		Etcd:    a.etcdStatus(),
		Lease:   api.Lease{State: string(a.latest.Own.State), Reason: a.latest.Own.Reason},
		Kernel:  kernelStatus(k),
		Subnets: []string{}, PublicIP: []string{}, Peers: []api.Peer{},
	}
	a.addWholes(&s.Kernel)
	s.Guard, s.Policy = a.guardStatus(), a.cfg.Policy.Status()
	if a.cfg.Names != nil {
		s.Names = a.cfg.Names.Status()
	}
	if at := a.latest.Own.Expires; !at.IsZero() {
		s.Lease.Expires = &at
	}
	if a.planner != nil {
		s.Network, s.Backend = string(subnet.Redact(a.config)), a.network.Backend.Type
		s.Underlay, s.MTU = a.planner.host.Link, a.planner.own.MTU()
		s.PublicIP = publicIPs(a.planner.lease("", ""))
	}
	if a.own != nil {
		s.Subnets = subnets(a.own.Lease)
	}
	var packets map[netip.Prefix]fastpath.PeerPackets
	s.FastPath, packets = a.cfg.Fast.Status()
	s.WireGuard = a.wireGuardStatus(k)
	sessions := a.cfg.Kernel.Sessions()
	for _, key := range slices.Sorted(maps.Keys(a.peers)) {
		p, objs := a.peerStatus(key, packets)
		s.Peers = append(s.Peers, p)
		if s.WireGuard != nil {
			s.WireGuard.Peers = append(s.WireGuard.Peers, wireGuardPeers(a.peers[key].Lease, objs, sessions)...)
		}
	}
	s.Problems = a.problemLines()
	s.Degraded = len(s.Problems) > 0 || len(a.errs) > 0 || len(s.Kernel.Failed) > 0
	return s
}

// peerStatus says how a peer is reached, and by what objects.
func (a *Agent) peerStatus(key string, packets map[netip.Prefix]fastpath.PeerPackets) (p api.Peer, objs []kernel.Object) {
	r := a.peers[key]
	p = api.Peer{
		HostID: r.HostID, Host: r.Host, Backend: r.Backend,
		Subnets: subnets(r.Lease), PublicIPs: publicIPs(r.Lease), Outside: r.Outside(),
	}
	for _, e := range r.Endpoints[:len(r.Endpoints)*min(len(packets), 1)] {
		p.Fast = append(p.Fast, api.FastPackets(packets[e.Subnet]))
	}
	if err := cmp.Or(a.errs[key], a.cfg.Commands.PeerErr(key)); err != nil {
		p.Error = err.Error()
	} else if a.programmed && !reservation(*r) {
		p.Path, objs, _ = a.planner.peer(a.own.Lease, r.Lease, a.isNear, a.retirement.met[key])
	}
	return p, objs
}

// problemLines are the host's own problems: what is wrong with a peer, or an object, is said there.
func (a *Agent) problemLines() []string {
	lines := []string{}
	for _, p := range slices.Sorted(maps.Keys(a.problems)) {
		lines = append(lines, a.problems[p])
	}
	if err := a.latest.Err; err != nil {
		lines = append(lines, err.Error())
	}
	if reason := a.latest.Own.Reason; reason != "" {
		lines = append(lines, reason)
	}
	return lines
}

func (a *Agent) etcdStatus() api.Etcd {
	e := api.Etcd{Endpoints: a.cfg.Endpoints(), Connected: a.latest.Connected, Revision: a.latest.Revision}
	if a.latest.Err != nil {
		e.Error = a.latest.Err.Error()
	}
	return e
}

func kernelStatus(k kernel.Status) api.Kernel {
	s := api.Kernel{InStep: k.InStep, Pending: k.Pending, Objects: map[string]int{}, Healed: map[string]int{}, Failed: []string{}}
	for kind, n := range k.Objects {
		s.Objects[kind.String()] = n
	}
	for kind, n := range k.Healed {
		s.Healed[kind.String()] = n
	}
	for _, f := range k.Failed[:min(len(k.Failed), 100)] {
		s.Failed = append(s.Failed, fmt.Sprintf("%s: %v", f.Object, f.Err))
	}
	return s
}

func subnets(l subnet.Lease) []string {
	s := []string{}
	for _, e := range l.Endpoints {
		s = append(s, e.Subnet.String())
	}
	return s
}

// Endpoints are the containers of this host.
func (a *Agent) Endpoints() []api.Endpoint { return a.cfg.Policy.Endpoints() }

// Denials are what policies denied here.
func (a *Agent) Denials() api.Denials { return a.cfg.Policy.Denials() }

// PublicIPs are the addresses at which peers reach this host, as it knows them now; none: not yet.
func (a *Agent) PublicIPs() (all []netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.planner != nil {
		for _, e := range a.planner.lease("", "").Endpoints {
			all = append(all, e.PublicIP)
		}
	}
	return all
}

func publicIPs(l subnet.Lease) []string {
	s := []string{}
	for _, e := range l.Endpoints {
		if e.PublicIP != (netip.Addr{}) {
			s = append(s, e.PublicIP.String())
		}
	}
	return s
}
