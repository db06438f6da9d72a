package enforcer

import (
	"context"
	"net/netip"

	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/policy/compile"
)

// NoTable stands for the table of a kernel that can have none.
type NoTable struct{ Err error }

// Run waits for the end of ctx.
func (n NoTable) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Rebuild fails.
func (n NoTable) Rebuild(context.Context, compile.Change, enforce.Options) error { return n.Err }

// Apply fails.
func (n NoTable) Apply(context.Context, compile.Change) error { return n.Err }

// Release does nothing.
func (n NoTable) Release(context.Context, []netip.Addr) error { return nil }

// Pending are none.
func (n NoTable) Pending(context.Context) ([]netip.Addr, error) { return nil, nil }

// Bridge does nothing.
func (n NoTable) Bridge(string, bool) (enforce.Shown, error) { return enforce.Shown{}, nil }

// Cut does nothing.
func (n NoTable) Cut(context.Context, func(enforce.Flow) bool, []netip.Addr) (int, error) {
	return 0, nil
}

// Changed never receives.
func (n NoTable) Changed() <-chan struct{} { return nil }

// Denials never receives.
func (n NoTable) Denials() <-chan enforce.Denial { return nil }

// Remove does nothing.
func (n NoTable) Remove(context.Context) error { return nil }
