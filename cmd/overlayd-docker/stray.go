package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/overlayd/overlayd/cniplugin/attachment"
	"github.com/overlayd/overlayd/cniplugin/bridge"
)

// patience is how long something may look left behind that Docker may be in the middle of.
const patience = time.Minute

// strays removes endpoints of which Docker knows no more: those that no container has, whose interface is on the host. Docker gives it
// back before it deletes the endpoint, and does not ask again where it got no answer to that.
func (f *follower) strays(ctx context.Context, known attachment.All, of map[string]container) error {
	seen := map[string]time.Time{}
	var errs []error
	for _, a := range known.Usable {
		inside, _ := pluggable(a.ContainerID).Names()
		if _, has := of[a.ContainerID]; has {
			continue
		}
		if _, err := netlink.LinkByName(inside); err != nil {
			continue
		}
		seen[a.ContainerID] = time.Now()
		if since, ok := f.stray[a.ContainerID]; ok {
			seen[a.ContainerID] = since
		}
		if time.Since(seen[a.ContainerID]) < patience {
			continue
		}
		f.log.Info("removing an endpoint that Docker has no more", "endpoint", a.ContainerID)
		errs = append(errs, attachment.With(ctx, attachment.DefaultDir, attachment.Shared, func(s *attachment.Store) error {
			if err := s.LockKey(ctx, a.Key()); err != nil {
				return err
			}
			return f.bury(ctx, s, a)
		}))
	}
	f.stray = seen
	return errors.Join(errs...)
}

// sweep removes what is known of endpoints that have never joined, or are gone: Docker deletes none that it thinks it has not made.
func (d *driver) sweep(s *attachment.Store) error {
	ids, err := d.state.ids(endpoints)
	if err != nil {
		return err
	}
	for _, id := range ids {
		info, err := os.Stat(filepath.Join(d.state.dir, endpoints, id+".json"))
		if err != nil || time.Since(info.ModTime()) < bridge.YoungReservation {
			continue
		}
		if _, err := s.Load(keyOf(id)); err == nil || errors.Is(err, attachment.ErrUnusable) {
			continue
		}
		if err := d.state.remove(endpoints, id); err != nil {
			return err
		}
	}
	return nil
}
