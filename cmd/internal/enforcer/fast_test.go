package enforcer

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/overlayd/overlayd/policy"
)

// Who is isolated, pending or not known yet takes the slow way, before the table isolates it, and for as long as it does.
func TestSlowWhileIsolated(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		slow := func(when, name, ip string, want bool) {
			t.Helper()
			synctest.Wait()
			if r.fast.isSlow(name, ip) != want {
				t.Errorf("%s: %s with %s slow: %v, want %v", when, name, ip, !want, want)
			}
		}
		isolated := func(ip string) {
			t.Helper()
			eventually(t, ip+" is isolated", func() bool { return !slices.Contains(r.table.in(ip), "open") })
		}
		r.have("default/web 10.5.72.2 app=web", "default/cli 10.5.72.3 app=cli")
		slow("before anything is known", "default-cli", "10.5.72.3", true)
		r.start()
		<-r.Applied()
		slow("without policies", "default-web", "10.5.72.2", false)
		slow("without policies", "whoever", "10.5.72.99", false)

		r.apply(allow("web", "web", "cli"))
		isolated("10.5.72.2")
		slow("isolated by the first policy", "default-web", "10.5.72.2", true)
		slow("not isolated", "default-cli", "10.5.72.3", false)
		slow("not known", "whoever", "10.5.72.99", true)
		slow("another container with the address", "whoever", "10.5.72.3", true)
		r.apply(allow("cli", "cli", "web"))
		isolated("10.5.72.3")
		slow("isolated, too", "default-cli", "10.5.72.3", true)
		r.apply(policy.Policy{Namespace: "default", Name: "web"})
		r.lets("10.5.72.2", "open")
		slow("free again", "default-web", "10.5.72.2", false)

		// One that is pending is, until it is let pass; one that is gone is at once.
		r.table.mu.Lock()
		r.table.pending = []netip.Addr{netip.MustParseAddr("10.5.72.4")}
		r.table.mu.Unlock()
		r.have("default/web 10.5.72.2 app=web", "default/cli 10.5.72.3 app=cli", "default/new 10.5.72.4 app=new")
		eventually(t, "the new one is let pass", func() bool { return slices.Contains(r.table.did(), "release [10.5.72.4]") })
		slow("let pass", "default-new", "10.5.72.4", false)
		r.have("default/cli 10.5.72.3 app=cli", "default/new 10.5.72.4 app=new")
		slow("gone", "default-web", "10.5.72.2", true)

		// What the kernel has not got yet frees nobody.
		r.refuse(true)
		r.apply(policy.Policy{Namespace: "default", Name: "cli"}, allow("new", "new", "web"))
		slow("to be isolated, and the kernel refuses", "default-new", "10.5.72.4", true)
		slow("to be free, and the kernel refuses", "default-cli", "10.5.72.3", true)
		r.refuse(false)
		r.lets("10.5.72.3", "open")
		slow("free", "default-cli", "10.5.72.3", false)
		r.apply(policy.Policy{Namespace: "default", Name: "new"})
		eventually(t, "the tables go", func() bool { return slices.Contains(r.table.did(), "remove") })
		slow("without policies again", "whoever", "10.5.72.99", false)
		if r.table.past {
			t.Error("a container was isolated while it was fast")
		}
	})
}

// refuse has the table refuse everything, or not.
func (r *rig) refuse(yes bool) {
	r.table.mu.Lock()
	defer r.table.mu.Unlock()
	if r.table.refuses = nil; yes {
		r.table.refuses = errors.New("no memory")
	}
}
