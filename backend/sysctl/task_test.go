package sysctl

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/task"
)

// start holds the parameters of ns until the test ends.
func start(t *testing.T, ns netns.NsHandle) *task.Task[Param] {
	t.Helper()
	c, err := New(Config{Namespace: ns, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, c.Run)
	return c
}

// healed waits until just so many parameters were healed.
func healed(t *testing.T, c *task.Task[Param], want int) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for c.Status().Healed < want {
		select {
		case <-c.Changed():
		case <-deadline:
			t.Fatalf("%+v: want %d healed", c.Status(), want)
		}
	}
	if got := c.Status().Healed; got != want {
		t.Errorf("%d healed, want %d", got, want)
	}
}

// Forwarding that somebody turns off, of the host or of our link alone, is on again, because the kernel told of it: nobody
// else looks within minutes.
func TestForwardingHeals(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	c := start(t, ns)
	link := Overlay("overlay.1", false)[0]
	c.Set("self", []Param{{Name: Forwarding4, Value: "1"}, {Name: Forwarding6, Value: "1"}, link})
	<-c.Applied() // the link is not there
	get := func(name string) string { return strings.TrimSpace(nstest.Sh(t, ns, "sysctl -n "+name)) }
	for i, name := range []string{Forwarding4, Forwarding6, link.Name} {
		if i == 2 {
			nstest.Sh(t, ns, "sysctl -qw net.ipv4.conf.default.forwarding=0; ip link add overlay.1 type bridge")
			for deadline := time.Now().Add(10 * time.Second); get(name) != "1"; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("a new link does not forward")
				}
			}
		}
		nstest.Sh(t, ns, fmt.Sprintf("sysctl -qw %s=0", name))
		healed(t, c, i+1)
		if got := get(name); got != "1" {
			t.Errorf("%s is %s", name, got)
		}
	}
}
