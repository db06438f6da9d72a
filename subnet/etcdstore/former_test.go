package etcdstore

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/subnet"
	"github.com/overlayd/overlayd/subnet/leasecache"
)

// What a host with a new identity does about a lease of another that names its address. Only what it can prove to have
// been its own it takes, at once and as it is; a host that remembers a lease takes none.
func TestClaimerFormerIdentity(t *testing.T) {
	t.Parallel()
	const key, dual, mac = "10.5.7.0-24", "10.5.7.0-24&fd00:5:0:7::-64", "5e:96:93:0f:50:82"
	valueOf := func(key string, change func(*subnet.Lease)) string {
		l := wished()
		l.HostID, l.Host = "h0", "omega"
		l = leaseFor(l, prefixes(t, key))
		change(&l)
		value, err := l.Value()
		if err != nil {
			t.Fatal(err)
		}
		return string(value)
	}
	before := valueOf(key, func(*subnet.Lease) {})
	machine := valueOf(key, func(l *subnet.Lease) { l.Machine = "m1" })
	remembered := &subnet.Record{Lease: leaseFor(wished(), prefixes(t, "10.5.9.0-24")), LeaseID: 9}
	const takes = `claiming, changes 10.5.7.0-24 with lease 5: subnet 10.5.7.0-24 was leased to this host as host "omega" (h0) at 192.0.2.1: taking it back`
	for name, tc := range map[string]struct {
		network string
		keys    map[string]string
		past    past
		machine string
		want    []string // nil: it opens a lease of its own
	}{
		"nothing but the address":               {keys: map[string]string{key: before}},
		"a copied subnet.env":                   {keys: map[string]string{key: strings.Replace(before, mac, "5e:96:93:0f:50:83", 1)}, past: past{subnets: prefixes(t, key)}},
		"the link's MAC, and another subnet":    {keys: map[string]string{key: before}, past: past{subnets: prefixes(t, "10.5.8.0-24")}},
		"link and subnet.env, at another place": {keys: map[string]string{key: strings.Replace(before, "192.0.2.1", "192.0.2.9", 1)}, past: past{subnets: prefixes(t, key)}},
		"no vxlan":                              {keys: map[string]string{key: valueOf(key, func(l *subnet.Lease) { l.Backend, l.Endpoints[0].Data = "host-gw", nil })}, past: past{subnets: prefixes(t, key)}},
		"another machine":                       {keys: map[string]string{key: machine}, machine: "m2"},
		"the machine, at another place":         {keys: map[string]string{key: strings.Replace(machine, "192.0.2.1", "192.0.2.9", 1)}, machine: "m1"},
		"both do not know their machine":        {keys: map[string]string{key: before}, machine: ""},
		"it remembers another lease":            {keys: map[string]string{key: machine}, machine: "m1", past: past{last: remembered}},
		"overlapped by an older":                {keys: map[string]string{"10.5.6.0-23": hostValue("h9", "192.0.2.9"), key: machine}, machine: "m1"},

		"link and subnet.env": {keys: map[string]string{key: before}, past: past{subnets: prefixes(t, key)}, want: []string{takes, "held"}},
		"the machine, with another link": {
			keys: map[string]string{key: strings.Replace(machine, mac, "5e:96:93:0f:50:83", 1)}, machine: "m1", want: []string{takes, "held"},
		},
		"the machine's reservation": {
			keys: map[string]string{key: machine + "R"}, machine: "m1", want: []string{strings.Replace(takes, "lease 5", "lease 0", 1), "held"},
		},
		"two of the machine": {
			keys:    map[string]string{"10.5.6.0-24": strings.Replace(machine, "h0", "h00", 1), key: machine},
			machine: "m1", past: past{subnets: prefixes(t, key)}, want: []string{takes, "held"},
		},
		"both families, one at another address": {
			network: dualNetwork, machine: "m1", want: []string{strings.ReplaceAll(takes, key, dual)[:60] + "…", "held"},
			keys: map[string]string{dual: valueOf(dual, func(l *subnet.Lease) {
				l.Machine, l.Endpoints[1].PublicIP = "m1", wished().Endpoints[1].PublicIP.Next()
			})},
		},
		"IPv6 is on now": {
			network: dualNetwork, keys: map[string]string{key: machine}, machine: "m1",
			want: []string{"claiming, moves from 10.5.7.0-24 to 10.5.7.0-24&fd00:5:0:7::-64 with lease 5…", "held"},
		},
		"its own comes first": {
			keys:    map[string]string{"10.5.6.0-24": hostValue("h1", "192.0.2.1"), key: machine},
			machine: "m1", want: []string{"claiming, changes 10.5.6.0-24 with lease 5", "held"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.network == "" {
				tc.network = network
			}
			s := newScene(t, tc.network)
			s.past, s.wish.Machine = tc.past, tc.machine
			for _, k := range []string{"10.5.6.0-23", "10.5.6.0-24", key, dual} { // by age
				if value, reserved := strings.CutSuffix(tc.keys[k], "R"); value != "" && reserved {
					s.put(k, value, 0)
				} else if value != "" {
					s.put(k, value, 5)
				}
			}
			got := s.do(true)
			if tc.want == nil {
				tc.want = got
				if got[0] != "claiming, opens a lease" && !strings.HasPrefix(got[0], "copied") || s.key == key {
					t.Errorf("%q", got)
				}
			}
			wantSteps(t, got, tc.want...)
			if got[len(got)-1] != "held" {
				return
			}
			// Afterwards the other identity is another host like any.
			if now, _ := s.set.Find(s.key); s.wish.Machine != "" && now.LeaseID != 0 {
				s.put(s.key, strings.Replace(valueOf(s.key, func(l *subnet.Lease) { l.Machine = tc.machine }), "omega", "again", 1), 5)
				wantSteps(t, []string{s.decide().text()}, "taken: …")
			}
		})
	}
}

// A host that lost its identity again and again has one lease, and the subnet that it had, whether it is known by its link
// and subnet.env or by its hardware. The lease of a host that lives stays when a copy of it without an identity comes.
func TestHostLosesItsIdentity(t *testing.T) {
	t.Parallel()
	etcd := startEtcd(t, "")
	etcd.put(t, prefix+"/config", network)
	s := openStore(t, etcd.Endpoint())
	living := join(t, s, JoinConfig{HostID: "h9"}, "192.0.2.9").awaitHeld("").Own.Record.Key()
	wish := func(id, mac, machine string) subnet.Lease {
		l := advert("192.0.2.1")
		l.HostID, l.Machine = id, machine
		l.Endpoints[0].Data = []byte(`{"VNI":1,"VtepMAC":"` + mac + `"}`)
		return l
	}
	first := join(t, s, JoinConfig{HostID: "h1"})
	first.Advertise(wish("h1", "02:00:00:00:00:01", ""))
	held := first.awaitHeld("").Own.Record
	key := held.Key()
	before, leaseID := etcd.get(t, subnets+key)
	first.stop()
	for _, tc := range []struct{ id, mac, machine string }{
		{"h2", "02:00:00:00:00:01", "m1"}, // the state directory is gone
		{"h3", "02:00:00:00:00:03", "m1"}, // everything but the hardware
		{"h4", "02:00:00:00:00:04", "m1"},
	} {
		cfg := JoinConfig{HostID: tc.id, Last: leasecache.View{Reason: "no lease is remembered"}}
		if tc.id == "h2" {
			cfg.Previous = mustSubnets(t, key)
		}
		h := join(t, s, cfg)
		h.Advertise(wish(tc.id, tc.mac, tc.machine))
		own := h.awaitHeld(key).Own
		if own.Record.CreateRevision != held.CreateRevision || own.Record.LeaseID != leaseID || own.Record.HostID != tc.id {
			t.Errorf("%s holds %+v, want the lease %+v", tc.id, own.Record, held)
		}
		h.await("is content", func(u Update) bool { return u.Own.Reason == "" && !u.Own.Expires.IsZero() })
		if diff := cmp.Diff([]string{living}, h.peerKeys()); diff != "" {
			t.Errorf("peers of %s (-want +got)\n%s", tc.id, diff)
		}
		h.stop()
	}
	if keys := etcd.keys(t); len(keys) != 2 {
		t.Errorf("leases %v", keys)
	}
	if now, _ := etcd.get(t, subnets+key); now == before {
		t.Errorf("the lease is %s as before", now)
	}
	// Of two daemons with all of that in common, on one machine say, the later one has it, and they do not take turns.
	fifth := join(t, s, JoinConfig{HostID: "h5"})
	fifth.Advertise(wish("h5", "02:00:00:00:00:05", "m1"))
	fifth.awaitHeld(key)
	sixth := join(t, s, JoinConfig{HostID: "h6"})
	sixth.Advertise(wish("h6", "02:00:00:00:00:06", "m1"))
	sixth.awaitHeld(key)
	fifth.await("says so", func(u Update) bool { return u.Own.State == Taken })
	now, _ := etcd.get(t, subnets+key)
	time.Sleep(100 * time.Millisecond) // for what must not happen
	if later, _ := etcd.get(t, subnets+key); later != now {
		t.Errorf("the lease is %s, was %s", later, now)
	}
}
