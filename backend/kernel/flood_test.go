package kernel

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

// deaf is who should hear nothing.
type deaf struct{ t *testing.T }

func (d deaf) Hear(_ unix.NlMsghdr, body []byte) {
	d.t.Errorf("%d bytes to be read: % x", len(body), body)
}
func (d deaf) Lose() { d.t.Error("more was to be read than there is room for") }

// While routes of others are not heard, they do not even wait to be read.
func TestFloodIsNotRead(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		ns := testHost(t)
		w, err := newWatcher(ns, 0) // nobody runs it: the mute lasts
		if err != nil {
			t.Fatal(err)
		}
		defer w.conn.Close()
		nstest.Sh(t, ns, variables(o)+"ip route add $dst2 via $via dev eth0 proto bird")
		w.take()
		if !w.muted {
			t.Fatal("a route of others, and no mute")
		}
		if len(w.underlay.first()) > 0 {
			t.Error("a signal before the mute ends")
		}
		nstest.Sh(t, ns, "ip -batch "+floodFile(t, o, "add", 1_000)+"; ip -batch "+floodFile(t, o, "del", 1_000))
		w.conn.Drain(deaf{t})
		if err := w.listen(); err != nil {
			t.Fatal(err)
		}
		if len(w.underlay.first()) == 0 {
			t.Error("no signal when the mute ends")
		}
		nstest.Sh(t, ns, variables(o)+"ip route del $dst2")
		if w.take(); !w.muted {
			t.Error("no second mute")
		}
	})
}

// Somebody else's flood of routes does not keep us from healing ours.
func TestHealInFlood(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"removed":  "ip route del $dst",
		"replaced": "ip route replace $dst via $via dev eth0 proto bird metric $metric",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, func(t *testing.T, o overlay) {
				r := startWith(t, o, 3)
				ns := r.ns
				flood(t, ns, o)
				for n := range 3 {
					time.Sleep(100 * time.Millisecond)
					nstest.Sh(t, ns, variables(o)+script)
					begin := time.Now()
					r.healedTo(KindRoute, n+1)
					if took := time.Since(begin); took > time.Second {
						t.Errorf("healed after %v", took)
					}
					r.has(o, 1, 2, 3)
				}
			})
		})
	}
}

// Who looks after each signal sees the last change of a flood, at its end and in its middle.
func TestUnderlayInFlood(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		r := startWith(t, o, 3)
		ns := r.ns
		add, del := floodFile(t, o, "add", 300), floodFile(t, o, "del", 300)
		for n := range 20 {
			via := o.hostgw(10 + n).String()
			script := fmt.Sprintf("%s\nip -batch %s; ip $family route replace default via %s dev eth0", variables(o), add, via)
			if n%2 == 0 {
				script += "; ip -batch " + del
			} else {
				script += "\nsleep 0.0" + fmt.Sprint(n) + "; ip -batch " + del
			}
			done := spawn(t, ns, script)
			var late <-chan time.Time
			for seen := false; !seen; {
				select {
				case <-r.UnderlayChanged():
					seen = strings.Contains(nstest.Sh(t, ns, "ip route show default; ip -6 route show default"), "via "+via+" ")
				case <-late:
					t.Fatalf("round %d: no look saw the default route by %s", n, via)
				case err := <-done:
					if err != nil {
						t.Fatal(err)
					}
					done, late = nil, time.After(time.Second)
				}
			}
			if done != nil {
				<-done
			}
		}
	})
}

// flood adds and removes routes of others, again and again, until the test ends.
func flood(t *testing.T, ns netns.NsHandle, o overlay) {
	t.Helper()
	spawn(t, ns, fmt.Sprintf("while ip -batch %s; do ip -batch %s; done",
		floodFile(t, o, "add", 5_000), floodFile(t, o, "del", 5_000)))
}

// floodFile lets ip -batch add or del so many routes by a gateway.
func floodFile(t *testing.T, o overlay, verb string, size int) string {
	t.Helper()
	var lines strings.Builder
	for i := range size {
		fmt.Fprintf(&lines, "route %s %s via %s dev eth0 proto bird\n", verb, o.subnet(1_000+i), o.hostgw(8))
	}
	path := filepath.Join(t.TempDir(), verb)
	if err := os.WriteFile(path, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// spawn runs a script in ns, and tells how it ended. It ends with the test.
func spawn(t *testing.T, ns netns.NsHandle, script string) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if err := rtnl.InNetns(ns, cmd.Start); err != nil {
		t.Fatal(err)
	}
	ended, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return done
}
