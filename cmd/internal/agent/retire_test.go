package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// The link that the host has made for itself is there when it looks around, and is nothing to take over.
func TestDoesNotAdoptItsOwnLink(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	made := testHost("172.30.0.11")
	made.Present = present("overlay.1", 8472, kernel.MAC{2, 9})
	looked := make(chan struct{}, 10)
	hosts := []Host{testHost("172.30.0.11"), made}
	r.host = func() (Host, error) {
		h := hosts[0]
		hosts = hosts[len(hosts)-1:]
		looked <- struct{}{}
		return h, nil
	}
	r.start(t)
	r.member.tell(news(t, vxlanConfig, nil))
	<-looked
	r.kernel.underlay <- struct{}{}
	<-looked
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	r.kernel.mu.Lock()
	defer r.kernel.mu.Unlock()
	if r.kernel.replaced != 1 {
		t.Errorf("everything was planned %d times, want once", r.kernel.replaced)
	}
}

// present is a vxlan link that is there.
func present(name string, port uint16, mac kernel.MAC) []kernel.Existing {
	return []kernel.Existing{{Link: kernel.VXLAN{Name: name, VNI: 1, Port: port, Local: netip.MustParseAddr("172.30.0.11"), MAC: mac}}}
}

// objects are the commands that would make the owner's objects; none if there is no such owner.
func (k *fakeKernel) objects(owner string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var s []string
	for _, o := range k.owners[owner] {
		s = append(s, o.String())
	}
	return s
}

// A host goes on receiving in the old way for a while after its network changed, and reaches peers that have not
// followed yet in the way that they receive.
func TestRetires(t *testing.T) {
	t.Parallel()
	const (
		key   = "10.5.73.0-24"
		port  = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":4789}}`
		port2 = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":4790}}`
		vni   = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`
		both  = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2,"Port":4789}}`
	)
	vtep := func(name string, vni, port int) []string {
		return []string{
			fmt.Sprintf("ip link add %s up arp off address 02:01:00:00:00:00 mtu 1450 type vxlan id %d local 172.30.0.11 dev eth0 dstport %d nolearning", name, vni, port),
			"ip address replace 10.5.72.0/32 dev " + name,
		}
	}
	for name, tt := range map[string]struct {
		configs []string // one after the other
		retired []string
		peer    []string // what still reaches a peer of the first config
	}{
		"the same links, other paths":     {[]string{directConfig}, nil, []string{"dev overlay.1 dst 172.30.0.12 self"}},
		"another port":                    {[]string{port}, vtep("overlay.1", 1, 8472), []string{"dstport 4789", "dev overlay.p4789 dst 172.30.0.12 port 8472"}},
		"another port and back":           {[]string{port, vxlanConfig}, vtep("overlay.p4789", 1, 4789), []string{"dstport 8472", "dev overlay.1 dst 172.30.0.12 self"}},
		"two other ports":                 {[]string{port, port2}, append(vtep("overlay.1", 1, 8472), vtep("overlay.p4789", 1, 4789)...), []string{"dev overlay.p4790 dst 172.30.0.12 port 8472"}},
		"another VNI":                     {[]string{vni}, vtep("overlay.1", 1, 8472), vtep("overlay.1", 1, 8472)},
		"another VNI, and back by a port": {[]string{vni, port}, append(vtep("overlay.1", 1, 8472), vtep("overlay.2", 2, 8472)...), []string{"dev overlay.p4789 dst 172.30.0.12 port 8472"}},
		"another VNI and port":            {[]string{both}, vtep("overlay.1", 1, 8472), vtep("overlay.1", 1, 8472)},
		"another port, then VNI":          {[]string{port, both}, append(vtep("overlay.1", 1, 8472), vtep("overlay.p4789", 1, 4789)...), []string{"dev overlay.p4789 dst 172.30.0.12 port 8472"}},
		"another backend":                 {[]string{hostGWConfig}, vtep("overlay.1", 1, 8472), vtep("overlay.1", 1, 8472)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, t.TempDir())
			r.kernel.far = map[netip.Addr]bool{netip.MustParseAddr("172.30.0.12"): true}
			r.start(t)
			peers := map[string]*subnet.Record{key: record("10.5.73.0/24", "172.30.0.12", "vxlan", 0x12)}
			r.member.tell(news(t, vxlanConfig, peers))
			eventually(t, "the host is ready", func() bool { return r.Status().Ready })
			for _, config := range tt.configs {
				r.member.tell(news(t, config, nil))
				eventually(t, "the new config is in force", func() bool { return r.Status().Network == config })
			}
			if diff := cmp.Diff(tt.retired, r.kernel.objects(retired)); diff != "" {
				t.Errorf("retired (-want +got):\n%s", diff)
			}
			// A peer does not claim what the host has for itself.
			got := strings.Join(slices.Concat(r.kernel.objects(key), r.kernel.objects(self)), "\n")
			for _, part := range tt.peer {
				if !strings.Contains(got, part) {
					t.Errorf("the peer is reached by\n%s\nwant %q", got, part)
				}
			}
			eventually(t, "peers are told", func() (told bool) {
				r.meddle(func() { told = !r.unannounced })
				return told
			})
			bury := func(said subnet.Lease) {
				r.meddle(func() {
					r.latest.Own.Record.Lease = said
					r.bury(time.Now().Add(retireAfter + time.Second))
				})
			}
			before := r.kernel.objects(retired)
			bury(subnet.Lease{Backend: "another"}) // the peers have not heard of it
			if got := r.kernel.objects(retired); !slices.Equal(got, before) {
				t.Errorf("buried %q before etcd had the change", before)
			}
			said := r.member.said()
			r.meddle(func() { r.retirement.until = time.Now().Add(retireAfter) })
			bury(said[len(said)-1])
			if got := r.kernel.objects(retired); got != nil {
				t.Errorf("still there after its time: %q", got)
			}
		})
	}
}

// The link of another port keeps its name when the host's address changes: the kernel allows no second one beside it.
func TestLinkOfAnotherPortMoves(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	var moved atomic.Bool
	r.host = func() (Host, error) {
		if !moved.Load() {
			return testHost("172.30.0.11"), nil
		}
		h := testHost("172.30.0.99")
		h.Present = present("overlay.p4789", 4789, h.VTEP)
		return h, nil
	}
	r.start(t)
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	r.member.tell(news(t, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":4789}}`, nil))
	has := func(part string) func() bool {
		return func() bool { return strings.Contains(strings.Join(r.kernel.objects(self), "\n"), part) }
	}
	eventually(t, "the port is in force", has("overlay.p4789 "))
	moved.Store(true)
	r.kernel.underlay <- struct{}{}
	eventually(t, "the link has moved", has("local 172.30.0.99 "))
	if !has("overlay.p4789 ")() {
		t.Errorf("the link has another name: %q", r.kernel.objects(self))
	}
}

// Peers hear of a new way to reach the host when it works.
func TestAnnouncesWhatWorks(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.start(t)
	r.member.tell(news(t, vxlanConfig, nil))
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	before := len(r.member.said())
	r.kernel.set(kernel.Status{Pending: 1})
	const next = `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}`
	r.member.tell(news(t, next, nil))
	eventually(t, "the new config is in force", func() bool { return r.Status().Network == next })
	time.Sleep(50 * time.Millisecond)
	if said := r.member.said(); len(said) != before {
		t.Errorf("the host announced %v before its kernel was ready", said[before:])
	}
	r.kernel.set(kernel.Status{InStep: true})
	eventually(t, "the host has announced it", func() bool { return len(r.member.said()) == before+1 })
}

func (m *fakeMember) said() []subnet.Lease {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.advertised)
}

// set lets the kernel be so.
func (k *fakeKernel) set(s kernel.Status) {
	k.mu.Lock()
	k.status = s
	k.mu.Unlock()
	k.changed <- struct{}{}
}
