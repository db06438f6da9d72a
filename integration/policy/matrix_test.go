package policy

import (
	"testing"
	"time"
)

// TestNoPolicy finds everything open where no policy is.
func TestNoPolicy(t *testing.T) {
	r := newRig(t)
	eachCyclonusPod(func(host int, ns, name string) {
		r.pods = append(r.pods, r.newPod(r.hosts[host], ns, name, map[string]string{"pod": name}))
	})
	start := time.Now()
	r.check("no policy")
	t.Logf("%d probes in %v", len(r.everyPair()), time.Since(start))
}
