// Package enforcer has policies in force on this host: it hears of policies and endpoints, has them compiled, and the kernel do
// what comes of that. What others need to know of this host's containers it tells them, by etcd.
package enforcer

import (
	"context"

	"github.com/overlayd/overlayd/cmd/internal/api"
	"github.com/overlayd/overlayd/subnet"
)

// Enforcer has policies in force. All methods may be called at any time.
type Enforcer struct{}

// Own says which lease the host has; nil: none.
func (e *Enforcer) Own(*subnet.Record) {}

// Peers says which leases of peers changed, by key; nil: the peer is gone.
func (e *Enforcer) Peers(map[string]*subnet.Record) {}

// Run enforces until ctx ends; then it returns nil, and what is in force stays so.
func (e *Enforcer) Run(context.Context) error { return nil }

// Status says how far policies are in force.
func (e *Enforcer) Status() api.Policy { return api.Policy{} }

// Endpoints are those of this host, in the order of their namespaces and names.
func (e *Enforcer) Endpoints() []api.Endpoint { return nil }

// Denials are what policies denied here.
func (e *Enforcer) Denials() api.Denials { return api.Denials{} }

// Problem says what of it needs attention.
func (e *Enforcer) Problem() error { return nil }

// Changed receives after Status changed.
func (e *Enforcer) Changed() <-chan struct{} { return nil }

// Applied is closed when all that was to be in force was so for the first time.
func (e *Enforcer) Applied() <-chan struct{} { return nil }
