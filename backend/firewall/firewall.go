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
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/backend/task"
)

// within is how long the commands of one look at the rules, and of the change that it leads to, may take in all.
const within = 10 * time.Second

// lookEvery is how often all elements of sets are looked at in any case.
const lookEvery = 4 * time.Minute

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
	Begin      <-chan struct{}       // closed when what an earlier run left may be touched; nil: at once
}

// Firewall is the rules of one network namespace, and what is in the sets that they declare.
type Firewall struct {
	*task.Task[Rule]
	Elements *Elements
	held     *firewall
}

// Unguarded is why the guard that is wanted is not there; nil: it is, or was not tried yet.
func (f Firewall) Unguarded() error {
	for _, t := range f.held.tables {
		if why := t.unguarded.Load(); why != nil && *why != nil {
			return fmt.Errorf("the guard cannot be installed: %w", *why)
		}
	}
	return nil
}

// New returns what holds the rules, each of its places in one transaction, and that replaces those of an earlier run. It
// listens to the kernel from now on.
func New(cfg Config) (f Firewall, err error) {
	if f.Elements, err = newElements(cfg); err != nil {
		return f, fmt.Errorf("elements of nftables: %w", err)
	}
	f.held = newFirewall(cfg.Namespace)
	listen := func(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }
	conn, err := rtnl.DialNetfilter(cfg.Namespace, rtnl.EventsSize, unix.NFNLGRP_NFTABLES)
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT):
		cfg.Log.Warn("the kernel has no nftables: changes of the firewall are found by audits only")
	case err != nil:
		return f, fmt.Errorf("subscribe to changes of nftables (needs CAP_NET_ADMIN): %w", err)
	default:
		f.held.elements = f.Elements
		listen = func(ctx context.Context, nudge func()) error { return watcher{conn, f.Elements, nudge}.run(ctx) }
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(counted{cfg.Namespace}); err != nil {
			return f, fmt.Errorf("firewall: %w", err)
		}
	}
	f.Task, err = task.New(task.Config[Rule]{Kind: "firewall", Apply: f.held.apply, Log: cfg.Log, Registerer: cfg.Registerer, Listen: listen, Begin: cfg.Begin})
	return f, err
}

// Run holds the rules and what is in sets, until ctx ends; then it returns nil and leaves all as it is. It is to be called once.
func (f Firewall) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.Elements.run(ctx) })
	group.Go(func() error { return f.Task.Run(ctx) })
	return group.Wait()
}

// Remove takes away all rules of ours in a namespace, of whatever run, and tells whether there were any.
func Remove(ctx context.Context, ns netns.NsHandle) (found bool, err error) {
	places, err := newFirewall(ns).apply(ctx, nil)
	return places > 0, err
}

// firewall is the rules of one network namespace. It is for one goroutine.
type firewall struct {
	ns       netns.NsHandle
	within   time.Duration
	tables   []*table
	xt       []iptables
	elements *Elements // nil: nobody holds any
}

func newFirewall(ns netns.NsHandle) *firewall {
	return &firewall{ns: ns, within: within, xt: []iptables{{"iptables"}, {"ip6tables"}}, tables: []*table{{family: "inet"}, {family: "bridge"}}}
}

// apply brings the rules there, and tells in how many places they were otherwise. It writes nothing where they are right.
func (f *firewall) apply(ctx context.Context, want []Rule) (changed int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.within, ErrHangs)
	defer cancel()
	want = slices.Clone(want)
	// No place cares for the order, so that another one is no change.
	slices.SortFunc(want, func(a, b Rule) int { return strings.Compare(a.String(), b.String()) })
	at := func(place string) (rules []Rule) {
		return slices.DeleteFunc(slices.Clone(want), func(r Rule) bool { return r.place() != place })
	}
	places := []func() (bool, error){func() (changed bool, err error) {
		for _, t := range f.tables { // one after the other: nft waits for nft
			wrote, tableErr := f.applyTable(ctx, t, at(t.family))
			changed, err = changed || wrote, errors.Join(err, tableErr)
		}
		return changed, err
	}}
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

// applyTable brings a table there, and what is in its sets.
func (f *firewall) applyTable(ctx context.Context, t *table, rules []Rule) (changed bool, err error) {
	filled := false // since the last change of the rules
	fill := func(sets []Set, anew bool) error {
		if f.elements == nil {
			return nil
		}
		t.declared, filled = time.Now(), true
		select {
		case <-f.elements.declare(families[t.family], sets, anew):
		case <-ctx.Done():
		}
		return f.elements.Status().Err
	}
	changed, err = t.apply(ctx, rules, fill)
	// A host that cannot have the guard serves without: it did so before there was one.
	if bare := slices.DeleteFunc(slices.Clone(rules), isGuard); len(bare) < len(rules) && ctx.Err() == nil {
		unguarded := err
		if err != nil {
			filled = false
			changed, err = t.apply(ctx, bare, fill)
		}
		t.unguarded.Store(&unguarded)
	}
	if err == nil && !filled && (changed || time.Since(t.declared) >= lookEvery) {
		fill(t.sets(t.lines), changed)
	}
	return changed, err
}

// guarding is a rule that a host can do without.
type guarding interface{ guard() }

func isGuard(r Rule) bool { _, ok := r.(guarding); return ok }

// Commands are lines for a shell that make the rules where nothing of ours is yet, with the places that they go to.
func Commands(rules []Rule) []string {
	var lines []string
	made := map[string]bool{}
	for _, r := range rules {
		place := r.place()
		first := !made[place]
		made[place] = true
		switch r := r.(type) {
		case ruled:
			if first {
				lines = append(lines, "nft add table "+place+" "+tableName)
			}
			for _, line := range r.nft() {
				if line = shell([]string{line}); !made[line] {
					made[line] = true
					lines = append(lines, line)
				}
			}
		default:
			if first {
				lines = append(lines, place+" -N "+forwardChain, fmt.Sprintf("%s -I FORWARD 1 %s", place, forwardJump))
			}
			lines = append(lines, r.String())
		}
	}
	return lines
}

// shell is lines of nft's as commands for a shell.
func shell(lines []string) string {
	commands := make([]string, len(lines))
	for i, line := range lines {
		if commands[i] = "nft " + line; strings.ContainsAny(line, "{;\"") {
			commands[i] = "nft '" + line + "'"
		}
	}
	return strings.Join(commands, "\n")
}

// iptablesOf is the command for a network's family.
func iptablesOf(network netip.Prefix) string {
	if network.Addr().Is6() {
		return "ip6tables"
	}
	return "iptables"
}
