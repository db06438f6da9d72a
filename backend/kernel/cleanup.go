package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/rtnl"
)

// Cleanup removes all of ours from the namespace of cfg: routes of our protocol, links that are named as ours or
// that were adopted, the firewall's rules. It needs no Reconciler, and there should be none. It says what it removed,
// also when something failed. Sysctls stay.
func Cleanup(ctx context.Context, cfg Config, adopted ...Object) (removed []string, err error) {
	cfg = cfg.withDefaults()
	c, err := rtnl.Dial(cfg.Namespace, rtnl.AnswersSize)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	defer c.Close()
	var b rtnl.Batch
	links, err := removable(cfg.Namespace, c, &b, adopted)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}

	// Routes come first, in batches: where all share one metric, as flannel's do, the kernel takes minutes to find them
	// when it deletes the link, and nobody can do anything else to the network meanwhile.
	n, err := removeRoutes(ctx, c, &b, links)
	if n > 0 {
		removed = append(removed, fmt.Sprintf("%d routes", n))
	}
	errs := []error{err}
	for _, l := range links {
		err := deleteLink(cfg.Namespace, c, &b, l)
		switch {
		case err == nil:
			removed = append(removed, "link "+l.name)
			if i, ok := l.info.(ipipInfo); ok {
				errs = append(errs, i.link(l).undo(cfg.Namespace))
			}
		case !absent(err):
			errs = append(errs, fmt.Errorf("remove link %s: %w", l.name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("kernel: %w", err)
	}
	return removed, nil
}

// removeRoutes deletes the routes of our protocol and all others on links that go, and tells how many.
func removeRoutes(ctx context.Context, c *rtnl.Conn, b *rtnl.Batch, links []link) (n int, err error) {
	names := make(map[int32]string)
	for _, l := range links {
		names[l.index] = l.name
	}
	var routes [][]byte
	b.Reset()
	dumpRoutes(b, unix.RTPROT_UNSPEC)
	err = c.Dump(b, func(body []byte) {
		var h unix.RtMsg
		rtnl.Header(body, &h)
		if h.Protocol == unix.RTPROT_KERNEL { // goes with its address
			return
		}
		f := decodeRoute(body, names)
		r, _ := f.object.(Route)
		if f.mark == ours || f.mark == stale || r.Link != "" {
			routes = append(routes, slices.Clone(body))
		}
	})
	if err != nil {
		return 0, fmt.Errorf("dump routes: %w", err)
	}
	var errs []error
	for some := range slices.Chunk(routes, rtnl.BatchSize) {
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
		b.Reset()
		for _, body := range some {
			b.Echo(remove.message(unix.RTM_NEWROUTE), body)
		}
		failed, err := c.Exec(b, nil)
		if err != nil {
			return n, fmt.Errorf("remove routes: %w", err)
		}
		n += len(some) - len(failed)
		for _, err := range failed {
			if !absent(err) {
				errs = append(errs, fmt.Errorf("remove route: %w", err))
			}
		}
	}
	return n, errors.Join(errs...)
}

// removable are the links that are of our making or ours by having been adopted, in order.
func removable(ns netns.NsHandle, c *rtnl.Conn, b *rtnl.Batch, adopted []Object) ([]link, error) {
	all, err := dumpLinks(c, b)
	if err != nil {
		return nil, fmt.Errorf("dump links: %w", err)
	}
	var found []link
	for _, index := range slices.Sorted(maps.Keys(all)) {
		l := all[index]
		if i, ok := l.info.(wgInfo); ok && i.user {
			l.info = i.ask(ns, l.name)
		}
		if l.own() != nil || slices.ContainsFunc(adopted, func(o Object) bool { v, ok := o.(Link); return ok && v.name() == l.name && v.made(l) }) {
			found = append(found, l)
		}
	}
	return found, nil
}
