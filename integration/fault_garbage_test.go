package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// garbage are keys below subnets/ that are no leases, or leases that make no sense.
func (r *rig) garbage() map[string]string {
	own := r.keys()
	good := fakeValue(90)
	vtep := func(mac string) string { return strings.Replace(good, "02:00:00:00:00:5a", mac, 1) }
	vtep6 := func(mac string) string { return strings.Replace(good, `"02:00:00:00:00:5a"}}`, `"`+mac+`"}}`, 1) }
	from := func(ip string) string { return strings.Replace(good, "172.30.1.90", ip, 1) }
	from6 := func(ip string) string { return strings.Replace(good, "fd00:30:1::5a", ip, 1) }
	own4, own6, _ := strings.Cut(own[0], "&")
	garbage := map[string]string{
		// Keys.
		subnetsPrefix + "hello": "world", subnetsPrefix: "x", subnetsPrefix + "10.5.1.0-24/": good,
		subnetsPrefix + "10.5.1.0-24hi": good, subnetsPrefix + "\xff\xfe": good, subnetsPrefix + "10.5.1.7-24": good,
		subnetKey("10.5.0.0/16"): good, subnetKey("0.0.0.0/0"): good, subnetKey("10.5.1.0/0"): good,
		subnetKey("127.0.0.0/24"): good, subnetKey("224.0.0.0/24"): good, subnetKey("10.99.1.0/24"): good,
		subnetsPrefix + strings.Repeat("9", 1000): good,
		subnetKey("fc00:5:0:1::/64"):              good, subnetKey("fc00:5:0:1::/64", "10.5.1.0/24"): good, subnetKey("10.5.1.0/24", ""): good,
		subnetKey("10.5.1.0/24", "10.5.2.0/24"): good, subnetKey("10.5.1.0/24", "fc00:5:0:1::7/64"): good,
		subnetKey("10.5.1.0/24", "fc00:5:0:01::/64"): good, subnetKey("10.5.1.0/24", "fc00:6::/64"): good,
		subnetKey("10.5.1.0/24", "::/0"): good, subnetKey("10.5.1.0/24", "ff02::/64"): good,
		subnetKey("10.5.1.0/24", "fc00:5::/48"): good, subnetKey("10.5.1.0/24", "::ffff:10.5.1.0/120"): good,
		// Those that overlap the hosts' own, in both families or in one.
		strings.Replace(own[0], "-24", "-25", 1): good, strings.Replace(own[1], "-64", "-80", 1): good,
		own4 + "&fc00:5:0:0:ff00::-72": good, subnetsPrefix + "10.5.0.252-30&" + own6: good,
	}
	// Values.
	for i, value := range []string{
		"", "{", "null", "[]", `"x"`, "\x00\x01", `{"PublicIP":null}`, `{"PublicIP":7}`, `{}`, strings.Repeat("x", 1<<20),
		from("0.0.0.0"), from("127.0.0.1"), from("224.0.0.1"), from("255.255.255.255"), from("::1"),
		from6(""), from6("::"), from6("::1"), from6("ff02::1"), from6("fe80::1"), from6("172.30.1.90"), from6("::ffff:172.30.1.90"),
		strings.Replace(good, `"fd00:30:1::5a"`, "null", 1), strings.Replace(good, `"fd00:30:1::5a"`, "6", 1),
		// Peers that cannot be reached: no more than eight, or they would be kept for a while when they vanish together.
		vtep("00:00:00:00:00:00"), vtep6("ff:ff:ff:ff:ff:ff"), vtep("01:00:5e:00:00:01"), vtep6("garbage"), vtep(""),
		strings.Replace(good, `"VNI":1`, `"VNI":0`, 1), strings.Replace(good, `"VNI":1`, `"VNI":-1`, 1),
		strings.Replace(good, `"vxlan"`, `"wireguard"`, 1), strings.Replace(good, `"vxlan"`, `7`, 1),
	} {
		garbage[fakeKey(i)] = value
	}
	return garbage
}

// TestGarbageWhileTrafficRuns puts everything that is no lease beside the leases: peers stay, also over a restart.
func TestGarbageWhileTrafficRuns(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	for key, value := range r.garbage() {
		r.Put(key, value)
	}
	r.stream.Pass(1000)
	for _, h := range r.hosts {
		h.counted("skipped")
		h.logs("skipped a key that is no lease of the network")
		s, err := h.status()
		if err != nil || !s.Ready || s.Lease.State != "held" {
			t.Errorf("%s with garbage in etcd: %+v, %v", h.Name, s, err)
		}
	}
	h := r.hosts[0]
	h.Daemon.Stop(syscall.SIGKILL)
	h.Start()
	h.WaitReady()
	r.stream.Pass(500)
	if h.key() != keys[0] {
		t.Errorf("%s has %s, want %s as before", h.Name, h.key(), keys[0])
	}
	if panics := strings.Count(h.Daemon.Output.String(), "goroutine "); panics != 0 {
		t.Error("overlayd panics")
	}
	for key := range r.garbage() {
		r.Delete(key)
	}
	r.well(t, keys...)
}

// TestTenThousandKeysOfGarbage puts them in one moment.
func TestTenThousandKeysOfGarbage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	keys := r.keys()
	const perTxn, txns = 100, 100 // etcd takes 128 at a time
	for i := range txns {
		var puts []map[string]any
		for j := range perTxn {
			puts = append(puts, map[string]any{"requestPut": map[string]string{
				"key": b64(fmt.Sprintf("%sgarbage-%d-%d", subnetsPrefix, i, j)), "value": b64("garbage")}})
		}
		body, err := json.Marshal(map[string]any{"success": puts})
		if err != nil {
			t.Fatal(err)
		}
		if status, reply, err := r.Etcd.Post("http://127.0.0.1:2379/v3/kv/txn", string(body)); err != nil || status != 200 {
			t.Fatalf("etcd: status %d, %v: %s", status, err, reply)
		}
	}
	for _, h := range r.hosts {
		eventually(t, h.Name+" counts them all", func() error {
			if n := h.metric(`overlayd_lease_errors_total{kind="skipped"}`); n < perTxn*txns {
				return fmt.Errorf("%v skipped", n)
			}
			return nil
		})
		if n := strings.Count(h.Daemon.Output.String(), "skipped"); n > 100 {
			t.Errorf("%s logs %d lines about %d keys, want few", h.Name, n, perTxn*txns)
		}
	}
	r.hosts[0].Daemon.Stop(syscall.SIGKILL)
	r.hosts[0].Start()
	r.hosts[0].WaitReady()
	r.etcd.ctl("del", "--prefix", subnetsPrefix+"garbage")
	r.well(t, keys...)
}
