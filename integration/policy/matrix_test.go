package policy

import "testing"

// TestNoPolicy finds everything open where no policy is.
func TestNoPolicy(t *testing.T) {
	r := newRig(t)
	r.cyclonusPods()
	r.expect("no policy", r.pairs(), func(probe) bool { return true })
}
