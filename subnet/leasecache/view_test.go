package leasecache

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/subnet"
)

// TestWhatCounts is what a host may serve after a start: a lease that it held for 24 h from noon on, renewed never.
func TestWhatCounts(t *testing.T) {
	t.Parallel()
	reboot := func(c *clock, off time.Duration) {
		c.pass(off)
		c.set(func(m *Moment) { m.Boot, m.Up = "boot-2", 5*time.Second })
	}
	tests := map[string]struct {
		before func(*clock)         // the lease is held
		during func(*Cache, *clock) // while the daemon runs
		after  func(*clock)         // while it does not
		id     string               // that starts
		forget bool
		want   string // Reason
	}{
		"another identity":     {id: "host-b", want: "the remembered lease of 10.0.7.0/24 is another host's: the state directory was copied, or its identity was replaced"},
		"lost to another host": {during: func(c *Cache, _ *clock) { c.Lost(`belongs to host "b"`) }, want: `the remembered lease of 10.0.7.0/24 was lost when it was last seen: belongs to host "b"`},
		"ended": {
			after: func(c *clock) { c.pass(24 * time.Hour) },
			want:  "the remembered lease of 10.0.7.0/24 ended at 2026-08-13T12:00:00Z",
		},
		"ended while the host was suspended": { // only CLOCK_BOOTTIME knows if the wall clock is not right yet
			after: func(c *clock) { c.set(func(m *Moment) { m.Up += 25 * time.Hour; m.Wall = noon.Add(time.Minute) }) },
			want:  "the remembered lease of 10.0.7.0/24 ended at 2026-08-12T11:01:00Z",
		},
		"ended while the host was off": {
			after: func(c *clock) { reboot(c, 25*time.Hour) },
			want:  "the remembered lease of 10.0.7.0/24 ended at 2026-08-13T12:00:00Z",
		},
		"a clock that was set back over a boot": {
			after: func(c *clock) { reboot(c, 25*time.Hour); c.set(func(m *Moment) { m.Wall = noon.Add(-time.Second) }) },
			want:  "the remembered lease of 10.0.7.0/24 was last seen at 2026-08-12T12:00:00Z, which is yet to come: a clock of the host was set back",
		},
		"a clock that was set back to before the daemon stopped": {
			during: func(c *Cache, k *clock) { k.pass(20 * time.Hour); c.write(true) },
			after:  func(c *clock) { reboot(c, 25*time.Hour); c.set(func(m *Moment) { m.Wall = noon.Add(19 * time.Hour) }) },
			want:   "the remembered lease of 10.0.7.0/24 was last seen at 2026-08-13T08:00:00Z, which is yet to come: a clock of the host was set back",
		},
		"a clock that was set back after the lease ended under the daemon": {
			during: func(c *Cache, k *clock) { k.pass(25 * time.Hour); c.flush(false) },
			after:  func(c *clock) { reboot(c, 0); c.set(func(m *Moment) { m.Wall = noon.Add(time.Hour) }) },
			want:   "the remembered lease of 10.0.7.0/24 ended at 2026-08-13T12:00:00Z",
		},
		"a host with no real-time clock after a boot": {
			after: func(c *clock) { reboot(c, time.Hour); c.set(func(m *Moment) { m.Trusted = false }) },
			want:  "the remembered lease of 10.0.7.0/24 was last seen before the host was booted, and the host's clock is not set yet: it needs NTP or a real-time clock",
		},
		"a lease noted before the clock was set": {
			before: func(c *clock) { c.set(func(m *Moment) { m.Trusted = false }) },
			after:  func(c *clock) { reboot(c, time.Hour); c.set(func(m *Moment) { m.Trusted = true }) },
			want:   "the remembered lease of 10.0.7.0/24 was last seen when the host's clock was not set yet, and the host was booted since",
		},
		"boots that cannot be told apart": {
			before: func(c *clock) { c.set(func(m *Moment) { m.Boot, m.Trusted = "", false }) },
			want:   "the remembered lease of 10.0.7.0/24 was last seen when the host's clock was not set yet, and the host was booted since",
		},
		"an identity that was given up": {forget: true, want: "no lease is remembered"},

		"a restart":                             {},
		"a second before the end":               {after: func(c *clock) { c.pass(24*time.Hour - time.Second) }},
		"off for less than the TTL":             {after: func(c *clock) { reboot(c, 23*time.Hour) }},
		"a wall clock that jumped ahead":        {after: func(c *clock) { c.set(func(m *Moment) { m.Wall = m.Wall.AddDate(1, 0, 0) }) }},
		"a wall clock that jumped back":         {after: func(c *clock) { c.set(func(m *Moment) { m.Wall = m.Wall.AddDate(-1, 0, 0) }) }},
		"no real-time clock, but the same boot": {after: func(c *clock) { c.set(func(m *Moment) { m.Trusted = false }) }},
		"a clock that NTP set under the daemon": {
			before: func(c *clock) { c.set(func(m *Moment) { m.Trusted, m.Wall = false, time.Unix(0, 0) }) },
			during: func(c *Cache, k *clock) { k.set(func(m *Moment) { m.Trusted, m.Wall = true, noon }); c.write(true) },
			after:  func(c *clock) { reboot(c, 23*time.Hour) },
		},
	}
	for name, test := range tests {
		for _, kind := range []string{"lease", "reservation"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				dir, k := t.TempDir(), newClock()
				own, want, id := record(7, 70), test.want, cmp.Or(test.id, host)
				if kind == "reservation" {
					own.LeaseID = 0
					// It has no end, so no clock matters.
					if test.id == "" && !test.forget && !strings.Contains(want, "lost") {
						want = ""
					}
				}
				if test.before != nil {
					test.before(k)
				}
				c, _ := open(t, dir, k)
				c.Held(*own, k.now().Wall.Add(24*time.Hour), nic)
				flush(t, c)
				if test.during != nil {
					test.during(c, k)
				}
				if test.forget {
					if err := c.Forget("host-b"); err != nil {
						t.Fatal(err)
					}
					id = "host-b"
				}
				if test.after != nil {
					test.after(k)
				}
				v := Read(dir, id, k.now())
				if v.Reason != want || (v.Own != nil) != (want == "") {
					t.Errorf("Own %v, Reason\n got: %s\nwant: %s", v.Own, v.Reason, want)
				}
				if v.Own != nil && !v.Own.Equal(*own) {
					t.Errorf("Own = %+v, want %+v", v.Own, own)
				}
				if known := id == host; known != (v.Last != nil) || known && (!v.Last.Equal(*own) || v.NIC != nic) {
					t.Errorf("Last = %+v (link %q), want it if and only if it was this identity's", v.Last, v.NIC)
				}
			})
		}
	}
}

// TestWhatDoesNotCountNeverDoesAgain opens an ended lease once, and sets the clock back then.
func TestWhatDoesNotCountNeverDoesAgain(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	c.Held(*record(7, 70), noon.Add(time.Hour), nic)
	flush(t, c)
	k.pass(2 * time.Hour)
	c, _ = open(t, dir, k)
	flush(t, c)
	k.set(func(m *Moment) { *m = newClock().m })
	if _, v := open(t, dir, k); v.Own != nil {
		t.Errorf("a clock that was set back revived a lease: %+v", v)
	}
	c.Held(*record(7, 70), k.now().Wall.Add(time.Hour), nic)
	flush(t, c)
	if v := Read(dir, host, k.now()); v.Own == nil {
		t.Errorf("a lease that was claimed again does not count: %s", v.Reason)
	}
}

func TestHeldUntil(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	for _, hours := range []time.Duration{24, 30} { // it is renewed
		until := noon.Add(hours * time.Hour)
		c.Held(*record(7, 70), until, nic)
		flush(t, c)
		k.pass(time.Hour)
		if v := Read(dir, host, k.now()); !v.Expires.Equal(until) || !v.SameBoot {
			t.Errorf("expires %s, want %s; in the same boot: %t", v.Expires, until, v.SameBoot)
		}
	}
	k.set(func(m *Moment) { m.Boot, m.Up = "boot-2", 0 })
	c, v := open(t, dir, k)
	if !v.Expires.Equal(noon.Add(30*time.Hour)) || v.SameBoot {
		t.Errorf("after a boot: expires %s; in the same boot: %t", v.Expires, v.SameBoot)
	}
	c.write(true) // a stamp is not a proof that the lease was held here
	if v := Read(dir, host, k.now()); v.SameBoot {
		t.Error("SameBoot after a boot without a claim")
	}
	c.Held(*record(7, 70), noon.Add(30*time.Hour), nic)
	flush(t, c)
	if v := Read(dir, host, k.now()); !v.SameBoot {
		t.Error("not SameBoot after a claim")
	}
}

func TestEverythingComesBack(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, v := open(t, dir, k)
	if diff := gocmp.Diff(View{Reason: "no lease is remembered"}, v, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("the first start (-want +got):\n%s", diff)
	}
	own, peers := record(1000, 5), records(20)
	six := record(30, 9)
	six.Endpoints = []subnet.Endpoint{six.Endpoints[0], {Subnet: mustPrefix("fc00:5:0:1::/64"), PublicIP: mustAddr("2001:db8::7"), Data: []byte(`{"VNI":1}`)}}
	peers[six.Key()] = six
	reserved := record(31, 10)
	reserved.Backend, reserved.Endpoints[0] = "", subnet.Endpoint{Subnet: reserved.Endpoints[0].Subnet}
	peers[reserved.Key()] = reserved
	c.Config([]byte(raw), 7)
	c.Etcd([]string{"https://a:1"}, []string{"https://b:1", "https://c:1"})
	c.Held(*own, noon.Add(time.Hour), nic)
	c.Peers(peers)
	flush(t, c)
	gone := record(3, 3)
	delete(peers, gone.Key())
	changed := record(4, 99)
	peers[changed.Key()] = changed
	c.Peers(map[string]*subnet.Record{gone.Key(): nil, changed.Key(): changed, "10.99.0.0-24": nil})
	flush(t, c)
	want := View{Config: []byte(raw), Cluster: 7, Own: own, Last: own, Expires: noon.Add(time.Hour), Peers: values(peers), NIC: nic, SameBoot: true,
		Seeds: []string{"https://a:1"}, Members: []string{"https://b:1", "https://c:1"}}
	for range 2 { // appended, then written anew
		v := Read(dir, host, k.now())
		v.Peers = sorted(v.Peers)
		if diff := gocmp.Diff(want, v, gocmp.Comparer(equalAddrs), gocmp.Comparer(equalPrefixes)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		c, _ = open(t, dir, k)
		c.write(true)
	}
	info, err := os.Stat(filepath.Join(dir, Name))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%s has mode %v (%v), want 0600", Name, info.Mode(), err)
	}
}

// TestAnotherIdentityStartsEmpty also has it written, so that the old one's start finds nothing of its own either.
func TestAnotherIdentityStartsEmpty(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	a, _ := open(t, dir, k)
	a.Config([]byte(raw), 7)
	a.Peers(records(3))
	a.Held(*record(1000, 5), noon.Add(time.Hour), nic)
	flush(t, a)
	b, v := Open(dir, "host-b", k.now)
	if v.Own != nil || v.Config != nil || len(v.Peers) != 0 || !strings.Contains(v.Reason, "another host's") {
		t.Errorf("a copy of the state directory gave %+v", v)
	}
	flush(t, b)
	b.close()
	if v := Read(dir, host, k.now()); v.Own != nil || !strings.Contains(v.Reason, "another host's") {
		t.Errorf("the directory that another identity took over gave %+v", v)
	}
}

// TestForgetKeepsTheNetwork is a host that takes a new identity while it runs.
func TestForgetKeepsTheNetwork(t *testing.T) {
	t.Parallel()
	dir, k := t.TempDir(), newClock()
	c, _ := open(t, dir, k)
	c.Config([]byte(raw), 7)
	c.Peers(records(3))
	c.Held(*record(1000, 5), noon.Add(time.Hour), nic)
	flush(t, c)
	if err := c.Forget("host-b"); err != nil {
		t.Fatal(err)
	}
	v := Read(dir, "host-b", k.now())
	if v.Own != nil || v.Last != nil || len(v.Peers) != 3 || string(v.Config) != raw {
		t.Errorf("after Forget: %+v", v)
	}
	c.Held(*record(8, 8), noon.Add(time.Hour), nic)
	flush(t, c)
	if v := Read(dir, "host-b", k.now()); v.Own == nil || v.Own.Key() != "10.0.8.0-24" {
		t.Errorf("the new identity's lease: %+v", v)
	}
}

func TestNow(t *testing.T) {
	t.Parallel()
	a, b := Now(), Now()
	if a.Boot == "" || a.Up <= 0 || b.Up < a.Up || a.Boot != b.Boot || time.Since(a.Wall).Abs() > time.Hour {
		t.Errorf("Now() = %+v, then %+v", a, b)
	}
}

func TestSetByRTC(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		hctosys, epoch string
		want           bool
	}{
		"none":                            {"", "", false},
		"one that was set from the clock": {"0", "1786536000", false},
		"one with an empty battery":       {"1", "946684800", false},
		"one that cannot be read":         {"1", "", false},
		"one in local time":               {"1", "1786500000", true},
		"one that is right":               {"1", "1786536000", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for rtc, files := range map[string][2]string{"rtc0": {"0", "1786536000"}, "rtc1": {test.hctosys, test.epoch}} {
				must(t, os.Mkdir(filepath.Join(dir, rtc), 0o700))
				put(t, filepath.Join(dir, rtc, "hctosys"), []byte(files[0]+"\n"))
				put(t, filepath.Join(dir, rtc, "since_epoch"), []byte(files[1]+"\n"))
			}
			if got := setByRTC(dir, noon); got != test.want {
				t.Errorf("setByRTC() = %t, want %t", got, test.want)
			}
		})
	}
}
