package enforcer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/backend/task"
	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

func bubble(name string, t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { f(t, newRig(t)) }) })
}

// A host of a network without policies has nothing in the kernel, follows no endpoints, writes none, and remembers nothing.
func TestNothingWithoutPolicies(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		<-r.Applied()
		synctest.Wait()
		if did := r.table.did(); len(did) > 0 {
			t.Errorf("it did %v", did)
		}
		if got := r.store.following(); !slices.Equal(got, []string{etcdstore.NamespaceDir, etcdstore.PolicyKeys}) {
			t.Errorf("it follows %v", got)
		}
		if have, _ := r.writer.Status(); len(have) > 0 {
			t.Errorf("it publishes %v", have)
		}
		if _, err := os.Stat(filepath.Join(r.dir, MemoryName)); !os.IsNotExist(err) {
			t.Errorf("memory: %v", err)
		}
		if s := r.Status(); s.Enforcing || !s.InStep || s.Error != "" || s.Local != 1 {
			t.Errorf("status %+v", s)
		}
	})
}

// A policy isolates, lets in who is meant here and elsewhere, and goes without a trace.
func TestPolicyComesAndGoes(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web", "default/cli 10.5.72.3 app=cli")
		r.store.change(2, "endpoints/default/b/10.5.73.2", endpoint("cli", "10.5.73.2", map[string]string{"app": "cli"}))
		r.start()
		r.lets("10.5.72.2", "open")
		r.apply(allow("web", "web", "cli"))
		r.lets("10.5.72.2", "10.5.72.3 ", "10.5.73.2 ")
		r.lets("10.5.72.3", "open")
		eventually(t, "br_netfilter is on", func() bool { r.table.mu.Lock(); defer r.table.mu.Unlock(); return r.table.bridges["cni0"] })
		eventually(t, "only the client is published", func() bool {
			have, _ := r.writer.Status()
			return len(have) == 1 && strings.Contains(have["default/a/10.5.72.3"], `"cli"`) && r.writer.lease == 1
		})
		if got := r.store.following(); !slices.Contains(got, "endpoints/default/") {
			t.Errorf("it follows %v", got)
		}
		r.store.change(0, "endpoints/default/b/10.5.73.2", "")
		r.lets("10.5.72.2", "10.5.72.3 ")
		r.apply(policy.Policy{Namespace: "default", Name: "web"})
		eventually(t, "the tables go", func() bool { return slices.Contains(r.table.did(), "remove") })
		eventually(t, "nothing is published", func() bool { have, _ := r.writer.Status(); return len(have) == 0 })
		eventually(t, "it follows no endpoints", func() bool { return len(r.store.following()) == 2 })
		synctest.Wait()
		if r.table.bridges["cni0"] {
			t.Error("br_netfilter is on")
		}
		eventually(t, "nothing is remembered", func() bool { _, err := os.Stat(filepath.Join(r.dir, MemoryName)); return os.IsNotExist(err) })
	})
}

// Connections are judged once what is denied has settled: of a new policy the peers may come a little later.
func TestCutWaitsForPeers(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		<-r.Applied()
		begun := time.Now()
		r.apply(allow("web", "web", "cli"))
		cuts := func() (n int) {
			for _, c := range r.table.did() {
				if c == "cut []" {
					n++
				}
			}
			return n
		}
		time.Sleep(cutAfter / 2)
		if cuts() > 0 {
			t.Error("cut at once")
		}
		r.store.change(2, "endpoints/default/b/10.5.73.2", endpoint("cli", "10.5.73.2", map[string]string{"app": "cli"}))
		eventually(t, "connections are judged", func() bool { return cuts() == 1 })
		if took := time.Since(begun); took > 500*time.Millisecond {
			t.Errorf("cut after %v", took)
		}
		r.lets("10.5.72.2", "10.5.73.2 ")
	})
}

// A container that is pending passes when its policies are in force, and without the connections of who had its address.
func TestPendingIsReleased(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		r.apply(allow("web", "web", ""))
		r.lets("10.5.72.2")
		r.table.mu.Lock()
		r.table.pending, r.table.calls = []netip.Addr{netip.MustParseAddr("10.5.72.9"), netip.MustParseAddr("10.5.72.10")}, nil
		r.table.mu.Unlock()
		r.have("default/web 10.5.72.2 app=web", "default/new 10.5.72.9 app=web")
		r.lets("10.5.72.9")
		synctest.Wait()
		want := []string{"apply", "cut [10.5.72.9]", "release [10.5.72.9]"}
		if got := r.table.did(); !slices.Equal(got, want) {
			t.Errorf("it did %q, want %q", got, want)
		}
		r.table.mu.Lock()
		r.table.pending, r.table.calls = append(r.table.pending, netip.MustParseAddr("10.5.72.11")), nil
		r.table.mu.Unlock()
		r.have("default/web 10.5.72.2 app=web", "default/new 10.5.72.9 app=web", "default/newer 10.5.72.11 app=web untracked")
		r.lets("10.5.72.11")
		synctest.Wait()
		want = []string{"apply", "release [10.5.72.11]"} // nobody had connections with it
		if got := r.table.did(); !slices.Equal(got, want) {
			t.Errorf("it did %q, want %q", got, want)
		}
		if got := r.Status().Pending; !slices.Equal(got, []string{"10.5.72.10"}) {
			t.Errorf("pending are %v", got)
		}
	})
}

// At the start what an earlier run has left stays until policies, containers and peers are known.
func TestStartIsWhole(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.apply(allow("web", "web", "cli"))
		r.store.change(2, "endpoints/default/b/10.5.73.2", endpoint("cli", "10.5.73.2", map[string]string{"app": "cli"}))
		r.have("default/web 10.5.72.2 app=web")
		<-r.changes // they are not read yet
		go func() { time.Sleep(time.Second); task.Signal(r.changes) }()
		ended := make(chan struct{}) // it writes what it remembers
		go func() { defer close(ended); _ = r.Run(t.Context()) }()
		t.Cleanup(func() { <-ended })
		time.Sleep(500 * time.Millisecond)
		r.Peers(map[string]*subnet.Record{"b": lease("b", "10.5.73.0/24", 2)})
		r.Own(lease("a", "10.5.72.0/24", 1))
		time.Sleep(100 * time.Millisecond)
		if did := r.table.did(); len(did) > 0 {
			t.Errorf("before containers are known it did %v", did)
		}
		<-r.Applied()
		if got := r.table.in("10.5.72.2"); len(got) != 1 || !strings.HasPrefix(got[0], "10.5.73.2") {
			t.Errorf("the first table lets in %v", got)
		}
	})
}

// Without etcd a host comes up with what was in force, and its peers.
func TestMemory(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.apply(allow("web", "web", "cli"))
		cli := endpoint("cli", "10.5.73.2", map[string]string{"app": "cli"})
		r.store.change(2, "endpoints/default/b/10.5.73.2", cli, "endpoints/default/b/10.5.73.3", endpoint("cli", "10.5.73.3", nil))
		r.have("default/web 10.5.72.2 app=web")
		stop := r.start()
		r.lets("10.5.72.2", "10.5.73.2 ")
		stop()
		if file, err := os.ReadFile(filepath.Join(r.dir, MemoryName)); !strings.Contains(string(file), text(t, rememberedPeer{"default/b/10.5.73.2", cli, 2})) {
			t.Errorf("it remembers %s, %v", file, err)
		}
		r.store.away = true
		r.renew()
		task.Signal(r.changes)
		begun := time.Now()
		r.start()
		<-r.Applied()
		if took := time.Since(begun); took < rememberAfter {
			t.Errorf("it went by its memory after %v", took)
		}
		if got := r.table.in("10.5.72.2"); len(got) != 1 || !strings.HasPrefix(got[0], "10.5.73.2") {
			t.Errorf("the first table lets in %v", got)
		}
		synctest.Wait()
		if s := r.Status(); !s.Remembered || !s.Enforcing {
			t.Errorf("status %+v", s)
		}
	})
}

// What is remembered is written when it changed, and not after whatever else happens.
func TestMemoryRests(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.apply(allow("web", "web", "cli"))
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		old := time.Unix(1, 0)
		written := func() bool { // since it was last asked
			time.Sleep(time.Minute)
			synctest.Wait()
			path := filepath.Join(r.dir, MemoryName)
			info, err := os.Stat(path)
			if err == nil {
				err = os.Chtimes(path, old, old)
			}
			if err != nil {
				t.Fatal(err)
			}
			return !info.ModTime().Equal(old)
		}
		if written(); written() {
			t.Error("it was written although nothing happened")
		}
		if task.Signal(r.changes); written() {
			t.Error("it was written although nothing changed")
		}
		if r.apply(allow("web", "web", "other")); !written() {
			t.Error("it was not written although a policy changed")
		}
	})
}

// What is remembered is whole, and the latest, whenever the daemon ends: before, while, or after it is written.
func TestMemoryAtTheEnd(t *testing.T) {
	const peers = 2000
	for i := range 20 {
		r := newRig(t)
		r.have("default/web 10.5.72.2 app=web")
		var values []string
		for p := range peers {
			ip := fmt.Sprintf("10.5.73.%d", p%250+2)
			values = append(values, fmt.Sprintf("endpoints/default/b%d/%s", p/250, ip), endpoint("cli", ip, map[string]string{"app": "cli"}))
		}
		r.store.change(2, values...)
		r.apply(allow("web", "web", "cli"))
		stop := r.start()
		leases := map[string]*subnet.Record{}
		for p := range peers / 250 {
			id := fmt.Sprintf("b%d", p)
			leases[id] = lease(id, "10.5.73.0/24", 2)
		}
		r.Peers(leases)
		<-r.Applied()
		r.in(func() { r.memory.dirty, r.memory.due = true, time.Time{} })
		r.apply(allow("last", "web", "cli"))
		eventually(t, "the last policy is known", func() (known bool) {
			r.in(func() { known = count(r.believed.values) == 2 && !r.memory.writing })
			return known
		})
		if err := os.Remove(filepath.Join(r.dir, MemoryName)); err != nil {
			t.Fatal(err)
		}
		r.in(func() { r.memory.dirty, r.memory.due = true, time.Time{} })
		task.Signal(r.wake)
		time.Sleep(time.Duration(i) * 200 * time.Microsecond)
		stop()
		data, err := os.ReadFile(filepath.Join(r.dir, MemoryName))
		if err != nil {
			t.Fatal(err)
		}
		var is remembered
		var endpoints []rememberedPeer
		err = errors.Join(json.Unmarshal(data, &is), json.Unmarshal(is.Endpoints, &endpoints))
		if err != nil || count(is.Values) != 2 || len(endpoints) != peers {
			t.Fatalf("%d policies and %d endpoints are remembered: %v", count(is.Values), len(endpoints), err)
		}
		left, err := os.ReadDir(r.dir)
		if err != nil || len(left) != 1 {
			t.Errorf("left behind: %v (%v)", left, err)
		}
	}
}

// A host that had no policies comes up without etcd as before.
func TestNoMemory(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.store.away = true
		r.start()
		<-r.Applied()
		if did := r.table.did(); len(did) > 0 {
			t.Errorf("it did %v", did)
		}
	})
}

// What cannot be read isolates its namespace, allows nothing, and is named.
func TestUnreadablePolicy(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web", "other/web 10.5.72.3 app=web")
		r.start()
		<-r.Applied()
		r.store.change(0, "policy/default/junk", `{"namespace":"default","na`, "policy/fourth", "junk", "namespaces/third", "junk")
		r.lets("10.5.72.2")
		r.lets("10.5.72.3", "open")
		synctest.Wait()
		if s := r.Status(); s.Unreadable["default/junk"] == "" || s.Unreadable["namespace third"] == "" || !strings.Contains(s.Error, "default/junk") {
			t.Errorf("status %+v", s)
		}
		r.store.relist(func(v map[string]etcdstore.KeyValue) {
			v["policy/default/junk"] = etcdstore.KeyValue{Key: "policy/default/junk"}
		})
		eventually(t, "an empty one cannot be read either", func() bool { return strings.Contains(r.Status().Unreadable["default/junk"], "EOF") })
		r.lets("10.5.72.2")
		r.store.change(0, "policy/default/junk", "", "policy/fourth", "", "namespaces/third", "")
		r.lets("10.5.72.2", "open")
		eventually(t, "nothing needs attention", func() bool { return r.Problem() == nil })
	})
}

// What etcd has lost without a word stays in force until somebody confirms it. A watched delete counts at once.
func TestWipedEtcd(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web", "default/db 10.5.72.3 app=db")
		r.start()
		r.apply(allow("web", "web", ""), allow("db", "db", ""))
		r.lets("10.5.72.2")
		r.lets("10.5.72.3")
		backup := map[string]etcdstore.KeyValue{}
		r.store.relist(func(v map[string]etcdstore.KeyValue) {
			for key, kv := range v {
				backup[key] = kv
				delete(v, key)
			}
		})
		eventually(t, "it is shouted about", func() bool { return strings.Contains(r.Status().Doubted, "overlayctl policy confirm") })
		r.lets("10.5.72.2")
		// Another policy is applied to the empty etcd: that is not meant to delete the others.
		r.apply(allow("web", "web", "cli"))
		synctest.Wait()
		r.lets("10.5.72.3")
		r.lets("10.5.72.2")
		// Nor is it if the host lists anew, for its connection was cut.
		r.store.relist(func(map[string]etcdstore.KeyValue) {})
		synctest.Wait()
		r.lets("10.5.72.3")
		r.store.change(0, etcdstore.PolicyIndexKey, r.confirmed(1))
		r.lets("10.5.72.3", "open")
		synctest.Wait()
		if s := r.Status(); s.Doubted != "" || s.Policies != 1 {
			t.Errorf("confirmed, and %+v", s)
		}
		// Restored from a backup: older than what is known.
		r.store.relist(func(v map[string]etcdstore.KeyValue) {
			clear(v)
			for key, kv := range backup {
				v[key] = kv
			}
		})
		eventually(t, "it is shouted about", func() bool { return r.Status().Doubted != "" })
		r.lets("10.5.72.3", "open")
		r.apply(allow("web", "web", "cli")) // to the backup: the same
		r.store.relist(func(map[string]etcdstore.KeyValue) {})
		synctest.Wait()
		r.lets("10.5.72.3", "open")
		r.store.change(0, etcdstore.PolicyIndexKey, r.confirmed(2))
		r.lets("10.5.72.3")
		// Deleted while it is not watched, and said so.
		r.store.relist(func(v map[string]etcdstore.KeyValue) {
			delete(v, "policy/default/db")
			v[etcdstore.PolicyIndexKey] = etcdstore.KeyValue{Key: etcdstore.PolicyIndexKey, Value: []byte(text(t, r.next(v, 1)))}
		})
		r.lets("10.5.72.3", "open")
		if r.Status().Doubted != "" {
			t.Error("doubted")
		}
	})
}

// Endpoints of other hosts count if they are theirs, and from when that is known.
func TestForeignEndpoints(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		r.apply(allow("web", "web", "cli"))
		r.lets("10.5.72.2")
		cli := map[string]string{"app": "cli"}
		many := map[string]string{"app": "cli"}
		for i := range 10_000 {
			many[fmt.Sprint("label-", i)] = "x"
		}
		for _, bad := range []struct {
			key, value string
			lease      int64
			why        refusal
		}{
			{"default/b/10.5.74.9", endpoint("x", "10.5.74.9", cli), 2, refusedAddress},
			{"default/b/10.5.72.9", endpoint("x", "10.5.72.9", cli), 2, refusedAddress},
			{"default/b/192.0.2.1", endpoint("x", "192.0.2.1", cli), 2, refusedAddress},
			{"default/b/10.5.73.8", endpoint("x", "10.5.73.8", cli), 3, refusedLease},
			{"default/b/10.5.73.8", endpoint("x", "10.5.73.8", cli), 0, refusedLease},
			{"default/z/10.5.73.8", endpoint("x", "10.5.73.8", cli), 2, refusedHost},
			{"default/b/10.5.73.8", endpoint("x", "10.5.73.7", cli), 2, refusedValue},
			{"default/b/10.5.73.8", endpoint("x", "10.5.73.8", many), 2, refusedValue},
			{"default/b/10.5.73.8", `{"ips":[]}`, 2, refusedValue},
			{"default/b/10.5.73.8", "junk", 2, refusedValue},
			{"default/b/10.5.73.08", endpoint("x", "10.5.73.8", cli), 2, refusedKey},
			{"default/b/b/10.5.73.8", endpoint("x", "10.5.73.8", cli), 2, refusedKey},
			{"default//10.5.73.8", endpoint("x", "10.5.73.8", cli), 2, refusedKey},
		} {
			r.store.change(bad.lease, "endpoints/"+bad.key, bad.value)
			eventually(t, fmt.Sprint(bad, " is refused"), func() bool { return r.Status().Refused == 1 })
			var got peer
			r.in(func() { got = r.peers.refused[bad.key] })
			if got.why != bad.why {
				t.Errorf("%v is refused as %q", bad, got.why)
			}
			r.lets("10.5.72.2")
			r.store.change(0, "endpoints/"+bad.key, "")
			eventually(t, "it is gone", func() bool { return r.Status().Refused == 0 })
		}
		// One that comes before its host's lease.
		r.store.change(4, "endpoints/default/d/10.5.75.2", endpoint("cli", "10.5.75.2", cli))
		eventually(t, "it is refused", func() bool { return r.Status().Refused == 1 })
		r.Peers(map[string]*subnet.Record{"d": lease("d", "10.5.75.0/24", 4)})
		r.lets("10.5.72.2", "10.5.75.2 ")
		r.Peers(map[string]*subnet.Record{"d": lease("d", "10.5.75.0/24", 5)}) // its own lease was claimed anew: it will follow
		synctest.Wait()
		r.lets("10.5.72.2", "10.5.75.2 ")
		r.Peers(map[string]*subnet.Record{"d": nil})
		r.lets("10.5.72.2")
		r.Peers(map[string]*subnet.Record{"d": lease("d", "10.5.75.0/24", 5)}) // what it is on is not forgotten
		synctest.Wait()
		r.lets("10.5.72.2")
		r.Peers(map[string]*subnet.Record{"d": lease("d", "10.5.75.0/24", 4)})
		r.lets("10.5.72.2", "10.5.75.2 ")
	})
}

// Of a host no more endpoints count than its subnet has addresses; one more does when another is gone.
func TestForeignEndpointsAreBounded(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		r.apply(allow("web", "web", "cli"), policy.Policy{Namespace: "default", Name: "all", Spec: policy.Spec{PolicyTypes: []policy.Type{policy.Ingress},
			Ingress: []policy.IngressRule{{From: []policy.Peer{{NamespaceSelector: &policy.Selector{}}}}}}})
		r.Peers(map[string]*subnet.Record{"d": lease("d", "10.5.75.0/30", 4)})
		value := endpoint("x", "10.5.75.1", nil)
		for _, ns := range []string{"a", "b", "c", "d", "e", "f"} {
			r.store.change(4, "endpoints/"+ns+"/d/10.5.75.1", value)
		}
		eventually(t, "four count", func() bool { s := r.Status(); return s.Peers == 4 && s.Refused == 2 })
		var why refusal
		r.in(func() { why = r.peers.refused["e/d/10.5.75.1"].why })
		if why != refusedNumber {
			t.Errorf("the fifth is refused as %q", why)
		}
		r.store.change(4, "endpoints/a/d/10.5.75.1", value) // it was there
		r.store.change(4, "endpoints/b/d/10.5.75.1", endpoint("y", "10.5.75.1", nil))
		synctest.Wait()
		if s := r.Status(); s.Peers != 4 || s.Refused != 2 {
			t.Errorf("%d count, and %d do not", s.Peers, s.Refused)
		}
		r.store.change(0, "endpoints/a/d/10.5.75.1", "", "endpoints/f/d/10.5.75.1", "")
		eventually(t, "the fifth counts", func() bool { s := r.Status(); return s.Peers == 4 && s.Refused == 0 })
	})
}

// A kernel that refuses is tried again, and what comes meanwhile is not lost.
func TestKernelRefuses(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		<-r.Applied()
		r.table.refuses = errors.New("no memory")
		r.apply(allow("web", "web", ""))
		eventually(t, "it is told", func() bool { err := r.Problem(); return err != nil && strings.Contains(err.Error(), "no memory") })
		r.have("default/web 10.5.72.2 app=web", "default/two 10.5.72.3 app=web")
		time.Sleep(time.Second)
		if n := len(r.table.did()); n > 6 {
			t.Errorf("it tried %d times in a second", n)
		}
		r.table.mu.Lock()
		r.table.refuses = nil
		r.table.mu.Unlock()
		r.lets("10.5.72.2")
		r.lets("10.5.72.3")
		eventually(t, "nothing needs attention", func() bool { return r.Problem() == nil })
	})
}

// What others change is made anew, and connections are judged.
func TestHealed(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		r.apply(allow("web", "web", ""))
		r.lets("10.5.72.2")
		time.Sleep(time.Second)
		r.table.mu.Lock()
		r.table.calls = nil
		r.table.mu.Unlock()
		task.Signal(r.table.changed)
		time.Sleep(time.Second)
		if got, want := r.table.did(), []string{"rebuild", "cut []"}; !slices.Equal(got, want) {
			t.Errorf("it did %q, want %q", got, want)
		}
	})
}

// By its link-local address a container is what it is by its others, on its own host; other hosts are not told.
func TestLinkLocalAddresses(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.have("default/web 10.5.72.2 fe80::2 app=web", "default/cli 10.5.72.3 fe80::3 app=cli", "default/other 10.5.72.4 fe80::4")
		r.start()
		r.apply(allow("web", "web", "cli"))
		r.lets("fe80::2", "10.5.72.3 ", "fe80::3 ")
		r.lets("fe80::3", "open")
		eventually(t, "the client is published", func() bool {
			have, _ := r.writer.Status()
			value, ok := have["default/a/10.5.72.3"]
			return ok && !strings.Contains(value, "fe80")
		})
	})
}

// Whoever waits until policies are in force is woken by that, and not by the next thing that happens.
func TestAppliedIsNews(t *testing.T) {
	bubble("", t, func(t *testing.T, r *rig) {
		r.apply(allow("web", "web", "cli"))
		r.have("default/web 10.5.72.2 app=web")
		r.start()
		<-r.Applied()
		synctest.Wait()
		select {
		case <-r.Changed():
		default:
			t.Error("nobody is told that policies are in force")
		}
	})
}
