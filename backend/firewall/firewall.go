// Package firewall holds the rules of overlay networks in one network namespace: what they hide behind the host, in an
// nftables table of our own, and what of theirs is let pass, in a chain of iptables.
//
// The table has no rules for what may pass. An accept in a base chain ends only that chain: the packet goes on to the other
// chains of the hook, and a drop there, such as the FORWARD policy that Docker sets, is final. With our chain's policy
// being accept as well, such a rule would have no effect whatever.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// within is how long the commands of one look at the rules, and of the change that it leads to, may take in all.
const within = 10 * time.Second

// Rule is a Masquerade, an Accept or an Uplink.
type Rule interface {
	// String is the commands that make the rule.
	String() string
	// place is the command by which the rule is held.
	place() string
}

// Config is what a firewall is made of.
type Config struct {
	Namespace  netns.NsHandle // zero: the current one. It must stay open until Run returns
	Log        *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// New returns the task that holds the rules, each of its places in one transaction, and that replaces those of an earlier
// run. It listens to the kernel from now on.
func New(cfg Config) (*task.Task[Rule], error) {
	f := newFirewall(cfg.Namespace)
	events, err := subscribeNftables(f.ns)
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of nftables (needs CAP_NET_ADMIN): %w", err)
	}
	if events == nil {
		cfg.Log.Warn("the kernel has no nftables: changes of the firewall are found by audits only")
	}
	return task.New(task.Config[Rule]{
		Kind: "firewall", Apply: f.apply, Log: cfg.Log, Registerer: cfg.Registerer,
		Listen: func(ctx context.Context, nudge func()) error { return listen(ctx, events, nudge) },
	})
}

// Remove takes away all rules of ours in a namespace, of whatever run, and tells whether there were any.
func Remove(ctx context.Context, ns netns.NsHandle) (found bool, err error) {
	places, err := newFirewall(ns).apply(ctx, nil)
	return places > 0, err
}

// firewall is the rules of one network namespace. It is for one goroutine.
type firewall struct {
	ns     netns.NsHandle
	within time.Duration
	nft    nft
	xt     []iptables
}

func newFirewall(ns netns.NsHandle) *firewall {
	return &firewall{ns: ns, within: within, xt: []iptables{{"iptables"}, {"ip6tables"}}}
}

// apply brings the rules there, and tells in how many places they were otherwise. It writes nothing where they are right.
func (f *firewall) apply(ctx context.Context, want []Rule) (changed int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.within, errHangs)
	defer cancel()
	want = slices.Clone(want)
	// No place cares for the order, so that another one is no change.
	slices.SortFunc(want, func(a, b Rule) int { return strings.Compare(a.String(), b.String()) })
	at := func(place string) (rules []Rule) {
		return slices.DeleteFunc(slices.Clone(want), func(r Rule) bool { return r.place() != place })
	}
	places := []func() (bool, error){func() (bool, error) { return f.nft.apply(ctx, at("nft")) }}
	for i, family := range []string{"iptables", "ip6tables"} {
		places = append(places, func() (bool, error) { return f.xt[i].apply(ctx, at(family)) })
	}
	wrote, errs := make([]bool, len(places)), make([]error, len(places))
	var all sync.WaitGroup // side by side: each runs several commands
	for i, apply := range places {
		all.Go(func() {
			errs[i] = rtnl.InNetns(f.ns, func() (err error) { wrote[i], err = apply(); return err })
		})
	}
	all.Wait()
	for _, w := range wrote {
		if w {
			changed++
		}
	}
	return changed, errors.Join(errs...)
}

// Commands are lines for a shell that make the rules where nothing of ours is yet, with the places that they go to.
func Commands(rules []Rule) []string {
	var lines []string
	made := map[string]bool{}
	for _, r := range rules {
		if place := r.place(); !made[place] {
			made[place] = true
			if place == "nft" {
				lines = append(lines, "nft add table inet "+nftTable,
					fmt.Sprintf("nft 'add chain inet %s %s { %s }'", nftTable, nftChain, nftHook))
			} else {
				lines = append(lines, place+" -N "+forwardChain, fmt.Sprintf("%s -I FORWARD 1 %s", place, forwardJump))
			}
		}
		lines = append(lines, r.String())
	}
	return lines
}

// iptablesOf is the command for a network's family.
func iptablesOf(network netip.Prefix) string {
	if network.Addr().Is6() {
		return "ip6tables"
	}
	return "iptables"
}
