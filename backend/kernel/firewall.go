package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"sigs.k8s.io/knftables"

	"github.com/overlayd/overlayd/backend/rtnl"
)

const (
	nftTable = "overlayd"    // of family inet; all that is in it is ours
	nftChain = "postrouting" // its only chain
)

// Key implements Object.
func (m Masquerade) Key() Key { return Key{name: "masquerade", prefix: m.Network} }

// Kind implements Object.
func (Masquerade) Kind() Kind { return KindFirewall }

func (m Masquerade) String() string {
	return fmt.Sprintf("nft add rule inet %s %s %s", nftTable, nftChain, m.rule())
}

// rule is the rule in nft's words. The comparisons stand in the order that lets most connections off first: of
// others, inside the network. Source ports are drawn at random, because two CPUs that pick the next free one at once
// pick the same and the kernel drops one of the packets.
func (m Masquerade) rule() string {
	net := m.Network
	if net.Addr().Is4() {
		return fmt.Sprintf("ip saddr %s ip daddr != %s ip daddr != 224.0.0.0/4 ip daddr != 255.255.255.255 masquerade fully-random", net, net)
	}
	return fmt.Sprintf("ip6 saddr %s ip6 daddr != %s ip6 daddr != ff00::/8 masquerade fully-random", net, net)
}

// comment tells the rule from the others in the kernel.
func (m Masquerade) comment() string { return "masquerade " + m.Network.String() }

// firewall holds the Masquerade and Accept objects of one network namespace: the former in an nftables table of our
// own, the latter in a chain of iptables.
//
// The table has no rules for Accept. An accept in a base chain ends only that chain: the packet goes on to the other
// chains of the hook, and a drop there, such as the FORWARD policy that Docker sets, is final. With our chain's policy
// being accept as well, such a rule would have no effect whatever.
type firewall struct {
	ns     netns.NsHandle
	events *nl.NetlinkSocket // nil where the kernel has no nftables
	log    *slog.Logger
	notify chan struct{}
	xt     []iptables

	mu        sync.Mutex          // a check waits for an apply to end: what it sees halfway is no drift
	nft       knftables.Interface // opened when first needed
	desired   *rules              // nil before the first apply: nothing can differ from it
	installed string              // the table as nft printed it after the last change; "" is none
}

// rules are the desired objects by where they go.
type rules struct {
	masquerade []Masquerade
	accept     []netip.Prefix
}

// newFirewall returns the firewall of ns, which must stay open as long as the firewall is used. It listens for changes
// from now on; run must be called to make use of them, and to end it.
func newFirewall(ns netns.NsHandle, log *slog.Logger) (*firewall, error) {
	events, err := subscribeNftables(ns)
	if err != nil {
		return nil, fmt.Errorf("subscribe to changes of nftables: %w", err)
	}
	return &firewall{
		ns: ns, events: events, log: log, notify: make(chan struct{}, 1),
		xt: []iptables{{command: "iptables", is: netip.Addr.Is4}, {command: "ip6tables", is: netip.Addr.Is6}},
	}, nil
}

// apply brings the rules there, each of the two places in one transaction, and writes nothing where they are right.
// Rules of an earlier run are replaced.
func (f *firewall) apply(ctx context.Context, desired []Object) error {
	want := rules{}
	for _, o := range desired {
		switch o := o.(type) {
		case Masquerade:
			want.masquerade = append(want.masquerade, o)
		case Accept:
			want.accept = append(want.accept, o.Network)
		default:
			return fmt.Errorf("%s is not a firewall rule", o)
		}
	}
	// Neither place cares for the order, so that another one is no change.
	slices.SortFunc(want.masquerade, func(a, b Masquerade) int { return a.Network.Compare(b.Network) })
	slices.SortFunc(want.accept, netip.Prefix.Compare)
	want.masquerade, want.accept = slices.Compact(want.masquerade), slices.Compact(want.accept)

	f.mu.Lock()
	defer f.mu.Unlock()
	// Side by side: each runs several commands.
	places := []func() error{func() error { return f.applyMasquerade(ctx, want) }}
	for _, xt := range f.xt {
		places = append(places, func() error { return xt.apply(ctx, want.accept) })
	}
	errs := make([]error, len(places))
	var others sync.WaitGroup
	for i, apply := range places {
		others.Go(func() { errs[i] = rtnl.InNetns(f.ns, apply) })
	}
	others.Wait()
	return errors.Join(errs...)
}

func (f *firewall) applyMasquerade(ctx context.Context, want rules) error {
	before := f.desired
	f.desired = &want
	switch {
	case len(want.masquerade) == 0:
		if table, err := f.table(ctx); err == nil && table == "" {
			f.installed = ""
			return nil
		}
	case before != nil && slices.Equal(before.masquerade, want.masquerade):
		if drift, err := f.tableDrift(ctx); err == nil && len(drift) == 0 {
			return nil
		}
	}
	if err := f.open(); err != nil {
		return err
	}
	f.installed = ""
	err := f.nft.Run(ctx, replaceTable(f.nft.NewTransaction(), want.masquerade))
	if err != nil {
		return fmt.Errorf("replace nft table inet %s: %w", nftTable, err)
	}
	f.installed, err = listTable(ctx)
	return err
}

// table is the table as nft prints it now. A host without nft has none, nor one without nftables where none is wanted.
func (f *firewall) table(ctx context.Context) (string, error) {
	text, err := listTable(ctx)
	if errors.Is(err, exec.ErrNotFound) || err != nil && ctx.Err() == nil && len(f.desired.masquerade) == 0 {
		f.log.Debug("no table of nftables", "err", err)
		return "", nil
	}
	return text, err
}

// open finds nft. Not before the first use: a host without rules needs none.
func (f *firewall) open() error {
	if f.nft != nil {
		return nil
	}
	nft, err := knftables.New(knftables.InetFamily, nftTable)
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("masquerading needs the command nft: install the package nftables: %w", err)
	}
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	f.nft = nft
	return nil
}

// replaceTable removes the table and makes it anew, or not where there is no rule. The kernel switches from the old
// rules to the new ones between two packets.
func replaceTable(tx *knftables.Transaction, masquerade []Masquerade) *knftables.Transaction {
	// Adding is what lets the deletion succeed where there is no table; nft knows "destroy" only since 1.0.7.
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if len(masquerade) == 0 {
		return tx
	}
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{
		Name:     nftChain,
		Type:     knftables.PtrTo(knftables.NATType),
		Hook:     knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	for _, m := range masquerade {
		tx.Add(&knftables.Rule{Chain: nftChain, Rule: m.rule(), Comment: knftables.PtrTo(m.comment())})
	}
	return tx
}

// listTable is the table as nft prints it, "" where there is none.
func listTable(ctx context.Context) (string, error) {
	text, err := runCommand(ctx, "", "nft", "list", "table", "inet", nftTable)
	if err != nil && strings.Contains(err.Error(), "No such file or directory") {
		return "", nil
	}
	return text, err
}

// tableDrift names what differs in the table. What nft prints is compared with what it printed after the last change
// and not with what it was given: its versions word the same rule differently.
func (f *firewall) tableDrift(ctx context.Context) ([]string, error) {
	now, err := f.table(ctx)
	if err != nil {
		return nil, err
	}
	var drift []string
	for _, m := range f.desired.masquerade {
		if line := lineWith(f.installed, m.comment()); line == "" || line != lineWith(now, m.comment()) {
			drift = append(drift, m.comment())
		}
	}
	if len(drift) == 0 && now != f.installed {
		drift = append(drift, "nft table inet "+nftTable)
	}
	return drift, nil
}

// lineWith is the line of the text with the rule of that comment, "" if there is none.
func lineWith(text, comment string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, `"`+comment+`"`) {
			return line
		}
	}
	return ""
}

// drifted names what differs in the kernel from what was applied last, and costs about three short commands. Before the
// first apply nothing differs.
func (f *firewall) drifted(ctx context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.desired == nil {
		return nil, nil
	}
	var drift []string
	err := rtnl.InNetns(f.ns, func() error {
		names, err := f.tableDrift(ctx)
		drift = names
		errs := []error{err}
		for _, xt := range f.xt {
			change, err := xt.plan(ctx, f.desired.accept)
			if change != "" {
				drift = append(drift, xt.command+" chain "+forwardChain)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return drift, err
}

// present tells whether there is anything of ours, of this run or of earlier ones.
func (f *firewall) present(ctx context.Context) (found bool, err error) {
	err = rtnl.InNetns(f.ns, func() error {
		table, _ := listTable(ctx) // where it cannot be listed, for want of nft say, there is none
		found = table != ""
		var errs []error
		for _, xt := range f.xt {
			change, err := xt.plan(ctx, nil)
			found = found || change != ""
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return found, err
}

// remove takes away all of ours, of this run and of earlier ones. It succeeds where there is nothing.
func (f *firewall) remove(ctx context.Context) error {
	err := f.apply(ctx, nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.desired = nil
	return err
}
