package task

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// thing is what a task under test holds, in a bubble where time is the test's.
type thing struct {
	*Task[string]
	mu     sync.Mutex
	takes  time.Duration // a look
	err    error         // of a look
	undone int           // how many objects others have changed
	looks  int
	want   []string
	nudge  func()
	log    bytes.Buffer
	reg    *prometheus.Registry
}

func start(t *testing.T) *thing {
	t.Helper()
	th := &thing{reg: prometheus.NewRegistry()}
	var err error
	th.Task, err = New(Config[string]{
		Kind: "thing", Log: slog.New(slog.NewTextHandler(&th.log, nil)), Registerer: th.reg,
		Apply: func(ctx context.Context, want []string) (int, error) {
			th.mu.Lock()
			defer th.mu.Unlock()
			th.looks++
			takes := th.takes
			th.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(takes):
			}
			th.mu.Lock()
			if th.err != nil {
				return 0, th.err
			}
			changed := th.undone
			if th.undone = 0; !slices.Equal(want, th.want) {
				changed++
			}
			th.want = want
			return changed, nil
		},
		Listen: func(ctx context.Context, nudge func()) error { th.nudge = nudge; <-ctx.Done(); return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if err := th.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	t.Cleanup(cancel)
	synctest.Wait()
	return th
}

// after lets time pass, and returns the status then. What the test does between two of them is ordered against what the task
// does.
func (th *thing) after(d time.Duration) Status {
	th.mu.Lock()
	wake := time.After(d)
	th.mu.Unlock()
	<-wake
	synctest.Wait()
	th.mu.Lock()
	defer th.mu.Unlock()
	return th.Status()
}

// applied tells whether all was there once.
func (th *thing) applied() bool {
	select {
	case <-th.Applied():
		return true
	default:
		return false
	}
}

func TestSet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := start(t)
		if th.nudge(); th.after(time.Hour) != (Status{}) || th.looks != 0 || th.applied() {
			t.Errorf("before the first Set: %d looks, %+v", th.looks, th.Status())
		}
		th.takes = time.Second
		th.Set("b", []string{"y", "x"})
		if s := th.Status(); s != (Status{Objects: 2, Pending: true}) {
			t.Errorf("after Set: %+v", s)
		}
		th.after(time.Second / 2)
		th.Set("a", []string{"x", "z"}) // while that goes on
		if s := th.after(time.Second); !s.Pending || !th.applied() {
			t.Errorf("while another one waits: %+v, applied %t", s, th.applied())
		}
		if s := th.after(time.Second); s != (Status{Objects: 3}) || !slices.Equal(th.want, []string{"x", "z", "y"}) {
			t.Errorf("%+v, %q", s, th.want)
		}
		th.Set("a", []string{"x", "z"})
		if s := th.after(time.Minute); s != (Status{Objects: 3}) || th.looks != 2 {
			t.Errorf("the same again: %d looks, %+v", th.looks, s)
		}
		th.Set("b", nil)
		if s := th.after(time.Minute); s != (Status{Objects: 2}) || !slices.Equal(th.want, []string{"x", "z"}) || th.log.Len() > 0 {
			t.Errorf("%+v, %q, log %s", s, th.want, &th.log)
		}
	})
}

// Of twenty thousand rules of others that make a look take long, and change all the time, a tenth of a core goes to looks.
func TestLooksAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := start(t)
		th.takes = 400 * time.Millisecond
		th.Set("n", []string{"x"})
		for range 2 * 60 * 100 {
			th.nudge()
			th.after(10 * time.Millisecond)
		}
		if busy := time.Duration(th.looks) * th.takes; busy > 13*time.Second || busy < 10*time.Second {
			t.Errorf("%d looks took %v of two minutes", th.looks, busy)
		}
		looks := th.looks
		th.Set("n", []string{"y"}) // does not wait for its turn
		th.after(2 * th.takes)     // it may be at one
		if s := th.Status(); s.Pending || th.looks > looks+2 {
			t.Errorf("%d looks later: %+v", th.looks-looks, s)
		}
		looks = th.looks
		if th.after(time.Hour); th.looks-looks > 14 || th.looks == looks {
			t.Errorf("%d looks in an hour in which nothing happened", th.looks-looks)
		}
	})
}

func TestFailuresAreRetried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := start(t)
		th.err = errors.New("refused")
		th.Set("n", []string{"x"})
		if s := th.after(time.Second); th.looks < 3 || !s.Pending || s.Err != th.err || th.applied() {
			t.Errorf("%d looks in a second, %+v", th.looks, s)
		}
		looks := th.looks
		for range 600 {
			th.nudge()
			th.after(time.Second)
		}
		if n := th.looks - looks; n < 18 || n > 50 {
			t.Errorf("%d looks in ten minutes", n)
		}
		th.err = nil
		if s := th.after(lastRetry); s != (Status{Objects: 1}) || !th.applied() {
			t.Errorf("%+v", s)
		}
		th.err = errors.New("refused later")
		th.nudge()
		if s := th.after(time.Second); s.Pending || s.Err != th.err {
			t.Errorf("what was applied, and cannot be looked at: %+v", s)
		}
		th.err = nil
		if s := th.after(time.Minute); s != (Status{Objects: 1}) {
			t.Errorf("%+v", s)
		}
	})
}

func TestHeals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := start(t)
		th.Set("n", []string{"x"})
		th.after(time.Second)
		th.undone = 2
		th.nudge()
		if s := th.after(time.Second); s != (Status{Objects: 1, Healed: 2}) {
			t.Errorf("%+v", s)
		}
		if th.undone = 1; th.after(every).Healed != 3 {
			t.Errorf("what nobody told of: %+v", th.Status())
		}
		if n := strings.Count(th.log.String(), "msg=healed"); n != 2 || !strings.Contains(th.log.String(), "thing=2") {
			t.Errorf("log: %s", &th.log)
		}
		th.log.Reset()
		for range 60 * 100 { // a fight
			th.undone = 1
			th.nudge()
			th.after(10 * time.Millisecond)
		}
		s := th.Status()
		if !errors.Is(s.Err, ErrFought) || s.Pending || s.Healed > 3+24 || s.Healed < 3+Peaceful {
			t.Errorf("fought over: %+v", s)
		}
		if n := strings.Count(th.log.String(), "\n"); n > 24 || !strings.Contains(th.log.String(), "again and again") {
			t.Errorf("log: %s", &th.log)
		}
		th.undone = 0
		if s := th.after(2 * lastRetry); s.Err != nil {
			t.Errorf("in peace again: %+v", s)
		}
	})
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := start(t)
		if _, err := New(Config[int]{Kind: "other", Registerer: th.reg}); err != nil {
			t.Fatal(err)
		}
		th.err = errors.New("refused")
		th.Set("n", []string{"x", "y"})
		th.after(time.Millisecond)
		th.err = nil
		th.after(time.Second)
		th.undone = 1
		th.nudge()
		th.after(time.Second)
		families, err := th.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range families {
			for _, m := range f.Metric {
				got = append(got, fmt.Sprintf("%s{%s} %v", f.GetName(), m.Label[0].GetValue(), m.GetGauge().GetValue()+m.GetCounter().GetValue()))
			}
		}
		want := []string{
			"overlayd_kernel_errors_total{other} 0", "overlayd_kernel_errors_total{thing} 1",
			"overlayd_kernel_healed_total{other} 0", "overlayd_kernel_healed_total{thing} 1",
			"overlayd_kernel_objects{other} 0", "overlayd_kernel_objects{thing} 2",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestViews(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := start(t)
		a, b := th.For("a"), th.For("b")
		there := func(v *View[string]) bool {
			select {
			case <-v.Applied():
				return true
			default:
				return false
			}
		}
		a.Set([]string{"x", "y"})
		th.after(time.Second)
		if !there(a) || there(b) || a.Status() != (Status{Objects: 2}) || b.Status() != (Status{}) {
			t.Errorf("a %t %+v, b %t %+v", there(a), a.Status(), there(b), b.Status())
		}
		th.err = errors.New("refused")
		b.Set([]string{"z"})
		th.after(time.Second)
		if there(b) || !b.Status().Pending {
			t.Errorf("b is there though it is refused: %+v", b.Status())
		}
		th.err = nil
		th.after(time.Minute)
		if !there(b) || b.Status() != (Status{Objects: 1}) {
			t.Errorf("b %t %+v", there(b), b.Status())
		}
		for _, v := range []*View[string]{a, b} {
			select {
			case <-v.Changed():
			default:
				t.Error("a view heard of no change")
			}
		}
	})
}
