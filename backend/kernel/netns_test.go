package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
)

// freshNetns makes a network namespace with no name: it ends with the test even if that crashes.
func freshNetns(t testing.TB) netns.NsHandle {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := netns.Set(here); err != nil {
		panic(err) // this thread must not be used any more
	}
	return ns
}

// sh runs a script in ns, and stops the test where a line of it fails.
func sh(t testing.TB, ns netns.NsHandle, script string) string {
	t.Helper()
	var out []byte
	err := inNetns(ns, func() (err error) {
		out, err = exec.CommandContext(t.Context(), "sh", "-ec", script).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

// nsPath names ns for the netns argument of ip.
func nsPath(ns netns.NsHandle) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns) }

func TestInNetnsClosedHandle(t *testing.T) {
	t.Parallel()
	ns := freshNetns(t)
	closed := ns
	called := false
	if err := inNetns(netns.None(), func() error { called = true; return nil }); err != nil || !called {
		t.Errorf("no namespace: called %v, err %v", called, err)
	}
	closed = netns.NsHandle(1 << 20)
	if err := inNetns(closed, func() error { return nil }); err == nil {
		t.Error("a handle that is none: no error")
	}
	if err := inNetns(ns, func() error { return os.ErrInvalid }); err != os.ErrInvalid {
		t.Errorf("got %v, want the error of the function", err)
	}
}

func TestInNetns(t *testing.T) {
	t.Parallel()
	ns := freshNetns(t)
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	err = inNetns(ns, func() error {
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
