package enforcer

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/policy"
)

// A bridge whose traffic somebody takes from policies shows it again within a minute, and what was connected meanwhile is judged:
// twice, for what is seldom said is tracked late.
func TestBridgesAreLookedAtAgain(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		r.apply(allow("web", "web", ""))
		r.lets("10.5.72.2")
		time.Sleep(3 * lookAgain / 2)
		for _, off := range []bool{false, true} {
			r.table.mu.Lock()
			r.table.calls = nil
			if off {
				r.table.bridges["cni0"] = false
			}
			r.table.mu.Unlock()
			time.Sleep(lookAgain + time.Second)
			synctest.Wait()
			var want []string
			if off {
				want = []string{"cut []", "cut []"}
			}
			if got := r.table.did(); !slices.Equal(got, want) || !r.table.bridges["cni0"] {
				t.Errorf("taken away %t: it did %q, want %q", off, got, want)
			}
		}
	})
}

// A policy that isolates the first container of a host that enforces already has its bridge show its traffic.
func TestBridgesFollowIsolation(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		shown := func() bool {
			synctest.Wait()
			r.table.mu.Lock()
			defer r.table.mu.Unlock()
			return r.table.bridges["cni0"]
		}
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		r.apply(allow("others", "others", "cli"))
		r.lets("10.5.72.2", "open")
		if shown() {
			t.Error("nobody is isolated, and the bridge shows its traffic")
		}
		r.apply(allow("web", "web", "cli"))
		r.lets("10.5.72.2")
		if !shown() {
			t.Error("a container is isolated, and the bridge does not show its traffic")
		}
		r.apply(policy.Policy{Namespace: "default", Name: "web"}, policy.Policy{Namespace: "default", Name: "others"})
		eventually(t, "the tables go", func() bool { return slices.Contains(r.table.did(), "remove") })
		r.apply(allow("web", "web", "cli"))
		r.lets("10.5.72.2")
		if r.table.unseen {
			t.Error("a container was isolated before the bridge showed its traffic")
		}
	})
}
