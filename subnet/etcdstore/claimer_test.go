package etcdstore

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/subnet"
)

func mustNetwork(t *testing.T, text string) subnet.Network {
	t.Helper()
	n, err := subnet.ParseNetwork([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wished is the lease that host h1 at 192.0.2.1 wants.
func wished() subnet.Lease {
	l := advert("192.0.2.1", "2001:db8::1")
	l.HostID, l.Host = "h1", "alpha"
	return l
}

// scene is an etcd that a claimer sees, in one process.
type scene struct {
	t        *testing.T
	set      *subnet.Set
	network  subnet.Network
	revision int64
	grant    grant
	vacant   bool // no container has any address
	*claimer
}

func newScene(t *testing.T, network string) *scene {
	n := mustNetwork(t, network)
	return &scene{t: t, set: subnet.NewSet(n), network: n, revision: 10, claimer: &claimer{wish: wished()}}
}

// put has etcd hold a key, with a lease; an empty value deletes it.
func (s *scene) put(key, value string, lease int64) {
	s.revision++
	if value == "" {
		s.set.Delete(key)
		return
	}
	created := s.revision
	if r, _ := s.set.Find(key); r != nil {
		created = r.CreateRevision
	}
	s.set.Put(subnet.KeyValue{Key: key, Value: []byte(value), CreateRevision: created, ModRevision: s.revision, LeaseID: lease})
}

func (s *scene) decide() decision {
	f := facts{network: s.network, set: s.set, mine: map[string]*subnet.Record{}, others: map[string]string{}, grant: s.grant, revision: s.revision,
		held:   func([]netip.Prefix) bool { return false },
		vacant: func(...netip.Prefix) bool { return s.vacant },
	}
	for key, r := range s.set.All() {
		if ownerOf(r.Lease, s.wish) == ours {
			f.mine[key] = r
		} else if sharesAddress(r.Lease, s.wish) {
			f.others[key] = ""
		}
	}
	return s.claimer.decide(f)
}

// do has etcd do what is decided, until nothing is left to do; seen says that the host sees it at once.
func (s *scene) do(seen bool) (steps []string) {
	s.t.Helper()
	for range 10 {
		d := s.decide()
		steps = append(steps, d.text())
		switch w := d.write; {
		case d.open:
			s.grant = grant{id: 3}
		case w == nil:
			return steps
		default:
			revision := s.revision + 1
			if w.from != nil {
				s.put(w.from.Key(), "", 0)
				s.revision--
			}
			s.put(w.key, string(w.value), w.leaseID)
			s.claimer.done(w, revision)
			if !seen {
				return steps
			}
		}
	}
	s.t.Fatalf("no end of it: %q", steps)
	return nil
}

// text is a decision in words.
func (d decision) text() string {
	text := string(d.state)
	if d.open {
		text += ", opens a lease"
	}
	if w := d.write; w != nil {
		switch {
		case w.value == nil:
			text += ", deletes " + w.key
		case w.from != nil:
			text += ", moves from " + w.from.Key() + " to " + w.key
		case w.modRevision == 0:
			text += ", creates " + w.key
		default:
			text += ", changes " + w.key
		}
		if w.value != nil {
			text += fmt.Sprint(" with lease ", w.leaseID)
		}
		if w.calm {
			text += " calmly"
		}
	}
	if d.reason != "" {
		text += ": " + d.reason
	}
	return text
}

func prefixes(t *testing.T, key string) []netip.Prefix {
	t.Helper()
	p, err := subnet.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func wantSteps(t *testing.T, got []string, want ...string) {
	t.Helper()
	for i := range got {
		if i < len(want) && strings.HasSuffix(want[i], "…") && strings.HasPrefix(got[i], strings.TrimSuffix(want[i], "…")) {
			got[i] = want[i]
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What a host that holds 10.5.7.0/24 does about what becomes of the key.
func TestClaimerKeeps(t *testing.T) {
	t.Parallel()
	const key = "10.5.7.0-24"
	right, err := leaseFor(wished(), prefixes(t, key)).Value()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		value   string
		lease   int64
		dead    bool   // the etcd lease has ended
		network string // empty: as before
		other   string // another key, older
		want    string
	}{
		"another's":                 {value: hostValue("h2", "192.0.2.2"), lease: 5, want: `taken: subnet 10.5.7.0-24 belongs to host "" (h2) at 192.0.2.2 now`},
		"another's at our address":  {value: hostValue("h2", "192.0.2.1"), lease: 5, want: "taken: …"},
		"another's reservation":     {value: `{"HostID":"h2"}`, want: "taken: …"},
		"a flannel host's":          {value: flannelValue("192.0.2.2"), lease: 5, want: "taken: subnet 10.5.7.0-24 belongs to a flannel host at 192.0.2.2 now"},
		"overlapped by an older":    {value: string(right), lease: 3, other: "10.5.6.0-23", want: "taken: lease 10.5.7.0-24: overlaps…"},
		"lost to an overlapping":    {other: "10.5.6.0-23", want: "taken: subnet 10.5.7.0-24 overlaps 10.5.6.0-23, which belongs to…"},
		"lost, and does not fit":    {network: `{"Network":"10.9.0.0/16"}`, want: "taken: the lease of 10.5.7.0-24 is lost, and…"},
		"held, but does not fit":    {value: string(right), lease: 3, network: `{"Network":"10.9.0.0/16"}`, want: "held: the network does not lease…"},
		"lost":                      {want: "claiming, creates 10.5.7.0-24 with lease 3"},
		"lost with its lease":       {dead: true, want: "claiming, opens a lease"},
		"junk":                      {value: "x", lease: 5, want: "held, changes 10.5.7.0-24 with lease 3"},
		"junk that does not expire": {value: "x", want: "held, changes 10.5.7.0-24 with lease 3"},
		"flannel's of this host":    {value: flannelValue("192.0.2.1"), lease: 5, want: "held, changes 10.5.7.0-24 with lease 3"},
		"an older value of ours":    {value: hostValue("h1", "192.0.2.9"), lease: 5, want: "held, changes 10.5.7.0-24 with lease 3"},
		"another backend":           {value: strings.Replace(string(right), `"VNI":1`, `"VNI":2`, 1), lease: 3, want: "held, changes 10.5.7.0-24 with lease 3 calmly"},
		"a reservation of it":       {value: string(right), want: "held"},
		"lease has ended":           {value: string(right), lease: 3, dead: true, want: "held, opens a lease"},
		"under another lease":       {value: string(right), lease: 5, want: "held, changes 10.5.7.0-24 with lease 3"},
		"spelled otherwise":         {value: " " + string(right), lease: 3, want: "held"},
		"as it should be":           {value: string(right), lease: 3, want: "held"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, network)
			if tc.other != "" {
				s.put(tc.other, hostValue("h9", "192.0.2.9"), 9)
			}
			before := s.set
			s.set = subnet.NewSet(s.network)
			s.past.subnets = prefixes(t, key)
			wantSteps(t, s.do(true), "claiming, opens a lease", "claiming, creates 10.5.7.0-24 with lease 3", "held")
			if tc.other != "" {
				s.set = before
			}
			if tc.network != "" {
				s.network = mustNetwork(t, tc.network)
				s.set.SetNetwork(s.network)
			}
			if tc.dead {
				s.grant = grant{dead: 3}
			}
			s.put(key, tc.value, tc.lease)
			wantSteps(t, []string{s.decide().text()}, tc.want)
		})
	}
}

// What a host does that starts: a key and its value, or more, and what comes of it.
func TestClaimerStarts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		network string
		keys    map[string]string // with lease 5, but for reservations
		past    past
		nic     string
		want    []string
	}{
		"a copy of a host": {
			keys: map[string]string{"10.5.7.0-24": hostValue("h1", "192.0.2.9")}, nic: "02:00:00:00:00:01",
			past: past{subnets: prefixes(t, "10.5.7.0-24"), nic: "02:00:00:00:00:02"},
			want: []string{`copied: the identity of this host is that of host "" (h1) at 192.0.2.9, which has subnet 10.5.7.0-24…`},
		},
		"a copy without a past": {
			keys: map[string]string{"10.5.7.0-24": hostValue("h1", "192.0.2.9")}, want: []string{"copied: …"},
		},
		"a copy of a host with a reservation": {
			keys: map[string]string{"10.5.7.0-24": hostValue("h1", "192.0.2.9") + "R"}, want: []string{"copied: …"},
		},
		"moved, in the same boot": {
			keys: map[string]string{"10.5.7.0-24": hostValue("h1", "192.0.2.9")}, past: past{sameBoot: true},
			want: []string{"claiming, changes 10.5.7.0-24 with lease 5", "held"},
		},
		"moved, with its network card": {
			keys: map[string]string{"10.5.7.0-24": hostValue("h1", "192.0.2.9")}, nic: "02:00:00:00:00:02", past: past{nic: "02:00:00:00:00:02"},
			want: []string{"claiming, changes 10.5.7.0-24 with lease 5", "held"},
		},
		"as it was": {
			keys: map[string]string{"10.5.7.0-24": hostValue("h1", "192.0.2.1")},
			want: []string{"claiming, changes 10.5.7.0-24 with lease 5", "held"}, // the name is new
		},
		"an older lease of flannel's": {
			keys: map[string]string{"10.5.7.0-24": flannelValue("192.0.2.1")},
			want: []string{"claiming, opens a lease", "claiming, changes 10.5.7.0-24 with lease 3", "held"},
		},
		"a reservation": {
			keys: map[string]string{"10.5.7.0-24": `{"HostID":"h1"}R`},
			want: []string{"claiming, changes 10.5.7.0-24 with lease 0", "held"},
		},
		"flannel's reservation": {
			keys: map[string]string{"10.5.7.0-24": `{"PublicIP":"192.0.2.1"}R`},
			want: []string{"claiming, changes 10.5.7.0-24 with lease 0", "held"},
		},
		"IPv6 is on now": {
			network: dualNetwork, keys: map[string]string{"10.5.7.0-24": hostValue("h1", "192.0.2.1")},
			want: []string{"claiming, moves from 10.5.7.0-24 to 10.5.7.0-24&fd00:5:0:7::-64 with lease 5"},
		},
		"IPv6 is on now, and its slot is taken": {
			network: dualNetwork, keys: map[string]string{
				"10.5.7.0-24": hostValue("h1", "192.0.2.1"), "10.5.9.0-24&fd00:5:0:7::-64": dualValue("h2", "192.0.2.2", "2001:db8::2"),
			},
			want: []string{"claiming, moves from 10.5.7.0-24 to 10.5.7.0-24&fd00:5:…"},
		},
		"IPv6 is off now": {
			keys: map[string]string{"10.5.7.0-24&fd00:5:0:7::-64": dualValue("h1", "192.0.2.1", "2001:db8::1")},
			want: []string{"claiming, moves from 10.5.7.0-24&fd00:5:0:7::-64 to 10.5.7.0-24 with lease 5"},
		},
		"the half that it had": {
			network: dualNetwork, past: past{subnets: prefixes(t, "10.5.7.0-24")},
			want: []string{"claiming, opens a lease", "claiming, creates 10.5.7.0-24&fd00:5:0:7::-64 with lease 3", "held"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.network == "" {
				tc.network = network
			}
			s := newScene(t, tc.network)
			for _, key := range slices.Sorted(maps.Keys(tc.keys)) {
				value, reserved := strings.CutSuffix(tc.keys[key], "R")
				lease := int64(5)
				if reserved {
					lease = 0
				}
				s.put(key, value, lease)
			}
			s.past, s.nic = tc.past, tc.nic
			got := s.do(true)
			wantSteps(t, got[:min(len(got), len(tc.want))], tc.want...)
			if last := got[len(got)-1]; last != "held" && !strings.HasPrefix(last, "copied") {
				t.Errorf("ends with %s", last)
			}
		})
	}
}

func dualValue(hostID, v4, v6 string) string {
	return strings.Replace(hostValue(hostID, v4), `"PublicIPv6":null`, `"PublicIPv6":"`+v6+`"`, 1)
}

// A claim that is in etcd does not count before it is seen, and is given back if an older key is seen before it: one of
// any host, also one that is no lease.
func TestClaimIsGivenBack(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{"a lease": hostValue("h9", "192.0.2.9"), "junk": "junk"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, network)
			s.past.subnets, s.grant = prefixes(t, "10.5.7.0-24"), grant{id: 3}
			d := s.decide()
			s.put("10.5.6.0-23", value, 9) // meanwhile
			s.put(d.write.key, string(d.write.value), 3)
			s.done(d.write, s.revision)
			steps := s.do(true)
			wantSteps(t, steps[:1], "claiming, deletes 10.5.7.0-24")
			if steps[len(steps)-1] != "held" || s.key == "10.5.7.0-24" {
				t.Errorf("%q: holds %s", steps, s.key)
			}
		})
	}
}

// A lease that is moved to another pair keeps its half whatever happens to the other.
func TestMoveKeepsTheHalf(t *testing.T) {
	t.Parallel()
	s := newScene(t, network)
	s.past.subnets = prefixes(t, "10.5.7.0-24")
	s.do(true)
	s.network = mustNetwork(t, dualNetwork)
	s.set.SetNetwork(s.network)
	s.put("10.5.9.0-24&fd00:5:0:7::-64", dualValue("h2", "192.0.2.2", "2001:db8::2"), 9)
	seen := s.set
	s.set = subnet.NewSet(s.network) // the host has not heard of it
	for key, r := range seen.All() {
		if value, err := r.Value(); err == nil && key == s.key {
			s.set.Put(subnet.KeyValue{Key: key, Value: value, CreateRevision: r.CreateRevision, ModRevision: r.ModRevision, LeaseID: r.LeaseID})
		}
	}
	d := s.decide()
	wantSteps(t, []string{d.text()}, "held, moves from 10.5.7.0-24 to 10.5.7.0-24&fd00:5:0:7::-64 with lease 3")
	s.set = seen
	s.put("10.5.7.0-24", "", 0)
	s.put(d.write.key, string(d.write.value), 3)
	s.done(d.write, s.revision)
	steps := s.do(true)
	if !strings.HasPrefix(steps[0], "claiming, moves from 10.5.7.0-24&fd00:5:0:7::-64 to 10.5.7.0-24&") || steps[len(steps)-1] != "held" {
		t.Errorf("%q", steps)
	}
	// And back, when IPv6 is turned off.
	s.network = mustNetwork(t, network)
	s.set.SetNetwork(s.network)
	s.do(true)
	if s.key != "10.5.7.0-24" || s.decide().text() != "held" {
		t.Errorf("holds %s", s.key)
	}
}

// A reservation made for a host that has another lease is followed when no container is in the way, and said before.
func TestClaimerFollowsReservation(t *testing.T) {
	t.Parallel()
	s := newScene(t, network)
	s.past.subnets = prefixes(t, "10.5.7.0-24")
	s.do(true)
	s.put("10.5.8.0-24", `{"HostID":"h1"}`, 0)
	d := s.decide()
	wantSteps(t, []string{d.text()}, "held: subnet 10.5.8.0-24 is reserved for this host, which has 10.5.7.0-24: it moves when no container has an address of that")
	if !slices.Equal(d.leaves, prefixes(t, "10.5.7.0-24")) {
		t.Errorf("leaves %s", d.leaves)
	}
	s.vacant = true
	wantSteps(t, s.do(true), "claiming, changes 10.5.8.0-24 with lease 0", "held, deletes 10.5.7.0-24", "held")
}

// A lease that cannot be written is not written.
func TestClaimerWithoutAddress(t *testing.T) {
	t.Parallel()
	s := newScene(t, network)
	s.wish.Endpoints = nil
	s.grant.id = 3
	if d := s.decide(); d.write != nil || d.state != Claiming || !strings.Contains(d.reason, "PublicIP") {
		t.Errorf("decides %s", d.text())
	}
}

func TestLeaseForFamilies(t *testing.T) {
	t.Parallel()
	wish := advert("2001:db8::1", "192.0.2.1")
	wish.HostID = "h1"
	place := []netip.Prefix{netip.MustParsePrefix("10.5.7.0/24"), netip.MustParsePrefix("fd00:5:0:7::/64")}
	l := leaseFor(wish, place)
	for i, want := range []string{"192.0.2.1", "2001:db8::1"} {
		if e := l.Endpoints[i]; e.Subnet != place[i] || e.PublicIP.String() != want || e.Data == nil {
			t.Errorf("endpoint %d: %+v", i, e)
		}
	}
}
