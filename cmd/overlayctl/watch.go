package main

import (
	"context"
	"encoding/json"
	"errors"
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
	store   *etcdstore.Store
	known   map[string]subnet.Record // what was printed last, by key
	started bool                     // the leases were listed once
}

// outputError says that nobody can be told anything any more.
type outputError struct{ error }

// run watches until ctx ends. That etcd goes away later is a warning: what was missed is found when it is back.
func (w *watcher) run(ctx context.Context) error {
	for {
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if _, mute := errors.AsType[outputError](err); mute || !w.started {
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

// follow prints how what etcd holds differs from what is known, and then what changes.
func (w *watcher) follow(ctx context.Context) error {
	listing, err := w.listing(ctx, w.store)
	if err != nil {
		return err
	}
	if err := w.start(); err != nil {
		return err
	}
	if err := w.catchUp(listing.Records); err != nil {
		return err
	}
	for event, err := range w.store.Watch(ctx, listing.Revision+1) {
		if err != nil {
			return w.named(err)
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

// catchUp prints how records differ from what is known.
func (w *watcher) catchUp(records []subnet.Record) error {
	gone := maps.Clone(w.known)
	for _, r := range records {
		delete(gone, r.Key())
	}
	for _, key := range slices.Sorted(maps.Keys(gone)) {
		if err := w.remove(key); err != nil {
			return err
		}
	}
	for _, r := range records {
		if err := w.put(r.Key(), r); err != nil {
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

// start prints the header of the table, once.
func (w *watcher) start() error {
	if w.started || !w.output.forPeople() {
		w.started = true
		return nil
	}
	w.started = true
	return w.line(append([]string{"EVENT"}, w.leaseHeader()...))
}

func (w *watcher) event(kind string, r subnet.Record) error {
	e := leaseEvent{kind, newLease(r)}
	if w.output.forPeople() {
		return w.line(append([]string{kind}, w.leaseCells(e.lease)...))
	}
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if w.output == "yaml" {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return err
		}
		data = append([]byte("---\n"), data...)
	} else {
		data = append(data, '\n')
	}
	if _, err := w.stdout.Write(data); err != nil {
		return outputError{err}
	}
	return nil
}

// line writes one row. Nobody knows the rows to come, so the columns have a width that fits most.
func (w *watcher) line(cells []string) error {
	t := tabwriter.NewWriter(w.stdout, 16, 0, 2, ' ', 0)
	row(t, cells...)
	if err := t.Flush(); err != nil {
		return outputError{err}
	}
	return nil
}
