package agent

import (
	"context"
	"net/netip"

	"github.com/overlayd/overlayd/backend/fastpath"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

// Unpoliced stands for the policies of a network that can have none.
type Unpoliced struct{}

// Run waits for the end of ctx.
func (Unpoliced) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Own does nothing, as do the next.
func (Unpoliced) Own(*subnet.Record)              {}
func (Unpoliced) Peers(map[string]*subnet.Record) {}
func (Unpoliced) Status() api.Policy              { return api.Policy{Pending: []string{}} }
func (Unpoliced) Problem() error                  { return nil }
func (Unpoliced) Endpoints() []api.Endpoint       { return []api.Endpoint{} }
func (Unpoliced) Denials() api.Denials            { return api.Denials{Last: []api.Denial{}} }
func (Unpoliced) Changed() <-chan struct{}        { return nil }

// Applied is closed.
func (Unpoliced) Applied() <-chan struct{} { c := make(chan struct{}); close(c); return c }

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
