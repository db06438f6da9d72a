package firewall

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/task"
)

// listening makes the firewall of ns, that is not run yet.
func listening(t testing.TB, ns netns.NsHandle) Firewall {
	t.Helper()
	f, err := New(Config{Namespace: ns, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// start runs the firewall of ns until the test ends.
func start(t testing.TB, ns netns.NsHandle) Firewall {
	t.Helper()
	f := listening(t, ns)
	nstest.Run(t, f.Run)
	return f
}

// until waits for a status.
func until(t *testing.T, f Firewall, what string, ok func(task.Status) bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !ok(f.Status()) {
		select {
		case <-f.Changed():
		case <-deadline:
			t.Fatalf("not %s: %+v", what, f.Status())
		}
	}
}

func TestFirewallHeals(t *testing.T) {
	t.Setenv("PATH", variant(t, "nft")+":"+os.Getenv("PATH")) // the legacy variant tells nobody
	ns := nstest.New(t)
	f := start(t, ns)
	f.Set("one", []Rule{Masquerade{net4}, Accept{net4}})
	f.Set("other", []Rule{Accept{net4}, Uplink{Network: net4, Link: "eth0"}})
	if got := f.Status().Objects; got != 3 {
		t.Errorf("%d objects, want 3", got)
	}
	until(t, f, "applied", func(s task.Status) bool { return !s.Pending })
	<-f.Applied()
	const show = "nft list table inet overlayd; iptables-nft -S OVERLAYD-FORWARD"
	want := nstest.Sh(t, ns, show)
	if !strings.Contains(want, "masquerade") || !strings.Contains(want, "-o eth0") {
		t.Errorf("rules: %s", want)
	}
	nstest.Sh(t, ns, "nft add table inet foreign; iptables-nft -t nat -A POSTROUTING -j ACCEPT; iptables-nft -A FORWARD -j ACCEPT")
	for i, script := range []string{
		"nft delete table inet overlayd",
		"nft add rule inet overlayd postrouting accept",
		"iptables-nft -F",
		"iptables-nft -I FORWARD -j DROP",
		many(t), // more at once than the socket holds
	} {
		nstest.Sh(t, ns, script)
		until(t, f, "healed after "+script, func(s task.Status) bool { return s.Healed > i })
		if got := nstest.Sh(t, ns, show); got != want {
			t.Errorf("after %s: %s\nwant %s", script, got, want)
		}
	}
	if got := f.Status().Healed; got != 5 {
		t.Errorf("%d healed, want 5", got)
	}
	f.Set("other", nil)
	until(t, f, "applied", func(s task.Status) bool { return !s.Pending })
	if got := nstest.Sh(t, ns, show); strings.Contains(got, "eth0") || !strings.Contains(got, "-s 10.5.0.0/16 -d 10.5.0.0/16") {
		t.Errorf("without the other network: %s", got)
	}
}

// many is a script that removes our table among 20,000 rules of others.
func many(t *testing.T) string {
	t.Helper()
	b := []byte("add table ip filter\nadd chain ip filter INPUT\n")
	for i := range 20000 {
		b = fmt.Appendf(b, "add rule ip filter INPUT tcp dport %d accept\n", i)
	}
	file := filepath.Join(t.TempDir(), "many")
	if err := os.WriteFile(file, append(b, "delete table inet overlayd\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	return "nft -f " + file
}

// A command that hangs is ended, with what it has begun, and named; what the others do is done.
func TestHangingCommand(t *testing.T) {
	for _, command := range []string{"nft", "iptables-restore"} {
		t.Run(command, func(t *testing.T) {
			dir, ns := t.TempDir(), nstest.New(t)
			// Its child holds the pipes open.
			script := "#!/bin/sh\n: > " + dir + "/begun\nsleep 1234.5 &\necho $! > " + dir + "/child\nwait\n"
			if err := os.WriteFile(filepath.Join(dir, command), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			f := newFirewall(ns)
			f.within = 4 * time.Second
			want := []Rule{Masquerade{net4}, Accept{net4}, Accept{net6}}
			_, err := f.apply(t.Context(), want)
			if !errors.Is(err, ErrHangs) || !strings.Contains(err.Error(), command+" hangs: ended after 4s") {
				t.Errorf("got %v", err)
			}
			child, err := os.ReadFile(filepath.Join(dir, "child"))
			if err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				stat, err := os.ReadFile("/proc/" + string(bytes.TrimSpace(child)) + "/stat")
				if err != nil || strings.Contains(string(stat), ") Z ") {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("its child goes on: %s", stat)
				}
			}
			if out := nstest.Sh(t, ns, "ip6tables -S"); !strings.Contains(out, "fd00:5::/48") {
				t.Errorf("ip6tables was not run: %s", out)
			}
			if err := os.Remove(filepath.Join(dir, command)); err != nil {
				t.Fatal(err)
			}
			f.within = time.Minute
			apply(t, f, 1, want...)
		})
	}
}
