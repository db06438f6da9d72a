package etcdstore

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

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
	l := advert("192.0.2.1")
	l.HostID, l.Host = "h1", "alpha"
	return l
}

func TestJudge(t *testing.T) {
	t.Parallel()
	const key = "10.5.7.0-24"
	place := []netip.Prefix{netip.MustParsePrefix("10.5.7.0/24")}
	right, err := leaseFor(wished(), place).Value()
	if err != nil {
		t.Fatal(err)
	}
	type fact struct {
		value    string // in etcd; empty: no key
		lease    int64  // that holds the key
		ours     int64  // etcd lease of ours
		dead     int64
		had      bool
		network  string
		rejected error
	}
	for name, tc := range map[string]struct {
		fact
		want string // state, what is written, a part of the reason
	}{
		"another's":                 {fact{value: hostValue("h2", "192.0.2.2"), lease: 5, ours: 3, had: true}, `taken: host "" (h2) at 192.0.2.2`},
		"another's at our address":  {fact{value: hostValue("h2", "192.0.2.1"), lease: 5, ours: 3, had: true}, "taken: (h2)"},
		"another's reservation":     {fact{value: `{"HostID":"h2"}`, ours: 3, had: true}, "taken: (h2)"},
		"a flannel host's":          {fact{value: flannelValue("192.0.2.2"), lease: 5, ours: 3, had: true}, "taken: a flannel host at 192.0.2.2"},
		"overlapped by an older":    {fact{value: string(right), lease: 3, ours: 3, had: true, rejected: fmt.Errorf("overlaps")}, "taken: overlaps"},
		"lost, and does not fit":    {fact{ours: 3, had: true, network: `{"Network":"10.9.0.0/16"}`}, "taken: is lost"},
		"held, but does not fit":    {fact{value: string(right), lease: 3, ours: 3, had: true, network: `{"Network":"10.9.0.0/16"}`, rejected: fmt.Errorf("outside")}, "held: any more"},
		"absent":                    {fact{}, "claiming create with a new lease"},
		"absent, lease granted":     {fact{ours: 3}, "claiming create with lease 3"},
		"lost":                      {fact{ours: 3, had: true}, "claiming create with lease 3"},
		"junk":                      {fact{value: "x", lease: 5, ours: 3, had: true}, "held change with lease 3"},
		"junk that does not expire": {fact{value: "x", ours: 3, had: true}, "held change with lease 3"},
		"flannel's of this host":    {fact{value: flannelValue("192.0.2.1"), lease: 5}, "claiming change with a new lease"},
		"flannel's reservation":     {fact{value: `{"PublicIP":"192.0.2.1"}`}, "claiming change without lease"},
		"our reservation":           {fact{value: `{"HostID":"h1"}`}, "claiming change without lease"},
		"reservation, claimed":      {fact{value: string(right), had: true, ours: 3}, "held"},
		"of an earlier run":         {fact{value: string(right), lease: 5}, "held"},
		"of an earlier run, old":    {fact{value: hostValue("h1", "192.0.2.9"), lease: 5}, "claiming change with lease 5"},
		"lease has ended":           {fact{value: string(right), lease: 5, dead: 5, had: true}, "held change with a new lease"},
		"under another lease":       {fact{value: string(right), lease: 5, ours: 3, had: true}, "held change with lease 3"},
		"as it should be":           {fact{value: string(right), lease: 3, ours: 3, had: true}, "held"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := own{key: key, subnets: place, had: tc.had, leaseID: tc.ours, deadID: tc.dead}
			if tc.value != "" {
				o.value = newOwnValue(subnet.KeyValue{Key: key, Value: []byte(tc.value), CreateRevision: 10, ModRevision: 11, LeaseID: tc.lease})
			}
			text := tc.network
			if text == "" {
				text = network
			}
			v := o.judge(wished(), mustNetwork(t, text), tc.rejected)
			want, reason, _ := strings.Cut(tc.want, ": ")
			if diff := cmp.Diff(want, describeVerdict(v)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if !strings.Contains(v.reason, reason) || (reason == "") != (v.reason == "") {
				t.Errorf("reason %q does not say %q", v.reason, reason)
			}
			if v.write != nil && string(v.write.value) != string(right) {
				t.Errorf("writes %s", v.write.value)
			}
		})
	}
}

func describeVerdict(v verdict) string {
	w := v.write
	if w == nil {
		return string(v.state)
	}
	what, lease := "change", fmt.Sprint("with lease ", w.leaseID)
	if w.modRevision == 0 {
		what = "create"
	}
	if w.grant {
		lease = "with a new lease"
	} else if w.leaseID == 0 {
		lease = "without lease"
	}
	return fmt.Sprintf("%s %s %s", v.state, what, lease)
}

// A lease that cannot be written is not written.
func TestJudgeWithoutAddress(t *testing.T) {
	t.Parallel()
	o := own{key: "10.5.7.0-24", subnets: []netip.Prefix{netip.MustParsePrefix("10.5.7.0/24")}}
	wish := wished()
	wish.Endpoints = nil
	if v := o.judge(wish, mustNetwork(t, network), nil); v.write != nil || v.state != Claiming || !strings.Contains(v.reason, "PublicIP") {
		t.Errorf("verdict %+v", v)
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

func TestSameHistory(t *testing.T) {
	t.Parallel()
	at := func(rev int64) []*mvccpb.KeyValue { return []*mvccpb.KeyValue{{Key: []byte("k"), ModRevision: rev}} }
	for name, tc := range map[string]struct {
		known, revision int64
		kvs             []*mvccpb.KeyValue
		same            bool
	}{
		"gone":                      {known: 5, revision: 9},
		"older":                     {known: 5, revision: 9, kvs: at(4)},
		"another, of known times":   {known: 5, revision: 9, kvs: at(7)},
		"there, but was not":        {known: 0, revision: 9, kvs: at(7)},
		"never there":               {known: 0, revision: 9, same: true},
		"as known":                  {known: 5, revision: 9, kvs: at(5), same: true},
		"changed since":             {known: 5, revision: 9, kvs: at(12), same: true},
		"made since":                {known: 0, revision: 9, kvs: at(12), same: true},
		"own write, ahead of watch": {known: 12, revision: 9, kvs: at(12), same: true},
	} {
		if err := sameHistory(tc.known, tc.revision, tc.kvs); (err == nil) != tc.same {
			t.Errorf("%s: %v", name, err)
		}
	}
}
