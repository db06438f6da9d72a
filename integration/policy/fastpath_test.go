package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"
)

// fastPath is what the host's daemon says of its fast path.
type fastPath struct {
	Off     string
	Slow    []struct{ IP, Why string }
	Packets map[string]uint64
}

func (h *host) fastPath() (f fastPath) {
	h.rig.t.Helper()
	out, err := h.overlayctl("", "fast-path", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &f)
	}
	if err != nil {
		h.rig.t.Fatal(err)
	}
	return f
}

// waitSlow waits until these containers of the host, and no others, are kept from the fast path.
func (h *host) waitSlow(pods ...*pod) {
	h.rig.t.Helper()
	var want, got []string
	for _, p := range pods {
		for _, a := range p.addrs {
			want = append(want, a.String())
		}
	}
	slices.Sort(want)
	eventually(h.rig.t, fmt.Sprintf("slow on host %s are %q", h.name, want), func() error {
		f := h.fastPath()
		got = nil
		for _, s := range f.Slow {
			got = append(got, s.IP)
		}
		if slices.Sort(got); f.Off != "" || !slices.Equal(got, want) {
			return fmt.Errorf("%+v", f)
		}
		return nil
	})
}

// TestPoliciesCutFastFlows has connections on the fast path when policies come: those of containers that are isolated now leave it
// before they are judged, those that are forbidden end at once, the others go on; and are fast again when the policy is gone.
func TestPoliciesCutFastFlows(t *testing.T) {
	p := newPaths(t)
	l := &living{t: t, port: 7100}
	h := p.hosts[0]
	h.waitSlow()
	grows := func(what string, fast bool) {
		t.Helper()
		before := h.fastPath().Packets["sent"]
		time.Sleep(200 * time.Millisecond) // for a few of each stream
		if n := h.fastPath().Packets["sent"] - before; (n > 0) != fast {
			t.Errorf("%s: %d packets were sent fast", what, n)
		}
	}
	var forbidden, allowed []*stream
	for f := range families {
		for _, proto := range []string{"tcp", "udp"} {
			forbidden = append(forbidden, l.open(proto, p.far, p.web, f), l.open(proto, p.web, p.far, f))
		}
		allowed = append(allowed, l.open("tcp", p.far, p.near, f), l.open("udp", p.near, p.far, f))
	}
	grows("before any policy", true)
	p.apply("dev", netpolText("dev", "deny", "{podSelector: {matchLabels: {app: web}}, "+both+"}"))
	since := time.Now()
	for _, s := range forbidden {
		s.diedWithin(t, since, limit())
	}
	h.waitSlow(p.web)
	p.hosts[1].waitSlow()
	grows("of the one that is not isolated", true)
	p.apply("dev", netpolText("dev", "some", "{podSelector: {matchLabels: {app: near}}, "+both+", ingress: [{from: [{namespaceSelector: {}}]}], egress: [{}]}"))
	h.waitSlow(p.web, p.near)
	grows("all are isolated", false)
	p.remove("dev/deny", "dev/some")
	h.waitSlow()
	for _, s := range allowed {
		s.lossless(t)
	}
	s := l.open("tcp", p.far, p.web, v4)
	grows("no policy any more", true)
	s.lossless(t)
	total.addCase()
}
