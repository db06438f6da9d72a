package agent

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

const switchedOff = "it is switched off"

// SetMode has it used, or not, from now on.
func (f *FastPath) SetMode(mode api.FastPathMode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if mode == f.mode {
		return
	}
	f.cfg.Log.Info("fast path", "mode", mode, "was", f.mode)
	if f.mode = mode; f.path == nil {
		f.err = nil // it is tried again
	}
	f.use()
	task.Signal(f.wake)
}

// SetOwn says what this host's end is. Nothing is fast while it is the zero FastEnd.
func (f *FastPath) SetOwn(end FastEnd) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if reflect.DeepEqual(end, f.end) {
		return
	}
	if f.end = end; f.path != nil {
		f.path.SetOwn(end.Own)
	}
	task.Signal(f.wake)
}

// Replace says what all owners have; nil: nobody has looked, because it was not Active.
func (f *FastPath) Replace(all []fastpath.Claim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.path != nil && all != nil {
		f.empty = false
		f.path.Replace(all)
	}
}

// Update says what some owners have.
func (f *FastPath) Update(changed []fastpath.Claim) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.path != nil && !f.empty && len(changed) > 0 {
		f.path.Update(changed)
	}
}

// Active says whether it is of any use to Replace and Update.
func (f *FastPath) Active() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.path != nil
}

// Loaded receives when it was loaded, and knows no peers if Empty says so.
func (f *FastPath) Loaded() <-chan struct{} { return f.loaded }

// Empty says whether it was loaded and nobody has said yet what owners have.
func (f *FastPath) Empty() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.empty
}

// SetSlow has judge say which addresses of containers must go the slow way, whose they are now. It must call nothing of f.
func (f *FastPath) SetSlow(judge func(netip.Addr, attachment.Key) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.slow = judge; f.path != nil {
		f.path.SetSlow(f.judge())
	}
}

// judge is f.slow of who has an address now.
func (f *FastPath) judge() func(netip.Addr) bool {
	slow := f.slow
	return func(addr netip.Addr) bool { return slow(addr, (*f.owners.Load())[addr]) }
}

// Slow says that addresses of containers must go the slow way, or need not any more, if they are still whose judge says. It
// holds when it returns.
func (f *FastPath) Slow(addrs []netip.Addr, slow bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slow {
		addrs = slices.DeleteFunc(slices.Clone(addrs), f.judge())
	}
	if f.path != nil && len(addrs) > 0 {
		f.path.Slow(addrs, slow)
	}
}

// Status tells what it does, and of packets that were fast, by the peer's subnet.
func (f *FastPath) Status() (api.FastPath, map[netip.Prefix]fastpath.PeerPackets) {
	f.mu.Lock()
	s := api.FastPath{Mode: f.mode, Slow: []api.SlowContainer{}, Packets: map[string]uint64{}}
	path, err := f.path, f.err
	f.mu.Unlock()
	switch {
	case s.Mode == api.FastPathOff:
		s.Off = switchedOff
	case err != nil:
		s.Off, s.Lacking = err.Error(), true
	case path == nil:
		s.Off = "it is not loaded yet"
	}
	if path == nil {
		return s, nil
	}
	p := path.Status()
	if s.Off == "" {
		s.Off = p.Off
	}
	s.Peers, s.Containers = p.Peers, p.Containers
	for way, n := range p.Packets {
		s.Packets[way] = n
	}
	for _, c := range p.Slow {
		ip := ""
		if c.Addr.IsValid() {
			ip = c.Addr.String()
		}
		s.Slow = append(s.Slow, api.SlowContainer{IP: ip, Link: c.Index, Why: c.Why})
	}
	return s, p.ByPeer
}
