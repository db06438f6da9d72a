package compile_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/policy"
	"github.com/overlayd/overlayd/policy/compile"
)

// TestEndpointIsGivenBack is that an endpoint that has a source is known by it, and as it was put in.
func TestEndpointIsGivenBack(t *testing.T) {
	t.Parallel()
	d := dice{rand.New(rand.NewPCG(1, 17))}
	c := compile.New()
	want := map[string]compile.Endpoint{}
	for i := range 200 {
		e := d.endpoint()
		e.From = compile.Source{Lease: int64(i), Sum: uint64(i % 2)} // the first has none
		key := fmt.Sprint("e", i%150)
		c.SetEndpoint(key, e)
		want[key] = *e
	}
	for key, e := range want {
		if got := c.From(key); got != e.From {
			t.Errorf("%s is from %v, not %v", key, got, e.From)
		}
		slices.SortFunc(e.Ports, func(a, b policy.NamedPort) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		got := c.Endpoint(key)
		slices.SortFunc(got.Ports, func(a, b policy.NamedPort) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		e.Ports = slices.Compact(e.Ports)
		if diff := cmp.Diff(fmt.Sprintf("%+v", e.Endpoint), fmt.Sprintf("%+v", got)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", key, diff)
		}
	}
	n := 0
	for key, from := range c.Sourced() {
		if n++; from != want[key].From {
			t.Errorf("%s is yielded from %v", key, from)
		}
		c.SetEndpoint(key, nil)
	}
	if n != len(want) || c.From("e1") != (compile.Source{}) {
		t.Errorf("%d of %d have a source", n, len(want))
	}
}
