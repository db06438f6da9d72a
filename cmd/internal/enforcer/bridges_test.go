package enforcer

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/overlayd/overlayd/policy"
)

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
