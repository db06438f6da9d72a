package agent

import (
	"net/netip"

	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/cniplugin/attachment"
)

// Slow stands for the fast path of a network that has none.
type Slow struct{}

// SetOwn does nothing, as do the next.
func (Slow) SetOwn(FastEnd)                                                    {}
func (Slow) Replace([]fastpath.Claim)                                          {}
func (Slow) Update([]fastpath.Claim)                                           {}
func (Slow) Active() bool                                                      { return false }
func (Slow) Empty() bool                                                       { return false }
func (Slow) Loaded() <-chan struct{}                                           { return nil }
func (Slow) SetMode(api.FastPathMode)                                          {}
func (Slow) Status() (s api.FastPath, p map[netip.Prefix]fastpath.PeerPackets) { return s, p }

// SetSlow does nothing, as does the next.
func (Slow) SetSlow(func(netip.Addr, attachment.Key) bool) {}
func (Slow) Slow([]netip.Addr, bool)                       {}
