package enforcer

import (
	"testing"
	"testing/synctest"
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
	})
}
