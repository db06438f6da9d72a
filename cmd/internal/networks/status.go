package networks

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/cmd/internal/api"
)

// first is the network that the host's readiness goes by: the unnamed one or, where there is none, the first of the others; nil:
// there is no network.
func first(all map[string]*member) (name string, m *member) {
	names := slices.Sorted(maps.Keys(all)) // the unnamed is the first
	for _, name := range names {
		if m := all[name]; m.Agent == nil || !m.none() {
			return name, m
		}
	}
	return "", nil
}

// none says whether etcd has no such network.
func (m *member) none() bool {
	_, none := m.Stuck()
	return none
}

// stands says how a network stands.
func (m *member) stands() (ready bool, stage string) {
	if m.err != nil {
		return false, m.err.Error()
	}
	return m.Ready()
}

// judge says whether the host is ready, and what it does or waits for: it is as its first network, and all others were ready, or
// wait for what only others can do.
func (h *Host) judge() (ready bool, stage string) {
	all := h.members()
	name, m := first(all)
	ready, stage = true, "in no network yet"
	if m != nil {
		if ready, stage = m.stands(); name != "" {
			stage = fmt.Sprintf("network %s: %s", name, stage)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		m := all[name]
		up, why := m.stands()
		settled := m.settled || up
		if !settled && m.Agent != nil {
			settled, _ = m.Stuck()
		}
		h.mu.Lock()
		if h.all[name] != nil && settled {
			h.all[name].settled = true
		}
		h.mu.Unlock()
		if name != "" && !settled && ready {
			ready, stage = false, fmt.Sprintf("network %s: %s", name, why)
		}
	}
	return ready, stage
}

// tell tells systemd how the host stands, where that is news.
func (h *Host) tell() {
	ready, stage := h.judge()
	h.mu.Lock()
	was, said := h.ready, h.stage
	h.ready, h.stage = ready, stage
	h.mu.Unlock()
	if stage != said {
		h.cfg.Notify("STATUS=" + stage)
	}
	if ready && !was {
		h.cfg.Notify("READY=1")
	}
}

// Ready says whether containers can be attached in all networks that work, and what the daemon is doing.
func (h *Host) Ready() (ready bool, stage string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ready, h.stage
}

// Status says everything about the host, for overlayctl.
func (h *Host) Status() (s api.Status) {
	all := h.members()
	unnamed := all[""]
	none := unnamed == nil || unnamed.Agent == nil || unnamed.none()
	if unnamed != nil && unnamed.Agent != nil {
		s = unnamed.Status()
	}
	if none { // that it is not there is no problem
		s.Problems, s.Degraded = []string{}, false
	}
	if unnamed != nil && unnamed.err != nil {
		s.Problems, s.Degraded = append(s.Problems, unnamed.err.Error()), true
	}
	h.mu.Lock()
	s.Ready, s.Stage = h.ready, h.stage
	if h.denied != nil {
		s.Problems, s.Degraded = append(s.Problems, fmt.Sprintf("which networks there are, and which are peered, is not known: %v", h.denied)), true
	}
	h.mu.Unlock()
	s.Networks = []api.Network{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if name == "" {
			continue
		}
		m, n := all[name], api.Network{Name: name, Problems: []string{}, Subnets: []string{}, PublicIP: []string{}, Peers: []api.Peer{}}
		if m.Agent != nil {
			n = m.Status().Named(name)
		}
		if m.err != nil {
			n.Ready, n.Degraded, n.Stage, n.Problems = false, true, m.err.Error(), append(n.Problems, m.err.Error())
		}
		for _, p := range n.Problems {
			s.Problems = append(s.Problems, fmt.Sprintf("network %s: %s", name, p))
		}
		s.Degraded = s.Degraded || n.Degraded
		s.Networks = append(s.Networks, n)
	}
	return s
}

// of is the member of a name; nil: the host is not in the network.
func (h *Host) of(name string) *member { return h.members()[name] }

// PublicIPs are the addresses at which peers reach this host, as it knows them now; none: not yet.
func (h *Host) PublicIPs() (all []netip.Addr) {
	members := h.members()
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if m := members[name]; m.Agent != nil && len(all) == 0 {
			all = m.PublicIPs()
		}
	}
	return all
}

// Endpoints are the containers of this host, network by network.
func (h *Host) Endpoints() []api.Endpoint {
	all, members := []api.Endpoint{}, h.members()
	for _, name := range slices.Sorted(maps.Keys(members)) {
		if m := members[name]; m.Agent != nil {
			all = append(all, m.Agent.Endpoints()...)
		}
	}
	return all
}

// Denials are what policies of the unnamed network denied here: of others packets are counted, and not told.
func (h *Host) Denials() api.Denials {
	if m := h.of(""); m != nil && m.Agent != nil {
		return m.Agent.Denials()
	}
	return api.Denials{Last: []api.Denial{}}
}

// SetFastPath has the fast path used, or not, until the daemon starts again.
func (h *Host) SetFastPath(mode api.FastPathMode) {
	if m := h.of(""); m != nil && m.Agent != nil {
		m.Agent.SetFastPath(mode)
	}
}

// RotateWireGuard gives the host another wireguard key in a network.
func (h *Host) RotateWireGuard(ctx context.Context, network string) (publicKey string, err error) {
	m := h.of(network)
	switch {
	case m == nil:
		return "", fmt.Errorf("this host is in no network %s", network)
	case m.Agent == nil:
		return "", m.err
	}
	return m.Agent.RotateWireGuard(ctx, network)
}
