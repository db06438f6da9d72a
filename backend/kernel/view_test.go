package kernel

import (
	"net/netip"
	"testing"
	"time"
)

// What one network lacks is nothing to the others: each has its own count of objects, failures and news.
func TestViews(t *testing.T) {
	t.Parallel()
	begin := make(chan struct{})
	r := startConfig(t, Config{Namespace: testHost(t), Begin: begin})
	a, b := r.For("a"), r.For("b")
	if r.For("a") != a {
		t.Error("another view of the same network")
	}
	a.Replace(byName(overlays()[0].network(2)))
	time.Sleep(50 * time.Millisecond)
	if s := a.Status(); s.InStep || s.Pending == 0 || b.Status().Pending != 0 {
		t.Errorf("before all begin: a %+v, b %+v", s, b.Status())
	}
	close(begin)
	wait := func(v *View, what string, ok func(Status) bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for !ok(v.Status()) {
			select {
			case <-v.Changed():
			case <-deadline:
				t.Fatalf("not %s: %+v", what, v.Status())
			}
		}
	}
	wait(a, "in step", func(s Status) bool { return s.InStep && s.Objects[KindRoute] == 2 })
	b.Replace([]Claim{{Owner: "x", Objects: []Object{Address{Link: "absent", Prefix: netip.MustParsePrefix("10.9.0.0/32")}}}})
	wait(b, "pending", func(s Status) bool { return s.Pending == 1 && s.Objects[KindAddress] == 1 && s.Objects[KindRoute] == 0 })
	if s := a.Status(); s.Pending != 0 || len(s.Failed) != 0 || s.Objects[KindRoute] != 2 {
		t.Errorf("while another network waits for a link: %+v", s)
	}
	if s := r.Status(); s.Pending != 1 || s.InStep {
		t.Errorf("of all: %+v", s)
	}
	b.Replace(nil)
	wait(b, "empty", func(s Status) bool { return s.Pending == 0 && s.Objects[KindAddress] == 0 })
	if s := a.Status(); s.Objects[KindRoute] != 2 {
		t.Errorf("when the other has gone: %+v", s)
	}
}
