package agent

import (
	"testing"

	"github.com/overlayd/overlayd/backend"
	"github.com/overlayd/overlayd/backend/kernel"
	"github.com/overlayd/overlayd/subnet"
)

// The link that the host has made for itself is there when it looks around, and is nothing to take over.
func TestDoesNotAdoptItsOwnLink(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	made := testHost("172.30.0.11")
	made.Adopted = map[subnet.Family]backend.Adopted{subnet.IPv4: {Name: "overlay.1", MAC: kernel.MAC{2, 9}}}
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
