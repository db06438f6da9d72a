package bypass

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// look is all of lookAtHost that takes long. It tells, too, which names of links rules were asked about.
func (w *Watcher) look(ctx context.Context, o Ours, containers map[string]int) (
	r Report, byTables map[int]string, asked []string, failed error,
) {
	names := map[string]bool{}
	isContainer := func(pattern string) bool {
		names[pattern] = true
		if strings.HasSuffix(pattern, "*") {
			for name := range containers {
				if like(name, pattern) {
					return true
				}
			}
			return false
		}
		_, ok := containers[pattern]
		return ok
	}
	byTables = map[int]string{}
	tables, tracked, failed := w.readTables(ctx)
	r.Tracked = tracked
	found := func(why string) {
		if r.Host == "" {
			r.Host = why
		}
	}
	for _, t := range tables {
		for _, f := range t.judge(o, isContainer) {
			if f.links == nil {
				found(f.why)
				continue
			}
			for name, index := range containers {
				if slices.ContainsFunc(f.links, func(pattern string) bool { return like(name, pattern) }) {
					byTables[index] = f.why
				}
			}
		}
	}
	if failed == nil {
		var why string
		why, failed = w.hostLinks(o)
		found(why)
	}
	if failed == nil {
		var why string
		why, failed = w.routing(o, isContainer)
		found(why)
	}
	if failed != nil {
		found(fmt.Sprintf("not known what would be passed by: %v", failed))
	}
	return r, byTables, slices.Collect(maps.Keys(names)), failed
}

// readTables reads the tables that judge, those of them that changed.
func (w *Watcher) readTables(ctx context.Context) (all []*table, tracked bool, err error) {
	if w.nft != nil {
		judging, tracks, err := w.nft.judging()
		if err != nil {
			return nil, true, err
		}
		tracked = tracks
		kept := make(map[rtnl.Table][]*table, len(judging))
		for _, t := range judging {
			read, ok := w.tables[t]
			if !ok {
				err := rtnl.InNetns(w.ns, func() (err error) { read, err = readTable(ctx, t); return err })
				if err != nil {
					return nil, true, err
				}
			}
			kept[t] = read
			all = append(all, read...)
		}
		w.tables = kept
	}
	old, tracks, err := legacy(ctx, w.ns)
	return append(all, old...), tracked || tracks || err != nil, err
}

// hostLinks tells what is on links that are all containers'. What is sent by the underlay passes all that there is.
func (w *Watcher) hostLinks(o Ours) (string, error) {
	for _, name := range append(append(slices.Clone(o.Bridges), o.Overlays...), o.Underlay) {
		l, err := w.routes.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue // nothing is by it, then
		}
		if err != nil {
			return "", fmt.Errorf("link %s: %w", name, err)
		}
		index := l.Attrs().Index
		seen, err := w.links.look([]int{index}, o.Programs)
		if err != nil {
			return "", err
		}
		on := seen[index]
		if name == o.Underlay {
			on.qdisc, on.out = "noqueue", ""
			if strings.HasPrefix(on.in, "tc program ") {
				on.in = "" // those of others come before ours
			}
		}
		if why := on.why(); why != "" {
			return why, nil
		}
	}
	return "", nil
}

// routing tells what besides firewalls takes packets.
func (w *Watcher) routing(o Ours, isContainer func(link string) bool) (why string, err error) {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := w.routes.RuleList(family)
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return "", fmt.Errorf("rules of routing: %w", err)
		}
		if why := judgeRules(rules, o, isContainer); why != "" {
			return why, nil
		}
	}
	if w.xfrm != nil {
		policies, err := w.xfrm.XfrmPolicyList(unix.AF_UNSPEC)
		if err != nil {
			return "", fmt.Errorf("policies of IPsec: %w", err)
		}
		if why := judgePolicies(policies, o); why != "" {
			return why, nil
		}
	}
	err = rtnl.InNetns(w.ns, func() error {
		services, _ := os.ReadFile("/proc/thread-self/net/ip_vs") // none where there is no IPVS
		why = judgeIPVS(string(services))
		return nil
	})
	return why, err
}
