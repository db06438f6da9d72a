package kernel

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/task"
)

// What failed, and whose link vanished then, waits for the link: the loop has nothing to do meanwhile.
func TestFailedObjectLosesItsLink(t *testing.T) {
	t.Parallel()
	eachFamily(t, func(t *testing.T, o overlay) {
		for name, objects := range map[string][]Object{
			"route": {Route{Dst: o.subnet(1), Via: o.subnet(5).Addr(), Link: "eth0"}}, // nobody knows the way to Via
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r := start(t, testHost(t))
				r.Replace("", []Claim{{"peer1", objects}})
				r.until("failed", func(s Status) bool { return s.Pending == 0 && len(s.Failed) == 1 })
				nstest.Sh(t, r.ns, "ip link del eth0")
				r.until("waiting", func(s Status) bool { return s.Pending == len(objects) && len(s.Failed) == 0 })
				time.Sleep(20 * healDelay) // whatever was to be done soon is done
				r.stop()
				if next := r.next(); next.Before(time.Now()) {
					t.Errorf("something is to be done since %v", time.Since(next))
				}
			})
		}
	})
}

// Who undoes what is put right, at once and for ever, is answered ever more rarely, and in few lines.
func TestFoughtOver(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"removed":  "ip route del %[1]s",
		"replaced": "ip route replace blackhole %[1]s proto bird metric %[2]d",
		"link":     "ip link del %[3]s",
		"added":    "ip neighbour add %[4]s lladdr 02:00:00:00:00:09 nud permanent dev %[3]s",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, func(t *testing.T, o overlay) {
				r := startWith(t, o, 3)
				dst := o.subnet(1)
				peace := filepath.Join(t.TempDir(), "peace")
				spawn(t, r.ns, "while [ ! -e "+peace+" ]; do "+fmt.Sprintf(script, dst, metric(dst), o.link.Name, o.subnet(99).Addr())+" 2>/dev/null; sleep 0.01; done")
				r.until("fought over", func(s Status) bool {
					for _, n := range s.Healed {
						if n > task.Peaceful {
							return true
						}
					}
					return false
				})
				r.until("said to be fought over", func(s Status) bool {
					return name == "added" || slices.ContainsFunc(s.Failed, func(f Failure) bool { return errors.Is(f.Err, task.ErrFought) })
				})
				time.Sleep(3 * time.Second)
				s := r.Status()
				for kind, n := range s.Healed {
					if n > 3*2*task.Peaceful { // without a limit they are more than ten a second, and several of most kinds
						t.Errorf("%d of kind %s healed", n, kind)
					}
				}
				if lines := r.log.lines("msg="); len(lines) > 3*task.Peaceful {
					t.Errorf("log: %q, want few lines", lines)
				}
				nstest.Sh(t, r.ns, "touch "+peace)
				r.inStep()
				r.has(o, 1, 2, 3)

				r.stop()
				r.tellFights(r.fights.at)
				if lines := r.log.lines("again and again"); len(lines) != 1 {
					t.Errorf("log: %q, want a line for the minute", lines)
				}
				r.tellFights(r.fights.at.Add(task.Forgotten))
				if !r.fights.at.IsZero() {
					t.Error("fights are not forgotten")
				}
			})
		})
	}
}

// The link of a peer's VNI cannot be made, because somebody else has its name: that is the peer's trouble, ends with it,
// and what is on the link of the name is not ours.
func TestPeersLinkIsTaken(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"bridge": "ip link add %s up type bridge",
		"veth":   "ip link add %s up type veth peer name other",
		"vxlan":  "ip link add %s up type vxlan id 9 dstport 4789 local %s remote %s",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, func(t *testing.T, o overlay) {
				other := o
				other.link.VNI, other.link.Name = 9, strings.Replace(o.link.Name, ".1", ".9", 1)
				other.own.Link = other.link.Name
				ns := testHost(t)
				args := []any{other.link.Name, o.link.Local, o.hostgw(9)}
				nstest.Sh(t, ns, fmt.Sprintf(script, args[:strings.Count(script, "%s")]...))
				nstest.Sh(t, ns, fmt.Sprintf("ip neighbour add %s lladdr %s nud permanent dev %s", o.subnet(8).Addr(), peerMAC(8), other.link.Name))
				before := dumpOf(t, ns)
				r := start(t, ns)
				all := o.network(3)
				for _, i := range []int{8, 9} {
					all[fmt.Sprintf("peer%d", i)] = append(other.self(), other.peer(i)...)
				}
				r.Replace("", byName(all))
				failed := func(s Status) bool {
					return s.Pending == 0 && len(s.Failed) == 1 && s.Failed[0].Object == other.link.String() && s.Failed[0].Owner != ""
				}
				r.until("programmed but for the peers' link", failed)
				r.Update("", []Claim{{Owner: "peer8"}})
				r.until("programmed but for the other peer's link", failed)
				r.Update("", []Claim{{Owner: "peer9"}})
				r.inStep()
				r.has2(o, other, 1, 2, 3)
				r.Replace("", nil)
				r.inStep()
				sameDump(t, before, dumpOf(t, ns))
			})
		})
	}
}

// has2 is has, where somebody else has a neighbour on another link.
func (r *running) has2(o, other overlay, peers ...int) {
	r.t.Helper()
	got := slices.DeleteFunc(kernelHas(r.t, r.ns, o), func(l string) bool { return strings.Contains(l, " dev "+other.link.Name+" ") })
	if want := wantsOf(o, peers...); !slices.Equal(want, got) {
		r.t.Errorf("kernel: %q, want %q", got, want)
	}
}
