package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// speaker is overlayd-bgp on a node.
type speaker struct {
	*Process
	node *Node
	lab  *Lab
	args []string
}

// newSpeaker has overlayd-bgp on a node of number 10 in a rack, and starts it.
func newSpeaker(lab *Lab, s *Segment, conf string) *speaker {
	lab.t.Helper()
	n := lab.node("speaker")
	s.Plug(n, "eth0", 10)
	s.DefaultRoute(n, "eth0")
	dir := lab.t.TempDir()
	write(lab.t, filepath.Join(dir, "bgp-password"), "secret\n", 0o640)
	write(lab.t, filepath.Join(dir, "bgp.yaml"), strings.ReplaceAll(conf, "/etc/overlayd/", dir+"/")+"state-dir: "+dir+"\n", 0o600)
	sp := &speaker{node: n, lab: lab, args: []string{bin("overlayd-bgp"), "--config=/dev/null", "--etcd-endpoints=" + lab.endpoint(),
		"--bgp-config=" + filepath.Join(dir, "bgp.yaml")}}
	sp.start()
	return sp
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func (s *speaker) start() { s.Process = s.node.Spawn("overlayd-bgp", nil, s.args...) }

type speakerStatus struct {
	Routes    map[string]string
	Neighbors []struct{ Address, State, Reason string }
	Refused   map[string]string
	Etcd      string
}

func (s *speaker) status() (st speakerStatus, err error) {
	_, body, err := s.node.Get("http://127.0.0.1:9419/status")
	if err == nil {
		err = json.Unmarshal([]byte(body), &st)
	}
	return st, err
}

// waitStatus waits until its status is right.
func (s *speaker) waitStatus(what string, ok func(speakerStatus) bool) {
	s.node.t.Helper()
	eventually(s.node.t, what, func() error {
		st, err := s.status()
		if err == nil && !ok(st) {
			err = fmt.Errorf("status %+v", st)
		}
		return err
	})
}

// never looks at a router until stop is called, and fails if a route was away for a moment.
func (b *bird) never(want []string) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			routes, err := b.routes()
			for _, r := range want {
				if err == nil && !slices.Contains(routes, r) {
					b.node.t.Errorf("%s lost %s, it has %v", b.node.Name, r, routes)
					return
				}
			}
			select {
			case <-end:
				return
			case <-time.After(30 * time.Millisecond):
			}
		}
	}()
	return func() { close(end); <-done }
}

// TestBGPSpeaker has overlayd-bgp tell a router, which carries the packets between two racks, and a second one, of the leases,
// and has each of them and etcd go away and come back.
func TestBGPSpeaker(t *testing.T) {
	t.Parallel()
	lab := newLab(t, Stack{V4: true, V6: true})
	racks := []*Segment{lab.NewSegment(1), lab.NewSegment(2)}
	router := lab.NewRouter(racks...)
	second := lab.node("second")
	racks[0].Plug(second, "eth0", 2)
	lab.NewEtcd(racks[0])
	lab.StartEtcd()
	lab.Put(configKey, lab.Config(`{"Type":"alloc"}`))

	doc := readDocument(t, "bgp.md", inLab...)
	theirs := doc.block("# router of overlayd-bgp")
	basis := "router id 172.30.1.1;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n" +
		"protocol kernel { ipv4 { export where source = RTS_BGP; }; }\nprotocol kernel { ipv6 { export where source = RTS_BGP; }; }\n"
	a := startBird(router, basis+theirs)
	wrong := strings.Replace(strings.Replace(basis+theirs, "router id 172.30.1.1", "router id 172.30.1.2", 1), `"secret"`, `"other"`, 1) +
		"protocol static { ipv4; route 172.30.2.0/24 via 172.30.1.1; }\nprotocol static { ipv6; route fd00:30:2::/64 via fd00:30:1::1; }\n"
	b := startBird(second, wrong)

	hosts := []*Host{lab.NewHost(racks[0], 11), lab.NewHost(racks[1], 12)}
	for _, h := range hosts {
		h.Start()
	}
	for _, h := range hosts {
		h.WaitReady()
	}
	conf := doc.block("password-file: /etc/overlayd/bgp-password\n")
	s := newSpeaker(lab, racks[0], conf+"  - {address: 172.30.1.2, as: 64512, password-file: /etc/overlayd/bgp-password}\n")
	want := hops(t, hosts...)
	a.waitRoutes(want...)
	c, d := hosts[0].NewContainer(), hosts[1].NewContainer()
	reach(t, c, d, 1500)

	s.waitStatus("no session with a wrong password", func(st speakerStatus) bool {
		return len(st.Neighbors) == 2 && st.Neighbors[0].State == "established" && st.Neighbors[1].State != "established"
	})
	b.Stop(syscall.SIGTERM)
	b.start(strings.Replace(wrong, `"other"`, `"secret"`, 1))
	through := slices.Clone(want) // the second router reaches the other rack through the first one
	for i := range through {
		through[i] = strings.NewReplacer("172.30.2.12", "172.30.1.1", "fd00:30:2::c", "fd00:30:1::1").Replace(through[i])
	}
	b.waitRoutes(through...)
	speakerFollows(t, lab, racks[0], s, a, hosts[0], want)
	speakerComesBack(t, lab, s, a, want)
	speakerLosesRouter(t, s, b, through)
}

// speakerFollows has leases come, make no sense, and go.
func speakerFollows(t *testing.T, lab *Lab, rack *Segment, s *speaker, a *bird, h *Host, want []string) {
	t.Helper()
	inside := strings.Replace(h.subnets()[0], ".0/24", ".7", 1)
	lab.Put(subnetsPrefix+"10.5.222.0-24", `{"PublicIP":"172.30.1.77","BackendType":"alloc"}`)
	lab.Put(subnetsPrefix+"10.5.223.0-24", `{"PublicIP":"`+inside+`","BackendType":"alloc"}`)
	lab.Put(subnetsPrefix+"10.5.224.0-24", `{"PublicIP":"172.30.1.1","BackendType":"alloc"}`)
	lab.Put(subnetsPrefix+"10.5.225.0-24", `{"PublicIP":"224.0.0.1","BackendType":"alloc"}`)
	s.waitStatus("garbage is refused", func(st speakerStatus) bool {
		return strings.Contains(st.Refused["10.5.223.0-24"], "is in a subnet of the overlay") &&
			strings.Contains(st.Refused["10.5.224.0-24"], "is that of a router") && strings.Contains(st.Refused["10.5.225.0-24"], "no address that another host can reach")
	})
	a.waitRoutes(append([]string{"10.5.222.0/24 via 172.30.1.77"}, want...)...)
	out := s.node.Exec(append(slices.Clone(s.args[:1]), append([]string{"status"}, s.args[1:]...)...)...)
	for _, text := range []string{"172.30.1.1  64512  established", "10.5.223.0-24", "NOT ANNOUNCED"} {
		if !strings.Contains(out, text) {
			t.Errorf("status has no %q:\n%s", text, out)
		}
	}
	for i := 222; i <= 225; i++ {
		lab.Delete(fmt.Sprintf("%s10.5.%d.0-24", subnetsPrefix, i))
	}
	s.waitStatus("nothing is refused", func(st speakerStatus) bool { return len(st.Refused) == 0 })

	third := lab.NewHost(rack, 13)
	third.Start()
	third.WaitReady()
	a.waitRoutes(append(hops(t, third), want...)...)
	third.Daemon.Stop(syscall.SIGTERM)
	if out, code := third.Once("--cleanup"); code != 0 {
		t.Fatalf("cleanup: %s", out)
	}
	a.waitRoutes(want...)
}

// speakerComesBack has etcd, the speaker and a session go, of which routers notice nothing.
func speakerComesBack(t *testing.T, lab *Lab, s *speaker, a *bird, want []string) {
	t.Helper()
	both := func(st speakerStatus) bool {
		return len(st.Neighbors) == 2 && st.Neighbors[0].State == "established" && st.Neighbors[1].State == "established"
	}
	s.waitStatus("both sessions stand", both)
	stop := a.never(want)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		s.Stop(sig)
		s.start()
		s.waitStatus("both sessions stand again", both)
	}
	lab.StopEtcd()
	s.Stop(syscall.SIGKILL)
	s.start()
	s.waitStatus("both sessions stand without etcd", func(st speakerStatus) bool { return both(st) && st.Etcd != "" && len(st.Routes) == len(want) })
	lab.ResumeEtcd()
	s.waitStatus("etcd is back", func(st speakerStatus) bool { return both(st) && st.Etcd == "" })

	// A session that breaks while both ends live on: what the speaker has told is still so, as the router hears in the next one.
	s.node.Exec("ss", "--kill", "dst", "172.30.1.1")
	s.waitStatus("the session is over", func(st speakerStatus) bool { return st.Neighbors[0].Reason != "" })
	s.waitStatus("and stands again", both)
	a.waitRoutes(want...)
	stop()
}

// speakerLosesRouter has a router die, and come back with nothing.
func speakerLosesRouter(t *testing.T, s *speaker, b *bird, want []string) {
	t.Helper()
	b.Stop(syscall.SIGKILL)
	s.waitStatus("the router is away", func(st speakerStatus) bool { return st.Neighbors[1].State != "established" })
	data, err := os.ReadFile(filepath.Join(b.dir, "bird.conf"))
	if err != nil {
		t.Fatal(err)
	}
	b.start(string(data))
	b.waitRoutes(want...)
}
