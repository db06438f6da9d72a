package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func putRaw(t *testing.T, s *Store, key, value string) {
	t.Helper()
	err := s.request(t.Context(), func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Put(ctx, s.prefix+key, value)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// names are those of the networks, with a mark where they are not followed.
func names(n Networks) (all []string) {
	for _, x := range n.All {
		name := written(x.Name)
		if !x.Followed {
			name += "?"
		}
		all = append(all, name)
	}
	return all
}

func TestNetworksAreFoundByTheirConfig(t *testing.T) {
	t.Parallel()
	s := openStore(t, startEtcd(t, "").Endpoint())
	found, err := s.Networks(t.Context())
	if err != nil || len(found.All) > 0 {
		t.Fatalf("of nothing: %v, %v", found.All, err)
	}
	for key, value := range map[string]string{
		"/config": network, "/zz/config": network, "/blue/config": "torn", "/blue/subnets/10.5.1.0-24": "{}", "/a/config": network,
		// What is no network.
		"/Blue/config": network, "/void/subnets/10.5.1.0-24": "{}", "/subnets/10.5.1.0-24": "{}", "/overlayd/hosts/x": "{}",
		"/overlayd/config": network, "/networks/config": network, "/deep/er/config": network, "/other": "", "//config": network,
		"x/config": network, "/overlayd/networks/gone": "{}", "/overlayd/networks/zz": "{}", "/twelve-bytes/config": network,
	} {
		putRaw(t, s, key, value)
	}
	found, err = s.Networks(t.Context())
	if want := []string{"default", "a?", "blue?", "zz"}; err != nil || !slices.Equal(names(found), want) {
		t.Errorf("found %v, %v; want %v", names(found), err, want)
	}
	if string(found.Find("blue").Config) != "torn" || found.Find("nope").ModRevision != 0 {
		t.Errorf("found %v", found)
	}
}

// TestNetworksAreMadeInTheSameMoment has twenty operators make networks of the lowest number that is free. None has another's.
func TestNetworksAreMadeInTheSameMoment(t *testing.T) {
	t.Parallel()
	s := openStore(t, startEtcd(t, "").Endpoint())
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for {
				held, err := s.Networks(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				config := fmt.Sprintf(`{"Network":"10.%d.0.0/16"}`, len(held.All)+1)
				err = s.PutNetwork(t.Context(), held, fmt.Sprintf("n%d", i), []byte(config))
				if !errors.Is(err, ErrConflict) {
					if err != nil {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	all.Wait()
	held, err := s.Networks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	configs := map[string]bool{}
	for _, n := range held.All {
		configs[string(n.Config)] = true
	}
	if len(configs) != 20 {
		t.Errorf("%d configs of 20 networks: %v", len(configs), configs)
	}
}

func TestPutNetworkConflicts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, make string // the network that is written; empty: the unnamed one
		meanwhile  func(*testing.T, *Store, Networks)
	}{
		{"another was made", "b", func(t *testing.T, s *Store, n Networks) { mustPut(t, s, n, "a") }},
		{"it was made", "a", func(t *testing.T, s *Store, n Networks) { mustPut(t, s, n, "a") }},
		{"the unnamed one was made", "a", func(t *testing.T, s *Store, n Networks) { mustPut(t, s, n, "") }},
		{"one was made before the unnamed one", "", func(t *testing.T, s *Store, n Networks) { mustPut(t, s, n, "a") }},
	} {
		s := openStore(t, startEtcd(t, "").Endpoint())
		held, err := s.Networks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		test.meanwhile(t, s, held)
		if err := s.PutNetwork(t.Context(), held, test.make, []byte(network)); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v, want a conflict", test.name, err)
		}
	}
	s := openStore(t, startEtcd(t, "").Endpoint())
	for _, name := range []string{"default", "subnets", "a/b", "../x", "A"} {
		if err := s.PutNetwork(t.Context(), Networks{}, name, []byte(network)); err == nil {
			t.Errorf("%s was made", name)
		}
		if err := s.DeleteNetwork(t.Context(), Networks{}, name, true); err == nil {
			t.Errorf("%s was deleted", name)
		}
		if of, err := s.Named(name); err == nil {
			t.Errorf("%s is at %s", name, of.prefix)
		}
	}
}

func mustPut(t *testing.T, s *Store, held Networks, name string) {
	t.Helper()
	if err := s.PutNetwork(t.Context(), held, name, []byte(network)); err != nil {
		t.Fatal(err)
	}
}

func mustList(t *testing.T, s *Store) Networks {
	t.Helper()
	held, err := s.Networks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return held
}

// TestDeleteNetwork deletes one network of three, and what belongs to the others stays; nothing is deleted under a host that came
// meanwhile.
func TestDeleteNetwork(t *testing.T) {
	t.Parallel()
	s := openStore(t, startEtcd(t, "").Endpoint())
	for _, name := range []string{"", "a", "ab"} {
		mustPut(t, s, mustList(t, s), name)
	}
	held := mustList(t, s)
	for _, p := range [][2]string{{"a", "ab"}, {"", "a"}, {"default", "ab"}} {
		peering, err := NewPeering(p[0], p[1])
		if err == nil {
			err = s.Peer(t.Context(), peering)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"/a/subnets/10.5.1.0-24", "/ab/subnets/10.5.1.0-24", "/subnets/10.5.1.0-24", "/a/overlayd/policy/d/x"} {
		putRaw(t, s, key, "{}")
	}
	if err := s.DeleteNetwork(t.Context(), held, "a", false); !errors.Is(err, ErrConflict) {
		t.Errorf("under a host that came meanwhile: %v", err)
	}
	if err := s.DeleteNetwork(t.Context(), held, "a", true); err != nil {
		t.Fatal(err)
	}
	if got := names(mustList(t, s)); !slices.Equal(got, []string{"default", "ab"}) {
		t.Errorf("left are %v", got)
	}
	left, err := s.Peerings(t.Context())
	if want := []Peering{{"ab", ""}}; err != nil || !slices.Equal(left, want) {
		t.Errorf("peerings left are %v, %v; want %v", left, err, want)
	}
	for name, want := range map[string]int64{"": 1, "a": 0, "ab": 1} {
		of, err := s.Named(name)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := of.CountLeases(t.Context()); err != nil || n != want {
			t.Errorf("network %q has %d leases, %v; want %d", name, n, err, want)
		}
	}
	// What comes after begins with nothing.
	putRaw(t, s, "/a/subnets/10.5.1.0-24", "{}")
	mustPut(t, s, mustList(t, s), "a")
	of, _ := s.Named("a")
	if n, err := of.CountLeases(t.Context()); err != nil || n != 0 {
		t.Errorf("a new network has %d leases, %v", n, err)
	}
}

func TestPeerings(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "a", "a,", ",a", "b,a", "a,a", "a,b,c", "a,B", "a, b", "a,", "default,default", "default,blue", "overlayd,x"} {
		if p, err := ParsePeering(bad); err == nil {
			t.Errorf("%q is %v", bad, p)
		}
	}
	for key, want := range map[string]Peering{"a,b": {"a", "b"}, "blue,default": {"blue", ""}, "default,red": {"", "red"}} {
		p, err := ParsePeering(key)
		if err != nil || p != want || p.String() != key {
			t.Errorf("%q is %v, %v; want %v", key, p, err, want)
		}
	}
	s := openStore(t, startEtcd(t, "").Endpoint())
	p, _ := NewPeering("b", "a")
	if err := s.Peer(t.Context(), p); !errors.Is(err, ErrConflict) {
		t.Errorf("networks that are not there are peered: %v", err)
	}
	putRaw(t, s, "/overlayd/peered/junk", "{}")
	if all, err := s.Peerings(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("peerings are %v, %v", all, err)
	}
	if err := s.Unpeer(t.Context(), p); err != nil {
		t.Error(err)
	}
}

// TestDeletedNetworkStaysEmpty deletes a network under hosts that hold leases in it: none claims its lease again before there is such a
// network again.
func TestDeletedNetworkStaysEmpty(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	mustPut(t, s, mustList(t, s), "a")
	of, err := s.Named("a")
	if err != nil {
		t.Fatal(err)
	}
	var hosts []*host
	for i := range 4 {
		hosts = append(hosts, join(t, of, JoinConfig{HostID: fmt.Sprintf("h%d", i)}, fmt.Sprintf("192.0.2.%d", i+1)))
	}
	for _, h := range hosts {
		h.await("holds its lease", func(u Update) bool { return u.Own.State == Held })
	}
	for range 5 {
		if err := s.DeleteNetwork(t.Context(), mustList(t, s), "a", true); err != nil {
			t.Fatal(err)
		}
		for _, h := range hosts {
			h.await("has lost its lease", func(u Update) bool { return u.Own.State != Held && u.Err != nil })
		}
		if n, err := of.CountLeases(t.Context()); err != nil || n != 0 {
			t.Fatalf("%d leases in a network that was deleted, %v", n, err)
		}
		mustPut(t, s, mustList(t, s), "a")
		for _, h := range hosts {
			h.await("holds a lease again", func(u Update) bool { return u.Own.State == Held && u.Err == nil })
		}
	}
}
