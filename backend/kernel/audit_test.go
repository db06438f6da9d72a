package kernel

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/task"
)

// Whatever comes in the middle of an audit does not wait for its end, and the audit comes to one.
func TestAuditGivesWay(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		const peers = 2_000 // some pieces of every kind
		ns := testHost(t)
		r, log := atRest(t, ns, o.network(peers))
		nstest.Sh(t, ns, fmt.Sprintf("ip route del %s; ip neighbour del %s dev %s; bridge fdb del %s dev %[3]s",
			o.subnet(1), o.subnet(2).Addr(), o.link.Name, peerMAC(3)))
		nstest.Sh(t, ns, fmt.Sprintf("ip neighbour add %s lladdr %s nud permanent dev %s", o.subnet(9_000).Addr(), peerMAC(9), o.link.Name))
		r.watch.take() // nobody hears of it

		r.audit.at = time.Now()
		r.work(t.Context())
		passes := 0
		for r.audit.kind != 0 {
			p := <-r.audit.pieces
			if !r.audit.alone {
				r.Update("", []Claim{{fmt.Sprintf("peer%d", 10+passes), nil}, {fmt.Sprintf("peer%d", 4_000+passes), o.peer(4_000 + passes)}})
				r.listen()
				r.work(t.Context())
				if want := o.subnet(4_000 + passes); nstest.Sh(t, ns, fmt.Sprintf("%s ip $family route show %s", variables(o), want)) == "" {
					t.Fatalf("pass %d: no route to %s", passes, want)
				}
				passes++
			}
			r.compare(t.Context(), p)
		}
		if passes < 4 {
			t.Errorf("%d passes in an audit: nothing is tested", passes)
		}
		r.work(t.Context())
		want := map[Kind]int{KindRoute: 1, KindNeighbour: 1, KindFDB: 1}
		if diff := cmp.Diff(want, r.Status().Healed); diff != "" || !r.Status().InStep {
			t.Errorf("healed (-want +got):\n%s", diff)
		}
		if lines := log.lines("swept"); len(lines) != 1 {
			t.Errorf("log: %q, want that one neighbour was swept", lines)
		}
		var left []int
		for i := 1; i <= peers; i++ {
			if i < 10 || i >= 10+passes {
				left = append(left, i)
			}
		}
		for n := range passes {
			left = append(left, 4_000+n)
		}
		wants, got := wantsOf(o, left...), kernelHas(t, ns, o)
		slices.Sort(wants)
		slices.Sort(got)
		if diff := cmp.Diff(wants, got); diff != "" {
			t.Errorf("kernel (-want +got):\n%s", diff)
		}
	})
}

// An audit that gave way is not the last one where something is lost meanwhile.
func TestLostInAnAudit(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		r, _ := atRest(t, ns, o.network(2_000))
		r.audit.at = time.Now()
		r.work(t.Context())
		for r.audit.kind < KindRoute { // the neighbours are done with
			r.compare(t.Context(), <-r.audit.pieces)
		}
		nstest.Sh(t, ns, fmt.Sprintf("ip neighbour del %s dev %s", o.subnet(2).Addr(), o.link.Name))
		r.watch.take()
		r.watch.mu.Lock()
		r.watch.Lose()
		r.watch.mu.Unlock()
		task.Signal(r.watch.ready)
		for deadline := time.Now().Add(5 * time.Second); r.Status().Healed[KindNeighbour] == 0; {
			if time.Now().After(deadline) {
				t.Fatal("not healed")
			}
			select { // as Run does
			case <-r.watch.ready:
			case <-time.After(time.Until(r.next())):
			}
			if r.audit.kind == 0 {
				r.work(t.Context())
			} else {
				task.Signal(r.watch.ready)
			}
			r.audited(t.Context())
		}
	})
}

// atRest is a Reconciler that brought ns to all; the test is to do the work that Run would.
func atRest(t *testing.T, ns netns.NsHandle, all map[string][]Object) (*Reconciler, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	r, err := New(Config{Namespace: ns, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	r.Replace("", byName(all))
	r.settle(t.Context())
	return r, log
}

// settle does what Run would until all is in step.
func (r *Reconciler) settle(ctx context.Context) {
	r.listen()
	for !r.Status().InStep {
		r.work(ctx)
		r.audited(ctx)
	}
}

// audited does what Run would until an audit that is under way has ended.
func (r *Reconciler) audited(ctx context.Context) {
	for r.audit.kind != 0 {
		if r.compare(ctx, <-r.audit.pieces) {
			r.work(ctx)
		}
	}
}
