package agent

import (
	"strings"
	"testing"

	"github.com/overlayd/overlayd/backend/kernel"
)

// What the host could never be reached by it is not moved away from: peers would be told to come that way.
func TestForgetsWhatNeverWorked(t *testing.T) {
	t.Parallel()
	r := newRig(t, t.TempDir())
	r.host = func() (Host, error) {
		h := testHost("172.30.0.11")
		h.WireGuard = kernel.NewSecret()
		return h, nil
	}
	r.start(t)
	const wireguard = `{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}`
	r.member.tell(news(t, wireguard, nil))
	eventually(t, "the host is ready", func() bool { return r.Status().Ready })
	before := len(r.member.said())
	r.kernel.set(kernel.Status{Pending: 1})
	for _, config := range []string{vxlanConfig, wireguard} {
		r.member.tell(news(t, config, nil))
		eventually(t, config+" is in force", func() bool { return r.Status().Network == config })
	}
	r.kernel.set(kernel.Status{InStep: true})
	eventually(t, "the host has announced it", func() bool { return len(r.member.said()) > before })
	for _, e := range r.member.said()[before].Endpoints {
		if strings.Contains(string(e.Data), "vxlan") {
			t.Errorf("peers are told of a way that never worked: %s", e.Data)
		}
	}
	if got := r.kernel.objects(retired); len(got) > 0 {
		t.Errorf("it is kept: %q", got)
	}
}
