package rtnl_test

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/overlayd/overlayd/backend/internal/nstest"
	"github.com/overlayd/overlayd/backend/rtnl"
)

func TestInNetnsClosedHandle(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	closed := ns
	for _, none := range []netns.NsHandle{netns.None(), 0} {
		called := false
		if err := rtnl.InNetns(none, func() error { called = true; return nil }); err != nil || !called {
			t.Errorf("no namespace: called %v, err %v", called, err)
		}
	}
	closed = netns.NsHandle(1 << 20)
	if err := rtnl.InNetns(closed, func() error { return nil }); err == nil {
		t.Error("a handle that is none: no error")
	}
	if err := rtnl.InNetns(ns, func() error { return os.ErrInvalid }); err != os.ErrInvalid {
		t.Errorf("got %v, want the error of the function", err)
	}
}

func TestInNetns(t *testing.T) {
	t.Parallel()
	ns := nstest.New(t)
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	err = rtnl.InNetns(ns, func() error {
		inside, err := netns.Get()
		if err != nil {
			return err
		}
		defer inside.Close()
		if !inside.Equal(ns) {
			t.Error("not in the namespace")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		after, err := netns.Get()
		if err != nil {
			t.Fatal(err)
		}
		if !after.Equal(here) {
			t.Error("a thread was left in the namespace")
		}
		after.Close()
		runtime.Gosched()
	}
}
