package enforcer

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	naming "github.com/overlayd/overlayd/cmd/internal/names"
	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/etcdstore"
)

// told is what names know, and ask for.
type told struct {
	*naming.Index
	*namesDemand
}

// namesDemand is a Demand in which a test asks.
type namesDemand struct {
	wants chan struct{}

	mu         sync.Mutex
	namespaces []string
	known      []string
	all        bool
}

func (d *namesDemand) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (d *namesDemand) Wants() <-chan struct{}        { return d.wants }

func (d *namesDemand) Wanted() (bool, []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all, d.namespaces
}

func (d *namesDemand) Known(all []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = all
}

func (d *namesDemand) want(all bool, some ...string) {
	d.mu.Lock()
	d.all, d.namespaces = all, some
	d.mu.Unlock()
	d.wants <- struct{}{}
}
func (n told) is(t *testing.T, ns, name, want string) {
	t.Helper()
	eventually(t, name+"."+ns+" is "+want, func() bool {
		addrs, _ := n.Lookup(ns, name, 0)
		return strings.Trim(fmt.Sprint(addrs), "[]") == want
	})
}

func withNames(t *testing.T, f func(t *testing.T, r *rig, n told)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := told{naming.NewIndex(), &namesDemand{wants: make(chan struct{}, 1)}}
		r := newRig(t)
		r.named = n
		r.renew()
		f(t, r, n)
	})
}

// Names need no policy: all of this host's endpoints are published, and others' are followed as soon as somebody asks, and as long.
func TestNamesWithoutPolicies(t *testing.T) {
	withNames(t, func(t *testing.T, r *rig, n told) {
		r.have("default/web 10.5.72.2 app=web", "dev/x 10.5.72.3", "default/outside 192.0.2.7")
		r.store.change(2, "endpoints/dev/b/10.5.73.2", endpoint("db", "10.5.73.2", nil))
		r.start()
		n.is(t, "default", "web", "10.5.72.2")
		n.is(t, "dev", "x", "10.5.72.3")
		n.is(t, "default", "outside", "")
		eventually(t, "both are published", func() bool { have, _ := r.writer.Status(); return len(have) == 2 && r.writer.lease == 1 })
		synctest.Wait()
		if got := r.store.following(); !slices.Equal(got, []string{etcdstore.NamespaceDir, etcdstore.PolicyKeys}) {
			t.Errorf("without a question it follows %v", got)
		}
		n.is(t, "dev", "db", "")
		n.want(false, "dev")
		n.is(t, "dev", "db", "10.5.73.2")
		if synctest.Wait(); !slices.Equal(n.known, []string{"dev"}) {
			t.Errorf("known: %v", n.known)
		}
		r.store.change(2, "endpoints/dev/b/10.5.73.3", endpoint("late", "10.5.73.3", nil))
		n.is(t, "dev", "late", "10.5.73.3")
		r.store.change(0, "endpoints/dev/b/10.5.73.3", "")
		n.is(t, "dev", "late", "")
		n.want(true)
		eventually(t, "all are followed", func() bool { return slices.Contains(r.store.following(), etcdstore.EndpointDir) })
		if synctest.Wait(); !slices.Equal(n.known, []string{""}) {
			t.Errorf("known: %q", n.known)
		}
		if did := r.table.did(); len(did) > 0 {
			t.Errorf("the kernel: %v", did)
		}
		n.want(false)
		eventually(t, "none are followed", func() bool { return len(r.store.following()) == 2 })
		n.is(t, "dev", "db", "")
		n.is(t, "dev", "x", "10.5.72.3")
		r.have("default/web 10.5.72.2 app=web")
		n.is(t, "dev", "x", "")
		eventually(t, "one is published", func() bool { have, _ := r.writer.Status(); return len(have) == 1 })
	})
}

// What a host says counts for its own addresses alone, and while it has its lease; etcd's silence changes nothing.
func TestNamesOfOtherHostsAreJudged(t *testing.T) {
	withNames(t, func(t *testing.T, r *rig, n told) {
		r.store.change(2, "endpoints/default/b/10.5.73.2", endpoint("web", "10.5.73.2", nil))
		r.store.change(3, "endpoints/default/c/10.5.73.9", endpoint("poisoned", "10.5.73.9", nil))
		r.store.change(9, "endpoints/default/c/10.5.74.9", endpoint("unleased", "10.5.74.9", nil))
		r.store.change(3, "endpoints/default/c/10.5.74.8", endpoint("a/b", "10.5.74.8", nil), "endpoints/default/c/10.5.74.7", "{")
		r.store.change(3, "endpoints/default/c/10.5.74.2", endpoint("web", "10.5.74.2", nil))
		r.start()
		n.want(false, "default")
		n.is(t, "default", "web", "10.5.73.2") // it was first
		for _, name := range []string{"poisoned", "unleased", "a/b"} {
			n.is(t, "default", name, "")
		}
		r.store.mu.Lock()
		tells := r.store.tells
		for _, tell := range tells {
			go tell(etcdstore.News{Err: errors.New("etcd is away")})
		}
		r.store.mu.Unlock()
		synctest.Wait()
		n.is(t, "default", "web", "10.5.73.2")
		r.Peers(map[string]*subnet.Record{"b": nil})
		n.is(t, "default", "web", "10.5.74.2")
	})
}

// Thousands change at once: all are known within the time that one takes.
func TestThousandsOfNamesChange(t *testing.T) {
	withNames(t, func(t *testing.T, r *rig, n told) {
		r.start()
		n.want(true)
		crowd := func(text string) {
			var all []string
			for i := range 5000 {
				ip := netip.AddrFrom4([4]byte{10, 6, byte(i >> 8), byte(i)}).String()
				all = append(all, "endpoints/default/d/"+ip, endpoint(fmt.Sprint(text, i), ip, map[string]string{"com.docker.compose.service": text}))
			}
			r.store.change(4, all...)
		}
		r.Peers(map[string]*subnet.Record{"d": lease("d", "10.6.0.0/16", 4)})
		start := time.Now()
		crowd("a")
		n.is(t, "default", "a4999", "10.6.19.135")
		crowd("b")
		n.is(t, "default", "b0", "10.6.0.0")
		n.is(t, "default", "a0", "")
		if addrs, _ := n.Lookup("default", "b", 0); len(addrs) != 5000 || time.Since(start) > 5*time.Second {
			t.Errorf("%d, after %v", len(addrs), time.Since(start))
		}
	})
}
