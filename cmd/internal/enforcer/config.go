package enforcer

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/backend/enforce"
	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// table is what policies are in the kernel.
type table interface {
	Run(context.Context) error
	Rebuild(context.Context, compile.Change, enforce.Options) error
	Apply(context.Context, compile.Change) error
	Release(context.Context, []netip.Addr) error
	Pending(context.Context) ([]netip.Addr, error)
	Bridge(name string, on bool) (enforce.Shown, error)
	Cut(context.Context, func(enforce.Flow) bool, []netip.Addr) (int, error)
	Changed() <-chan struct{}
	Denials() <-chan enforce.Denial
	Remove(context.Context) error
}

// store is what etcd holds of the network, besides leases.
type store interface {
	FollowKeys(ctx context.Context, tell func(etcdstore.News), ranges ...string)
}

// writer writes the host's endpoints.
type writer interface {
	Run(context.Context) error
	Set(lease int64, want map[string]string)
	Status() (have map[string]string, err error)
	Changed() <-chan struct{}
}

// names are found by endpoints. They hear of all that count, which they may want more of than policies do.
type names interface {
	Run(context.Context) error
	Own(*subnet.Record)
	Peers(map[string]*subnet.Record)
	Local(all map[string]policy.Endpoint) // of this host, by their keys below endpoints/
	Put(key string, ep policy.Endpoint, revision int64)
	Revise(key string, revision int64)
	Delete(key string)
	Wanted() (all bool, namespaces []string)
	Wants() <-chan struct{} // receives after Wanted changed
	Known(namespaces []string)
}

// nameless is for who has no names.
type nameless struct{}

func (nameless) Run(ctx context.Context) error      { <-ctx.Done(); return nil }
func (nameless) Own(*subnet.Record)                 {}
func (nameless) Peers(map[string]*subnet.Record)    {}
func (nameless) Local(map[string]policy.Endpoint)   {}
func (nameless) Put(string, policy.Endpoint, int64) {}
func (nameless) Revise(string, int64)               {}
func (nameless) Delete(string)                      {}
func (nameless) Wanted() (bool, []string)           { return false, nil }
func (nameless) Wants() <-chan struct{}             { return nil }
func (nameless) Known([]string)                     {}

// Local is an endpoint of this host's.
type Local struct {
	api.Endpoint
	// LinkLocal is the IPv6 address that the container has on its bridge besides, of no use to others; invalid: not known.
	LinkLocal netip.Addr
	Untracked bool // nobody had connections with its addresses when they began to wait
	Created   time.Time
}

// Config is what an Enforcer is made of. Everything is required but Names and Registerer.
type Config struct {
	Table      table
	Former     func() (found bool, err error) // takes away what an earlier run has left in the kernel
	Dropped    func() (map[string]uint64, error)
	Bridge     func(netip.Addr) string // by which an address of this host's is reached; empty: none
	Store      store
	Writer     writer
	Fast       fastPath
	Names      names                              // nil: there are none, and others hear of this host's endpoints what policies need alone
	Locals     func() ([]Local, error)            // the endpoints of this host, once Changes has received
	Changes    <-chan struct{}                    // receives after Locals changed
	Beside     func(netip.Addr) (is, theirs bool) // says which addresses are other networks', and whether those let them pass; nil: none are
	Released   func([]netip.Addr)                 // hears of addresses that are pending no more; nil: nobody does
	Network    string                             // names it in the memory
	StateDir   string
	Options    enforce.Options
	Registerer prometheus.Registerer
	Log        *slog.Logger
}
