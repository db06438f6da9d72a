package extension

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/overlayd/overlayd/subnet"
)

func start(t *testing.T, cfg Config) *Runner {
	t.Helper()
	cfg.Log, cfg.Registerer, cfg.Allowed = slog.New(slog.DiscardHandler), prometheus.NewRegistry(), true
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

func lease(subnetText, ip, told string) *subnet.Record {
	data, _ := json.Marshal(told)
	return &subnet.Record{LeaseID: 1, Lease: subnet.Lease{Host: ip, HostID: "id-" + ip, Backend: "extension", Endpoints: []subnet.Endpoint{
		{Subnet: netip.MustParsePrefix(subnetText), PublicIP: netip.MustParseAddr(ip), Data: data},
	}}}
}

func site(c Commands) Site {
	return Site{c, []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}, lease("10.5.1.0/24", "192.0.2.1", "me").Lease}
}

func read(path string) string {
	data, _ := os.ReadFile(path)
	return string(data)
}

func isApplied(r *Runner) bool { return r.isApplied() }

// After news SyncCommand is run once more, soon; then as seldom as ever.
func TestSyncOnceMoreAfterNews(t *testing.T) {
	t.Parallel()
	r, err := New(Config{Log: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Allowed: true, Every: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	r.site = site(Commands{Sync: "true"})
	next := func() time.Duration {
		now := time.Now()
		r.synchronize().ended("", nil, now)
		return r.sync.at.Sub(now)
	}
	for _, what := range []string{"the first", "a change"} {
		if in := next(); in < againAfter || in > 2*againAfter {
			t.Errorf("after %s it is run again in %v", what, in)
		}
		if in := next(); in < 5*time.Minute {
			t.Errorf("with no news it is run again in %v", in)
		}
		r.stale = true
	}
}

// SyncCommand hears all leases: at first, after each change, and again after it failed. A renewal is no change.
func TestSync(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log, broken := filepath.Join(dir, "log"), filepath.Join(dir, "broken")
	r := start(t, Config{})
	r.Peers(map[string]*subnet.Record{
		"10.5.2.0-24": lease("10.5.2.0/24", "192.0.2.2", "two"),
		"10.5.9.0-24": {Lease: subnet.Lease{HostID: "kept", Endpoints: []subnet.Endpoint{{Subnet: netip.MustParsePrefix("10.5.9.0/24")}}}},
	})
	r.Serve(site(Commands{Sync: script(t, `cat >>`+log, `echo $SUBNET $PUBLIC_IP $NETWORK >>`+log, `[ ! -e `+broken+` ] || { echo cloud is away; exit 1; }`)}))
	first := `{"network":["10.5.0.0/16"],"own":{"host":"192.0.2.1","hostID":"id-192.0.2.1","subnets":["10.5.1.0/24"],"publicIPs":["192.0.2.1"],"backend":"extension","data":"me"},` +
		`"peers":[{"host":"192.0.2.2","hostID":"id-192.0.2.2","subnets":["10.5.2.0/24"],"publicIPs":["192.0.2.2"],"backend":"extension","data":"two"}]}` +
		"\n10.5.1.0/24 192.0.2.1 10.5.0.0/16\n"
	eventually(t, "it ran", func() bool { return isApplied(r) })
	if diff := cmp.Diff(first, read(log)); diff != "" {
		t.Fatalf("(-want +got)\n%s", diff)
	}

	renewed := lease("10.5.2.0/24", "192.0.2.2", "two")
	renewed.LeaseID, renewed.ModRevision = 7, 7
	r.Peers(map[string]*subnet.Record{"10.5.2.0-24": renewed})
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.Peers(map[string]*subnet.Record{"10.5.2.0-24": nil})
	eventually(t, "it failed", func() bool { return r.Problem() != nil })
	if got, want := r.Problem().Error(), "SyncCommand: exit status 1: cloud is away"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it succeeded again", func() bool { return r.Problem() == nil })
	for i, record := range strings.Split(strings.TrimSpace(read(log)), "\n") {
		if i >= 2 && i%2 == 0 && !strings.Contains(record, `"peers":[]}`) {
			t.Errorf("run %d heard %s", i/2, record)
		}
	}
}

func TestSyncNowAndThen(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	r := start(t, Config{Every: 20 * time.Millisecond})
	r.Serve(site(Commands{Sync: script(t, "echo ran >>"+log)}))
	eventually(t, "it ran three times", func() bool { return strings.Count(read(log), "ran") >= 3 })
}

// flannel's commands, with flannel's variables, and what the peer said on the standard input; those that fail are retried.
func TestEvents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log, broken := filepath.Join(dir, "log"), filepath.Join(dir, "broken")
	say := script(t, `read told`, `echo "$1 $SUBNET $PUBLIC_IP $told" >>`+log, `! [ -e `+broken+` ]`)
	r := start(t, Config{})
	r.Peers(map[string]*subnet.Record{
		"10.5.2.0-24": lease("10.5.2.0/24", "192.0.2.2", "two"),
		"10.5.3.0-24": lease("10.5.3.0/24", "192.0.2.3", "three"),
	})
	s := site(Commands{
		PostStartup: say + " post", Shutdown: say + " shutdown", SubnetAdd: say + " add", SubnetRemove: say + " remove",
	})
	r.Serve(s)
	eventually(t, "all were added", func() bool { return isApplied(r) })
	wantLines := func(want ...string) {
		t.Helper()
		eventually(t, "the log is right", func() bool { return strings.Count(read(log), "\n") >= len(want) })
		if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(read(log)), "\n")); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
	}
	want := []string{"post 10.5.1.0/24 192.0.2.1 ", "add 10.5.2.0/24 192.0.2.2 two", "add 10.5.3.0/24 192.0.2.3 three"}
	wantLines(want...)

	other := lease("10.5.3.0/24", "192.0.2.3", "three")
	other.Backend = "vxlan"
	r.Peers(map[string]*subnet.Record{"10.5.2.0-24": lease("10.5.2.0/24", "192.0.2.2", "renewed"), "10.5.3.0-24": nil, "10.5.4.0-24": other})
	want = append(want, "add 10.5.2.0/24 192.0.2.2 renewed", "remove 10.5.3.0/24 192.0.2.3 three")
	eventually(t, "both were told", func() bool { return strings.Count(read(log), "\n") == 5 })
	if got := read(log); !strings.Contains(got, want[3]) || !strings.Contains(got, want[4]) {
		t.Fatalf("got %s", got)
	}

	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.Peers(map[string]*subnet.Record{"10.5.5.0-24": lease("10.5.5.0/24", "192.0.2.5", "five")})
	eventually(t, "it failed", func() bool { return r.PeerErr("10.5.5.0-24") != nil })
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it succeeded", func() bool { return r.PeerErr("10.5.5.0-24") == nil })

	r.Serve(Site{})
	eventually(t, "it was shut down", func() bool { return strings.HasSuffix(read(log), "shutdown 10.5.1.0/24 192.0.2.1 \n") })
}

// A peer that came and went before a command could hear of it is nobody's business.
func TestEventThatWasNone(t *testing.T) {
	t.Parallel()
	e := events{all: map[string]*event{}}
	l := lease("10.5.2.0/24", "192.0.2.2", "two").Lease
	e.becomes("a", &l)
	e.becomes("a", nil)
	e.becomes("a", &l)
	if key, ev, _ := e.next(time.Now()); key != "a" || ev == nil {
		t.Fatalf("got %q, %v", key, ev)
	}
	e.told("a", &l, nil, time.Now())
	if key, _, _ := e.next(time.Now()); key != "" || len(e.queue) != 0 {
		t.Errorf("got %q, and %v is queued", key, e.queue)
	}
	e.told("a", nil, errors.New("in vain"), time.Now()) // of one that stays, it changes nothing
	if ev := e.all["a"]; ev.had == nil {
		t.Error("it is forgotten that a command has heard of it")
	}
}

func TestTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	r := start(t, Config{})
	c := Commands{PreStartup: script(t, `[ -e `+good+` ] || exit 1`, `echo '  key "1"  '`)}
	if _, err := r.Told(c); !errors.Is(err, ErrRunning) {
		t.Fatalf("got %v", err)
	}
	eventually(t, "it failed", func() bool {
		_, err := r.Told(c)
		return err != nil && err.Error() == "PreStartupCommand: exit status 1"
	})
	if err := os.WriteFile(good, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it succeeded", func() bool {
		told, err := r.Told(c)
		return err == nil && string(told) == `"key \"1\""`
	})
	c.PreStartup = "head -c 3000 /dev/zero"
	eventually(t, "too much is refused", func() bool {
		_, err := r.Told(c)
		return err != nil && strings.Contains(err.Error(), "at most 2048 are told to peers")
	})
	good1, good2 := Commands{PreStartup: "echo 1"}, Commands{PreStartup: "echo 2"}
	eventually(t, "both are known while one config is waited for and the other looked at", func() bool {
		one, err := r.Told(good1)
		two, err2 := r.Told(good2)
		r.Serve(site(good1))
		return err == nil && err2 == nil && string(one) == `"1"` && string(two) == `"2"`
	})
	r.cfg.Allowed = false
	if _, err := r.Told(c); err == nil || !strings.Contains(err.Error(), "extension: true") {
		t.Errorf("got %v", err)
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	if err := Leave(t.Context(), site(Commands{Shutdown: script(t, "echo $SUBNET >"+log)}), nil); err != nil || read(log) != "10.5.1.0/24\n" {
		t.Errorf("got %q, %v", read(log), err)
	}
	if err := Leave(t.Context(), Site{}, nil); err != nil {
		t.Error(err)
	}
	out, err := run{text: "cat /proc/self/status", as: &syscall.Credential{Uid: 65534, Gid: 65534}}.do(t.Context())
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "Groups:\t \n", "CapEff:\t0000000000003000"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("as another user: no %q: %v, %s", want, err, out)
		}
	}
}

// A command that hangs ends when the network has others, or none, and nothing is said of it.
func TestCommandsEndWithTheirNetwork(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]Site{"none": {}, "others": site(Commands{Sync: "true"})} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := filepath.Join(t.TempDir(), "log")
			r := start(t, Config{Timeout: time.Hour})
			hangs := script(t, "echo runs >>"+log, "sleep 3600")
			r.Serve(site(Commands{Sync: hangs, Shutdown: script(t, "echo over >>"+log)}))
			eventually(t, "it runs", func() bool { return read(log) == "runs\n" })
			r.Serve(next)
			eventually(t, "it is over", func() bool { return read(log) == "runs\nover\n" })
			if err := r.Problem(); err != nil {
				t.Error(err)
			}
		})
	}
}
