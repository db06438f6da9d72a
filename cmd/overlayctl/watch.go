package main

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/overlayd/overlayd/subnet"
)

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
		Long: `Show the leases, then every change of one, until interrupted. A renewal is no change, and
several changes of one lease that come faster than they can be told are told as one.
With -o json every line is an object.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := watcher{app: a}
			return w.run(cmd.Context())
		},
	}
}

// watcher prints changes of leases.
type watcher struct {
	*app
	known   map[string]subnet.Record // what was printed last, by key
	skipped []string                 // what was warned of last
}

// run watches until ctx ends. That etcd goes away later is a warning: what was missed is found when it is back.
func (w *watcher) run(ctx context.Context) error {
	if _, err := w.listing(ctx); err != nil {
		return err
	}
	if w.output.forPeople() {
		if err := w.line(append([]string{"EVENT"}, w.leaseHeader()...)); err != nil {
			return err
		}
	}
	var away error
	for listing, err := range w.etcd.Follow(ctx) {
		if err != nil {
			if away == nil || away.Error() != err.Error() { // it is said again and again
				w.warn([]string{w.named(err).Error()})
			}
			away = err
			continue
		}
		away = nil
		skipped := skippedKeys(listing)
		w.warn(slices.DeleteFunc(slices.Clone(skipped), func(line string) bool { return slices.Contains(w.skipped, line) }))
		w.skipped = skipped
		if err := w.catchUp(listing.Records); err != nil {
			return err
		}
	}
	return nil
}

// catchUp prints how records differ from what is known.
func (w *watcher) catchUp(records []subnet.Record) error {
	before := w.known
	w.known = make(map[string]subnet.Record, len(records))
	for _, r := range records {
		w.known[r.Key()] = r
	}
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if _, still := w.known[key]; !still {
			if err := w.event(removed, before[key]); err != nil {
				return err
			}
		}
	}
	for _, r := range records {
		kind := added
		if old, known := before[r.Key()]; known && sameLease(old, r) {
			continue
		} else if known {
			kind = changed
		}
		if err := w.event(kind, r); err != nil {
			return err
		}
	}
	return nil
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
	_, err = w.stdout.Write(data)
	return err
}

// line writes one row. Nobody knows the rows to come, so the columns have a width that fits most.
func (w *watcher) line(cells []string) error {
	t := tabwriter.NewWriter(w.stdout, 16, 0, 2, ' ', 0)
	row(t, cells...)
	return t.Flush()
}
