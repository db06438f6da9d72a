package etcdstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/overlayd/overlayd/policy"
)

func deny(ns string, i int) policy.Policy {
	return policy.Policy{Namespace: ns, Name: fmt.Sprint("p", i), Spec: policy.Spec{PolicyTypes: []policy.Type{policy.Ingress}}}
}

func readPolicies(t *testing.T, s *Store) *Policies {
	t.Helper()
	p, err := s.Policies(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPoliciesAreWritten in several transactions, in each of which the index fits what is there then, and grows.
func TestPoliciesAreWritten(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	held := readPolicies(t, s)
	c := PolicyChange{Default: policy.Deny, Namespaces: []policy.Namespace{{Name: "dev", Labels: map[string]string{"a": "b"}}}, Delete: []string{"dev/absent"}}
	for i := range 300 {
		c.Put = append(c.Put, deny("dev", i))
	}
	start := etcd.put(t, prefix+"/start", "")
	if err := s.WritePolicies(t.Context(), held, c); err != nil {
		t.Fatal(err)
	}
	again := readPolicies(t, s)
	if len(again.Policies) != 300 || again.Default != policy.Deny || again.Namespaces["dev"].Labels["a"] != "b" || len(again.Unreadable) > 0 {
		t.Errorf("%d policies, %s, %v, %v", len(again.Policies), again.Default, again.Namespaces, again.Unreadable)
	}
	// What was written is known without reading again; what is the same is not written.
	if d := cmp.Diff(held.index, again.index); d != "" {
		t.Error(d)
	}
	c.Put = c.Put[:1]
	c.Delete = nil
	for i := range 299 {
		c.Delete = append(c.Delete, deny("dev", i+1).Key())
	}
	if err := s.WritePolicies(t.Context(), held, c); err != nil {
		t.Fatal(err)
	}
	indexes := indexHistory(t, etcd, start)
	var counts []int
	at := int64(0)
	for _, i := range indexes {
		if counts = append(counts, i.Policies); i.At <= at {
			t.Errorf("at %d after %d", i.At, at)
		}
		at = i.At
	}
	if d := cmp.Diff([]int{126, 253, 300, 173, 46, 1}, counts); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	if err := s.WritePolicies(t.Context(), held, PolicyChange{Put: c.Put}); err != nil || len(indexHistory(t, etcd, start)) != 6 {
		t.Errorf("what is the same was written: %v", err)
	}
}

// indexHistory are all values of the index after a revision; with each it counts the policies at that revision.
func indexHistory(t *testing.T, etcd *server, after int64) (all []policy.Index) {
	t.Helper()
	now := etcd.put(t, prefix+"/now", "")
	for revision := after; revision <= now; revision++ {
		got, err := etcd.raw.Get(t.Context(), prefix+"/overlayd/policy-index", clientv3.WithRev(revision))
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Kvs) == 0 || got.Kvs[0].ModRevision != revision {
			continue
		}
		var i policy.Index
		if err := json.Unmarshal(got.Kvs[0].Value, &i); err != nil {
			t.Fatal(err)
		}
		there, err := etcd.raw.Get(t.Context(), prefix+"/overlayd/policy/", clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithRev(revision))
		if err != nil || int(there.Count) != i.Policies {
			t.Errorf("the index says %d policies, and there are %d (%v)", i.Policies, there.Count, err)
		}
		all = append(all, i)
	}
	return all
}

// TestPoliciesConflict has writers meet: nothing of theirs is lost, and the index fits at the end.
func TestPoliciesConflict(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	stale := readPolicies(t, s)
	var writers sync.WaitGroup
	for w := range 5 {
		writers.Go(func() {
			for i := range 5 {
				err := ErrConflict
				for errors.Is(err, ErrConflict) {
					held, bad := s.Policies(t.Context())
					if bad != nil {
						t.Error(bad)
						return
					}
					err = s.WritePolicies(t.Context(), held, PolicyChange{Put: []policy.Policy{deny(fmt.Sprint("w", w), i)}})
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if err := s.WritePolicies(t.Context(), stale, PolicyChange{Put: []policy.Policy{deny("dev", 1)}}); !errors.Is(err, ErrConflict) {
		t.Errorf("a stale write: %v", err)
	}
	there := readPolicies(t, s)
	if _, n, lost := there.Lost(); n != 25 || lost {
		t.Errorf("%d policies, %+v", n, there.index)
	}
}

// TestPoliciesThatWentAway without a word stay missed, whatever else is written, until somebody confirms.
func TestPoliciesThatWentAway(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	held := readPolicies(t, s)
	if err := s.WritePolicies(t.Context(), held, PolicyChange{Put: []policy.Policy{deny("dev", 0), deny("dev", 1), deny("dev", 2)}}); err != nil {
		t.Fatal(err)
	}
	etcd.del(t, prefix+"/overlayd/policy/dev/p1")
	held = readPolicies(t, s)
	if err := s.WritePolicies(t.Context(), held, PolicyChange{Put: []policy.Policy{deny("dev", 3)}, Delete: []string{"dev/p0"}}); err != nil {
		t.Fatal(err)
	}
	held = readPolicies(t, s)
	if should, are, lost := held.Lost(); !lost || should != 3 || are != 2 {
		t.Errorf("%d of %d, %t", are, should, lost)
	}
	before := held.index.At
	if err := s.ConfirmPolicies(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	held = readPolicies(t, s)
	if _, _, lost := held.Lost(); lost || held.index.At <= before {
		t.Errorf("%+v", held.index)
	}
}

// TestPoliciesOfGarbage: what cannot be read denies, and can be written over. An index from the future stays behind.
func TestPoliciesOfGarbage(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	future := time.Now().Add(time.Hour).UnixNano()
	for key, value := range map[string]string{
		"policy/dev/a": "\x00", "policy/dev/b/c": "{}", "policy/dev/p1": `{"namespace":"dev","name":"p2","spec":{}}`,
		"namespaces/dev": `{"name":"dev","default":"perhaps"}`, "policy-default": `[]`, "policy-index": fmt.Sprintf(`{"at":%d,"policies":3}`, future),
	} {
		etcd.put(t, prefix+"/overlayd/"+key, value)
	}
	held := readPolicies(t, s)
	if len(held.Policies) != 0 || len(held.Unreadable) != 5 || held.Default != policy.Deny || held.Namespaces["dev"].Default != policy.Deny {
		t.Errorf("%+v", held)
	}
	if all := held.InForce(); len(all) != 3 || !all[0].Isolates(policy.Egress) || !all[0].Isolates(policy.Ingress) || all[0].Namespace != "dev" {
		t.Errorf("%+v", all)
	}
	if err := s.WritePolicies(t.Context(), held, PolicyChange{Put: []policy.Policy{deny("dev", 1)}, Delete: []string{"dev/a", "dev/b/c"}}); err != nil {
		t.Fatal(err)
	}
	held = readPolicies(t, s)
	if should, are, lost := held.Lost(); len(held.Policies) != 1 || lost || held.index.At != future+1 {
		t.Errorf("%+v: %d %d %v", held.index, should, are, held.Unreadable)
	}
	etcd.put(t, prefix+"/overlayd/policy-index", "garbage")
	held = readPolicies(t, s)
	if err := s.WritePolicies(t.Context(), held, PolicyChange{Put: []policy.Policy{deny("dev", 2)}}); err != nil {
		t.Fatal(err)
	}
	if _, are, lost := readPolicies(t, s).Lost(); lost || are != 2 {
		t.Errorf("%d policies", are)
	}
}

// TestLargePolicies are bounded each, and share transactions that etcd takes.
func TestLargePolicies(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	s := openStore(t, etcd.Endpoint())
	large := func(i, values int) policy.Policy {
		p := deny("dev", i)
		r := policy.Requirement{Key: "a", Operator: policy.In}
		for range values {
			r.Values = append(r.Values, strings.Repeat("x", 63))
		}
		p.Spec.PodSelector.MatchExpressions = []policy.Requirement{r}
		return p
	}
	err := s.WritePolicies(t.Context(), readPolicies(t, s), PolicyChange{Put: []policy.Policy{large(0, 20_000)}})
	if err == nil || !strings.Contains(err.Error(), "policy/dev/p0 is 1320") || !strings.Contains(err.Error(), "etcd takes no more than 1048576") {
		t.Errorf("%v", err)
	}
	var c PolicyChange
	for i := range 6 {
		c.Put = append(c.Put, large(i, 10_000)) // 660 kB each
	}
	if err := s.WritePolicies(t.Context(), readPolicies(t, s), c); err != nil {
		t.Fatal(err)
	}
	if held := readPolicies(t, s); len(held.Policies) != 6 {
		t.Errorf("%d policies, %v", len(held.Policies), held.Unreadable)
	}
}

// TestOnlyOperatorsWritePolicies has a host try, through the gate and with a role for reading: it may read, and is told why not more.
func TestOnlyOperatorsWritePolicies(t *testing.T) {
	t.Parallel()
	certs := t.TempDir()
	writeCertificatesAt(t, certs, time.Now(), [3]string{"host", "h", "192.0.2.1"})
	gated, raw := gatedEtcd(t, certs)
	if _, err := raw.Put(t.Context(), prefix+"/overlayd/hosts/h", "{}"); err != nil {
		t.Fatal(err)
	}
	host := storeOf(t, Config{Endpoints: []string{gated.Endpoint()}, CAFile: certs + "/ca.pem", CertFile: certs + "/host.pem", KeyFile: certs + "/host-key.pem"},
		slog.New(slog.DiscardHandler))
	etcd := startEtcd(t, "")
	enableAuth(t, etcd, "secret", clientv3.PermissionType(clientv3.PermRead))
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	reader := storeOf(t, Config{Endpoints: []string{etcd.Endpoint()}, Username: "host", PasswordFile: password}, slog.New(slog.DiscardHandler))
	for name, s := range map[string]*Store{"only operators may: by overlayctl on etcd's host": host, "only an operator may change policies, by a role as overlayctl network roles prints it": reader} {
		held, err := s.Policies(t.Context())
		if err != nil {
			t.Errorf("%s: it may not read: %v", name, err)
			continue
		}
		for _, c := range []PolicyChange{{Put: []policy.Policy{deny("dev", 1)}}, {Default: policy.Allow}, {Namespaces: []policy.Namespace{{Name: "dev"}}}} {
			if err := s.WritePolicies(t.Context(), held, c); err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %s", err, name)
			}
		}
		if err := s.ConfirmPolicies(t.Context(), held); err == nil {
			t.Error("a host confirms")
		}
	}
}
