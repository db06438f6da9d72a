package kernel

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestRecorder(t *testing.T) {
	t.Parallel()
	o := overlays()[0]
	var r Recorder
	r.Update(byName(o.network(1)))
	if s := r.Status(); s.InStep || r.String() != "" {
		t.Errorf("before the first Replace: %+v, %s", s, r.String())
	}
	all := o.network(2)
	all["peer2"] = append(all["peer2"], o.link) // as peer1's
	r.Replace(byName(all))
	<-r.Changed()
	r.Update([]Claim{{"peer1", nil}})
	<-r.Changed()
	var want strings.Builder
	for _, object := range append(o.self(), o.peer(2)...) {
		fmt.Fprintln(&want, object)
	}
	if diff := cmp.Diff(want.String(), r.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if s := r.Status(); !s.InStep || s.Objects[KindLink] != 1 || s.Objects[KindRoute] != 1 {
		t.Errorf("status %+v", s)
	}
	r.Fail(Failure{Owner: "peer2", Err: unix.EINVAL})
	if s := r.Status(); s.InStep || len(s.Failed) != 1 {
		t.Errorf("status %+v", s)
	}
}
