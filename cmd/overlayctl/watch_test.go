package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/subnet"
)

// TestCatchUp is what a watch prints when etcd was away: neither what it printed before nor what only was renewed.
func TestCatchUp(t *testing.T) {
	t.Parallel()
	record := func(host, prefix string, modRevision int64) subnet.Record {
		r := subnet.Record{Lease: leaseOf(prefix), CreateRevision: 1, ModRevision: modRevision, LeaseID: modRevision}
		r.Host = host
		return r
	}
	var out strings.Builder
	w := watcher{app: &app{stdout: &out, output: "json"}, known: map[string]subnet.Record{}}
	for _, records := range [][]subnet.Record{
		{record("same", "10.5.1.0/24", 1), record("renewed", "10.5.2.0/24", 1), record("old", "10.5.3.0/24", 1), record("gone", "10.5.4.0/24", 1)},
		{record("same", "10.5.1.0/24", 1), record("renewed", "10.5.2.0/24", 2), record("new", "10.5.3.0/24", 2), record("more", "10.5.5.0/24", 2)},
	} {
		out.Reset()
		if err := w.catchUp(records); err != nil {
			t.Fatal(err)
		}
	}
	want := `{"event":"REMOVED","host":"gone","hostID":"","subnets":["10.5.4.0/24"],"publicIPs":[],"backend":"","reserved":false}
{"event":"CHANGED","host":"new","hostID":"","subnets":["10.5.3.0/24"],"publicIPs":[],"backend":"","reserved":false}
{"event":"ADDED","host":"more","hostID":"","subnets":["10.5.5.0/24"],"publicIPs":[],"backend":"","reserved":false}
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}
