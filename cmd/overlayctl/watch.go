package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// watchAgain is how long to wait before etcd is asked again after it went away.
const watchAgain = time.Second

// The kinds of change.
const (
	added   = "ADDED"
	changed = "CHANGED"
	removed = "REMOVED"
)

// leaseEvent is a change as it is printed.
type leaseEvent struct {
	Event string `json:"event"`
	lease
}

func (a *app) leasesWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch",
		Short: "Show the leases, then every change of one, until interrupted",
		Long: `Show the leases, then every change of one, until interrupted. A renewal is no change.
With -o json every line is an object.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(func(s *etcdstore.Store) error {
				w := watcher{app: a, store: s, known: map[string]subnet.Record{}}
				return w.run(cmd.Context())
			})
		},
	}
}

// watcher prints changes of leases.
type watcher struct {
	*app
	store *etcdstore.Store
	known map[string]subnet.Record // what was printed last, by key
}

// run watches until ctx ends. That etcd goes away later is a warning: what was missed is found when it is back.
func (w *watcher) run(ctx context.Context) error {
	if err := w.header(); err != nil {
		return err
	}
	for first := true; ; first = false {
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if _, lost := err.(lostError); first && !lost {
			return err
		}
		w.warn([]string{err.Error()})
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchAgain):
		}
	}
}

// lostError says that etcd went away after it had answered.
type lostError struct{ error }

// follow prints how what etcd holds differs from what is known, and then what changes.
func (w *watcher) follow(ctx context.Context) error {
	listing, err := w.listing(ctx, w.store)
	if err != nil {
		return err
	}
	now := map[string]subnet.Record{}
	for _, r := range listing.Records {
		now[r.Key()] = r
	}
	for _, key := range slices.Sorted(maps.Keys(w.known)) {
		if _, ok := now[key]; !ok {
			if err := w.remove(key); err != nil {
				return err
			}
		}
	}
	for _, r := range listing.Records {
		if err := w.put(r.Key(), r); err != nil {
			return err
		}
	}
	for event, err := range w.store.Watch(ctx, listing.Revision+1) {
		if err != nil {
			return lostError{w.named(err)}
		}
		if event.Err != nil {
			w.warn([]string{fmt.Sprintf("skipped %s: %v", event.Key, event.Err)})
		}
		if event.Record == nil {
			err = w.remove(event.Key)
		} else {
			err = w.put(event.Key, *event.Record)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) put(key string, r subnet.Record) error {
	old, ok := w.known[key]
	w.known[key] = r
	switch {
	case !ok:
		return w.event(added, r)
	case !sameLease(old, r):
		return w.event(changed, r)
	}
	return nil
}

func (w *watcher) remove(key string) error {
	old, ok := w.known[key]
	if !ok {
		return nil
	}
	delete(w.known, key)
	return w.event(removed, old)
}

// sameLease compares what people care for: flannel's renewals are puts with a new etcd lease.
func sameLease(a, b subnet.Record) bool {
	reserved := a.LeaseID == 0
	if reserved != (b.LeaseID == 0) {
		return false
	}
	b.CreateRevision, b.ModRevision, b.LeaseID = a.CreateRevision, a.ModRevision, a.LeaseID
	return a.Equal(b)
}

func (w *watcher) header() error {
	if !w.output.forPeople() {
		return nil
	}
	return w.line(append([]string{"EVENT"}, w.leaseHeader()...))
}

func (w *watcher) event(kind string, r subnet.Record) error {
	e := leaseEvent{kind, newLease(r)}
	switch w.output {
	case "json":
		return json.NewEncoder(w.stdout).Encode(e)
	case "yaml":
		data, err := yaml.Marshal(e)
		if err == nil {
			_, err = fmt.Fprintf(w.stdout, "---\n%s", data)
		}
		return err
	}
	return w.line(append([]string{kind}, w.leaseCells(e.lease)...))
}

// line writes one row. Nobody knows the rows to come, so the columns have a width that fits most.
func (w *watcher) line(cells []string) error {
	t := tabwriter.NewWriter(w.stdout, 16, 0, 2, ' ', 0)
	row(t, cells...)
	return t.Flush()
}
