package enforce

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/overlayd/overlayd/backend/rtnl"
	"github.com/overlayd/overlayd/policy/compile"
)

// A connection from a low port to a high one, which looks like the answers of another, is judged and cut as what it is.
func TestCutLowToHigh(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	serve(t, s.a, ":50051")
	table := bridged(t, s, compile.Change{Make: map[compile.GroupID][]compile.Match{"i1": {{}}}, Set: isolate("i1", "", a4, a6)})
	time.Sleep(1100 * time.Millisecond)
	var c net.Conn
	err := rtnl.InNetns(s.b, func() (err error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err = (&net.Dialer{LocalAddr: &net.TCPAddr{Port: 20000}}).DialContext(ctx, "tcp", "10.5.1.2:50051")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := echo(c, patience); err != nil {
		t.Fatal(err)
	}
	if err := table.Apply(t.Context(), compile.Change{Remove: map[compile.GroupID][]compile.Match{"i1": {{}}}, Narrow: true}); err != nil {
		t.Fatal(err)
	}
	n, err := table.Cut(t.Context(), func(f Flow) bool { return f.Dst != a4 }, nil)
	if n != 1 || err != nil {
		t.Errorf("cut %d, %v", n, err)
	}
	if err := echo(c, patience); err == nil {
		t.Error("it goes on")
	}
}
