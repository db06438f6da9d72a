package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newClusterRig is newRig with an etcd of three members in three namespaces.
func newClusterRig(t *testing.T, args ...string) (r *rig, members []*etcdServer) {
	t.Helper()
	r = &rig{Lab: newLab(t, both)}
	r.wire = r.NewSegment(1)
	url := func(i, port int) string { return fmt.Sprintf("http://172.30.1.%d:%d", 101+i, port) }
	var cluster, endpoints []string
	for i := range 3 {
		cluster = append(cluster, fmt.Sprintf("m%d=%s", i, url(i, 2380)))
		endpoints = append(endpoints, url(i, 2379))
	}
	r.etcdURL = strings.Join(endpoints, ",")
	for i := range 3 {
		n := r.node(fmt.Sprintf("etcd%d", i))
		r.wire.Plug(n, "eth0", 101+i)
		e := &etcdServer{node: n, dir: t.TempDir(), args: []string{"--name", fmt.Sprintf("m%d", i),
			"--listen-client-urls", "http://[::]:2379", "--advertise-client-urls", url(i, 2379),
			"--listen-peer-urls", url(i, 2380), "--initial-advertise-peer-urls", url(i, 2380),
			"--initial-cluster", strings.Join(cluster, ",")}}
		e.start()
		members = append(members, e)
	}
	for _, m := range members {
		m.wait()
	}
	r.etcd, r.Etcd = members[0], members[0].node
	r.Put(configKey, r.Config(`{"Type":"vxlan"}`))
	r.hosts = r.NewHosts(r.wire, 2)
	startAll(t, r.hosts, args...)
	r.a, r.b = r.hosts[0].NewContainer(), r.hosts[1].NewContainer()
	r.stream = NewStream(r.a, r.b)
	return r, members
}

// leads says whether the member leads its cluster.
func (e *etcdServer) leads(t *testing.T) bool {
	t.Helper()
	var status []struct {
		Status struct {
			Header struct {
				MemberID uint64 `json:"member_id"`
			}
			Leader uint64
		}
	}
	out := e.ctl("endpoint", "status", "-w", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status) != 1 {
		t.Fatalf("etcdctl endpoint status: %v in %s", err, out)
	}
	return status[0].Status.Header.MemberID == status[0].Status.Leader
}

// splitMembers tells the leader of the others, and makes one of those the one that the test itself asks.
func (r *rig) splitMembers(t *testing.T, members []*etcdServer) (leader *etcdServer, others []*etcdServer) {
	t.Helper()
	for _, m := range members {
		if m.leads(t) {
			leader = m
		} else {
			others = append(others, m)
		}
	}
	if leader == nil {
		t.Fatal("no member leads")
	}
	r.etcd, r.Etcd = others[0], others[0].node
	return leader, others
}

// TestEtcdMemberFails has a member of three fail, in each way there is, with the host following that one: the host goes
// on with another.
func TestEtcdMemberFails(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		fail func(t *testing.T, r *rig, leader *etcdServer, others []*etcdServer) (undo func())
	}{
		{"leader killed", func(_ *testing.T, _ *rig, leader *etcdServer, _ []*etcdServer) func() {
			leader.Stop(syscall.SIGKILL)
			return leader.start
		}},
		{"leader frozen", func(_ *testing.T, _ *rig, leader *etcdServer, _ []*etcdServer) func() {
			leader.freeze()
			return leader.thaw
		}},
		{"leader cut off from the others", func(_ *testing.T, _ *rig, leader *etcdServer, _ []*etcdServer) func() {
			leader.node.Exec("nft", "add table inet fault;"+
				"add chain inet fault in { type filter hook input priority 0; };"+
				"add rule inet fault in ip saddr { 172.30.1.101, 172.30.1.102, 172.30.1.103 } drop")
			return func() { leader.node.Exec("nft", "delete", "table", "inet", "fault") }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, members := newClusterRig(t)
			keys := r.keys()
			leader, others := r.splitMembers(t, members)
			undo := c.fail(t, r, leader, others)
			measure(t, c.name+": a new lease reaches the hosts", 10*time.Second, func() {
				eventually(t, "etcd takes writes again", func() error {
					out, err := others[0].tryCtl("put", fakeKey(0), fakeValue(64), "--command-timeout=1s")
					if err != nil {
						return fmt.Errorf("%w: %s", err, out)
					}
					return nil
				})
				for _, h := range r.hosts {
					h.WaitPeers(2)
				}
			})
			undo()
			for _, h := range r.hosts {
				eventually(t, "the lease is gone again", func() error {
					r.Delete(fakeKey(0)) // a write that timed out may have come after the last one
					return h.hasPeers(1)
				})
			}
			r.well(t, keys...)
		})
	}
}

// TestEndpointSwallows has the endpoint that each host follows swallow what it is sent, without closing a connection.
func TestEndpointSwallows(t *testing.T) {
	t.Parallel()
	r, _ := newClusterRig(t)
	keys := r.keys()
	for _, h := range r.hosts {
		h.loseEtcd(swallowed, h.followed(t))
	}
	measure(t, "a new lease reaches the hosts by another endpoint", 10*time.Second, func() {
		r.Put(fakeKey(0), fakeValue(64))
		for _, h := range r.hosts {
			h.WaitPeers(2)
		}
	})
	r.Delete(fakeKey(0))
	for _, h := range r.hosts {
		h.findEtcd()
	}
	r.well(t, keys...)
}

// followed is the address of the etcd that the host has a connection to.
func (h *Host) followed(t *testing.T) string {
	t.Helper()
	out := h.Exec("ss", "-Htn", "state", "established", "dport", "=", ":2379")
	fields := strings.Fields(out)
	if len(fields) < 4 {
		t.Fatalf("no connection to etcd: %q", out)
	}
	addr, _, _ := strings.Cut(fields[3], ":")
	return strings.Trim(addr, "[]")
}
